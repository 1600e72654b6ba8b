"""The journal of a spiderpool-standalone, read as it lies on disk. Nothing is changed, mended or set aside."""

from pathlib import Path

import msgspec

from cni import journal
from cni.journal import JournalEntry
from ctl.errors import Failure

_FOLDER = "journal"


def read(state_dir: Path) -> tuple[list[JournalEntry], list[str]]:
    """The entries, and a line for each file that is none. Blocks.

    Raises `Failure` when the folder is there and cannot be listed.
    """
    folder = state_dir / _FOLDER
    entries: list[JournalEntry] = []
    problems: list[str] = []
    try:
        paths = sorted(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        msg = f"{folder}: {error.strerror}"
        raise Failure(msg) from error
    for path in paths:
        if path.suffix == ".corrupt":
            problems.append(f"journal: {path.name} could not be read and was set aside")
        if path.suffix != ".json":
            continue
        try:
            entries.append(journal.decode(path.read_bytes()))
        except FileNotFoundError:
            continue  # it has just been removed
        except (OSError, msgspec.DecodeError) as error:
            problems.append(f"journal: {path.name}: {error}")
    return entries, problems
