"""The CustomResourceDefinitions, made from the Structs so that schema and code cannot drift apart.

``python -m api.crd --output helm/spiderpool/crds`` writes one YAML file per kind.

What of a Struct becomes what in the schema:

* a docstring, of the class or under the field: the description, with the default;
* ``T | None``: T. None means that the field is absent; a null is not a value that the API server would store;
* a default of true, false, a number or a word of an enum: the schema's default, so that it is visible in the stored
  object. An empty text or list is no default: the field stays absent;
* no default, or the mark `api.schema.REQUIRED`, or a Struct that writes all its fields always: required;
* `Literal` and `msgspec.Meta`: enum, minimum, maximum, and anything in `extra_json_schema`.

Objects are left open, for the API server prunes what it does not know.
"""

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from msgspec import Struct
from msgspec import inspect as shapes

from api import kinds
from api.kinds import Kind

CATEGORY = "spiderpool"
_WIDE = 10
"""Priority of columns that only ``kubectl get -o wide`` prints."""
_HEADER = "# Made from the Structs in api/ by `make generate`. Changes here are lost.\n"
_APP_NAMESPACE = r".spec.podAffinity.matchLabels['ipam\.spidernet\.io/app\-namespace']"

type Schema = dict[str, Any]


class Column(Struct, frozen=True):
    """A column of ``kubectl get``."""

    name: str
    path: str
    """JSON path."""
    description: str
    type: str = "string"
    priority: int = 0


class Definition(Struct, frozen=True, kw_only=True):
    """What a CustomResourceDefinition says that a Struct does not."""

    kind: Kind[Any]
    short_name: str
    columns: tuple[Column, ...] = ()

    @property
    def file_name(self) -> str:
        """Name of the file in the chart's `crds` folder."""
        return f"{self.kind.group}_{self.kind.plural}.yaml"


_VERSION = Column("VERSION", ".spec.ipVersion", "IP family, 4 or 6.", type="integer")
_SUBNET = (
    _VERSION,
    Column("SUBNET", ".spec.subnet", "The subnet as a CIDR."),
    Column("ALLOCATED-IP-COUNT", ".status.allocatedIPCount", "Number of addresses given out.", type="integer"),
    Column("TOTAL-IP-COUNT", ".status.totalIPCount", "Number of addresses there are.", type="integer"),
)
_NIC = ".status.current.ips[0]"

DEFINITIONS = (
    Definition(
        kind=kinds.IPPOOL,
        short_name="sp",
        columns=(
            *_SUBNET,
            Column("DEFAULT", ".spec.default", "Whether pods that name no pool may use it.", type="boolean"),
            Column("DISABLE", ".spec.disable", "Whether it gives no new addresses.", type="boolean", priority=_WIDE),
            Column("NodeName", ".spec.nodeName", "Only pods on these nodes.", priority=_WIDE),
            Column("MultusName", ".spec.multusName", "Only NICs made by these attachments.", priority=_WIDE),
            Column("APP-NAMESPACE", _APP_NAMESPACE, "Namespace of the workload that it was made for.", priority=_WIDE),
        ),
    ),
    Definition(kind=kinds.SUBNET, short_name="ss", columns=_SUBNET),
    Definition(
        kind=kinds.ENDPOINT,
        short_name="se",
        columns=(
            Column("INTERFACE", f"{_NIC}.interface", "The pod's first NIC."),
            Column("IPV4POOL", f"{_NIC}.ipv4Pool", "The pool of its IPv4 address."),
            Column("IPV4", f"{_NIC}.ipv4", "Its IPv4 address."),
            Column("IPV6POOL", f"{_NIC}.ipv6Pool", "The pool of its IPv6 address."),
            Column("IPV6", f"{_NIC}.ipv6", "Its IPv6 address."),
            Column("NODE", ".status.current.node", "The pod's node."),
        ),
    ),
    Definition(kind=kinds.RESERVEDIP, short_name="sr", columns=(_VERSION,)),
    Definition(kind=kinds.COORDINATOR, short_name="scc"),
    Definition(kind=kinds.MULTUSCONFIG, short_name="smc"),
)


def document(definition: Definition) -> Schema:
    """The CustomResourceDefinition as plain JSON values."""
    kind = definition.kind
    version: Schema = {}
    if definition.columns:
        version["additionalPrinterColumns"] = [_column(column) for column in definition.columns]
    version |= {
        "name": kind.version,
        "schema": {"openAPIV3Schema": _object(kind.type)},
        "served": True,
        "storage": True,
    }
    version["subresources"] = {"status": {}} if kind.status else {}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "names": {
                "categories": [CATEGORY],
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "shortNames": [definition.short_name],
                "singular": kind.kind.lower(),
            },
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "versions": [version],
        },
    }


