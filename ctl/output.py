"""How a verb shows what it found: a table for people, or the same as JSON or YAML for programs.

A verb makes one value of all that it has to say and tells how that looks as text; the words of `--output` are the same
for every verb.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence

import msgspec
import yaml

FORMATS = ("text", "wide", "json", "yaml")


def add_argument(parser: argparse.ArgumentParser) -> None:
    """The flag by which people choose."""
    parser.add_argument(
        "-o",
        "--output",
        choices=FORMATS,
        default="text",
        metavar="FORMAT",
        help="text (the default), wide (with more columns), json or yaml",
    )


def shown(item: object, output: str, render: Callable[[bool], str]) -> str:
    """The text to print, which ends with a newline. `render` is given whether wide columns are wanted."""
    match output:
        case "json":
            return msgspec.json.format(msgspec.json.encode(item), indent=2).decode() + "\n"
        case "yaml":
            text: str = yaml.safe_dump(msgspec.to_builtins(item), sort_keys=False, allow_unicode=True)
            return text
        case _:
            return render(output == "wide")


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as columns, the first row their heads; an empty cell is a dash."""
    cells = [[cell or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)