def render(definition: Definition) -> str:
    """The CustomResourceDefinition as YAML text."""
    return _HEADER + yaml.dump(document(definition), Dumper=_Dumper, width=116, allow_unicode=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write every definition into a folder. Files there that no definition makes are left alone."""
    parser = argparse.ArgumentParser(prog="python -m api.crd", description="Write the CustomResourceDefinitions.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    output: Path = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    for definition in DEFINITIONS:
        (output / definition.file_name).write_text(render(definition), encoding="utf-8")
    return 0


class _Dumper(yaml.SafeDumper):
    """Without anchors: they would tie columns of two kinds together for a reader."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _column(column: Column) -> Schema:
    made: Schema = {"description": column.description, "jsonPath": column.path, "name": column.name}
    if column.priority:
        made["priority"] = column.priority
    return made | {"type": column.type}


def _object(cls: type[Any]) -> Schema:
    """The schema of a whole object, whose metadata is the API server's own business."""
    schema = _schema(shapes.type_info(cls))
    schema["properties"] |= {
        "apiVersion": {"description": "Version of this form of the object.", "type": "string"},
        "kind": {"description": "Kind of the object.", "type": "string"},
        "metadata": {"type": "object"},
    }
    return schema


def _schema(shape: shapes.Type) -> Schema:
    match shape:
        case shapes.Metadata(inner, extra_json_schema=extra):
            return _schema(inner) | (extra or {})
        case shapes.UnionType(types):
            alternatives = [alternative for alternative in types if not isinstance(alternative, shapes.NoneType)]
            if len(alternatives) == 1:
                return _schema(alternatives[0])
        case shapes.StructType(cls, fields):
            return _struct(cls, fields)
        case shapes.ListType(item):
            return {"items": _schema(item), "type": "array"}
        case shapes.DictType(value_type=value):
            return {"additionalProperties": _schema(value), "type": "object"}
        case shapes.LiteralType(values):
            return {"enum": list(values), "type": "integer" if isinstance(values[0], int) else "string"}
        case shapes.IntType(ge=minimum, le=maximum):
            limits = {"maximum": maximum, "minimum": minimum}
            given = {name: limit for name, limit in limits.items() if limit is not None}
            # Without it 1e+30 is an integer, which no reader of ours has room for.
            return given | {"format": "int64", "type": "integer"}
        case shapes.StrType():
            return {"type": "string"}
        case shapes.BoolType():
            return {"type": "boolean"}
        case _:
            pass
    msg = f"{shape} has no place in a CRD's structural schema"
    raise TypeError(msg)


def _struct(cls: type[Struct], fields: Sequence[shapes.Field]) -> Schema:
    texts = _texts(cls)
    properties: Schema = {}
    required: list[str] = []
    for field in fields:
        schema = _schema(field.type)
        if text := texts.get(field.name):
            schema["description"] = text
        if isinstance(field.default, bool | int) or field.default in schema.get("enum", ()):
            schema["default"] = field.default
            # `kubectl explain` prints no defaults.
            schema["description"] = f"{text} Default: {str(field.default).lower()}.".lstrip()
        if field.required or _is_required(field.type) or not cls.__struct_config__.omit_defaults:
            required.append(field.encode_name)
        properties[field.encode_name] = schema
    made: Schema = {"description": texts[""], "properties": properties, "type": "object"}
    if required:
        made["required"] = sorted(required)
    return made


def _is_required(shape: shapes.Type) -> bool:
    return isinstance(shape, shapes.Metadata) and (shape.extra or {}).get("crd") == "required"


def _texts(cls: type[Struct]) -> dict[str, str]:
    """The docstrings of a Struct's fields by field name, and its own under the empty name, each on one line."""
    texts: dict[str, str] = {}
    for ancestor in reversed(cls.__mro__):
        if ancestor is not Struct and issubclass(ancestor, Struct):
            texts |= _texts_of_one(ancestor)
    return {name: " ".join(text.split()) for name, text in texts.items()}


def _texts_of_one(cls: type[Struct]) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {"": ast.get_docstring(tree) or ""}
    for before, after in pairwise(tree.body):
        match before, after:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                texts[name] = text
            case _:
                pass
    return texts


if __name__ == "__main__":
    sys.exit(main())
