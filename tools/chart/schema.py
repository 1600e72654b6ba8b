"""values.schema.json of the chart, made from values.yaml so that the two cannot drift apart.

``python -m tools.chart.schema`` writes it. What the defaults cannot say stands in the tables below; the rest is read
off them: a mapping with keys takes those keys only and names them to whoever writes another one, an empty mapping takes
anything, a comment ``# -- text`` is the description of the next key. Keys of the original without an effect here
(`files/without-effect.yaml`) pass the schema, for the templates refuse them with their reason.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

import yaml

CHART: Final = Path(__file__).resolve().parents[2] / "helm" / "spiderpool"

type Schema = dict[str, Any]

_PORT: Final[Schema] = {"type": "integer", "minimum": 1, "maximum": 65535}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_POSITIVE: Final[Schema] = {"type": "integer", "minimum": 1}
_PATH: Final[Schema] = {"type": "string", "pattern": "^/"}
_OBJECTS: Final[Schema] = {"type": "array", "items": {"type": "object"}}
_WORDS: Final[Schema] = {"type": "array", "items": {"type": "string"}}
_NUMBER_OR_PERCENT: Final[Schema] = {"type": ["integer", "string"], "minimum": 0, "pattern": "^[0-9]+%?$"}
_DAYS: Final[Schema] = {"type": ["integer", "string"], "minimum": 1, "pattern": "^[1-9][0-9]*$"}
_PART_OF_DAYS: Final[Schema] = {
    "type": ["number", "string"],
    "exclusiveMinimum": 0,
    "pattern": "^(0?[.][0-9]*[1-9][0-9]*|[1-9][0-9]*([.][0-9]+)?)$",
}
_MAP_OF_WORDS: Final[Schema] = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}

_EXPRESSION: Final[Schema] = {
    "type": "object",
    "required": ["key", "operator"],
    "properties": {
        "key": {"type": "string"},
        "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
        "values": _WORDS,
    },
    "additionalProperties": False,
}
_SELECTOR: Final[Schema] = {
    "type": "object",
    "properties": {
        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
        "matchExpressions": {"type": "array", "items": _EXPRESSION},
    },
}


def _rules(**more: Schema) -> Schema:
    """A list of rules of the device plugin."""
    count: Schema = {"type": "integer", "minimum": 0, "maximum": 100_000}
    selector: Schema = {**_SELECTOR, "additionalProperties": False}
    properties = {"nodeSelector": selector, "defaultMaxCount": count, **more}
    return {"type": "array", "items": {"type": "object", "properties": properties, "additionalProperties": False}}


SPECIAL: Final[dict[str, Schema]] = {
    r".*\.(httpPort|rpcPort|webhookPort|prometheus\.port)": _PORT,
    r".*\.(failureThreshold|periodSeconds)": _POSITIVE,
    r".*HostPath": _PATH,
    r".*\.(binName|python|shimName)": _PATH,
    r".*\.image\.pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    r"(spiderpoolInit|helmTest)\.image\.pullPolicy": {"enum": ["", "Always", "IfNotPresent", "Never"]},
    r".*\.image\.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    r".*\.service\.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    r".*\.logLevel": {"enum": ["debug", "info", "warn", "error"]},
    r".*\.(tolerations|imagePullSecrets|extraEnv|extraVolumes|extraVolumeMounts|policyRoutes)": _OBJECTS,
    r".*(nodeSelector|[lL]abels|[aA]nnotations|podAnnotations)": _MAP_OF_WORDS,
    r".*\.tls\.method": {"enum": ["controller", "auto", "provided", "certmanager"]},
    r".*\.tls\.auto\.\w+Expiration": _DAYS,
    r".*\.tls\.controller\.\w+Duration": _PART_OF_DAYS,
    r".*\.tls\.controller\.renewAfterPercent": {"type": "number", "minimum": 1, "maximum": 99},
    r".*\.shutdownDelaySeconds": {"type": "integer", "minimum": 0, "maximum": 600},
    r".*\.(resources|affinity|securityContext)": {"type": "object"},
    r".*\.minAvailable": _NUMBER_OR_PERCENT,
    r".*\.rollingUpdate\.\w+": _NUMBER_OR_PERCENT,
    r".*\.updateStrategy\.type": {"enum": ["RollingUpdate", "OnDelete"]},
    r"coordinator\.mode": {"enum": ["auto", "underlay", "overlay", "disabled"]},
    r"coordinator\.podCIDRType": {"enum": ["auto", "cluster", "calico", "cilium", "none"]},
    r"coordinator\.vethMTU": {"type": "integer", "minimum": 68, "maximum": 65535},
    r"spiderpoolAgent\.cni\.mtu": {"type": "integer", "minimum": 0, "maximum": 65535},
    r"ipam\.detectionProbes": {"type": "integer", "minimum": 1, "maximum": 10},
    r"ipam\.detectionTimeout": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    r"helmTest\.timeout": _POSITIVE,
    r".*\.kubeletRootDir": _PATH,
    r".*\.devicePluginAffinity\.nodeSelector": _SELECTOR,
    r".*\.subENI\.rules": _rules(resourceName={"type": "string", "pattern": "/"}),
    r".*\.masterNIC\.rules": _rules(includeInterfaces=_WORDS, excludeInterfaces=_WORDS),
}
"""By a pattern of the whole path; a later line wins. For what a default does not show."""

MORE: Final[dict[str, Schema]] = {
    "spiderpoolAgent.updateStrategy.rollingUpdate.maxSurge": {
        "description": "1 with maxUnavailable 0, else 0.",
        **_NUMBER_OR_PERCENT,
    },
}
"""Keys that have no default."""


def build(values: str, without_effect: str) -> Schema:
    """The schema, of the texts of both files."""
    tree = yaml.safe_load(values)
    texts = dict(_descriptions(values))
    schema = _mapping(tree, "", texts)
    for path, more in MORE.items():
        _put(schema, path, more)
    for entry in yaml.safe_load(without_effect):
        _put(schema, entry["key"], {})
        _at(schema, entry["key"]).update(_refused(entry))
    _close(schema)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the Spiderpool chart",
        "description": "Made from values.yaml by `make generate`. Changes here are lost.",
        **schema,
    }


def render(chart: Path = CHART) -> str:
    """The text of values.schema.json."""
    values = (chart / "values.yaml").read_text(encoding="utf-8")
    without_effect = (chart / "files" / "without-effect.yaml").read_text(encoding="utf-8")
    return json.dumps(build(values, without_effect), indent=1) + "\n"


def _mapping(tree: dict[str, Any], path: str, texts: dict[str, str]) -> Schema:
    properties: Schema = {}
    for key, value in tree.items():
        where = f"{path}.{key}" if path else key
        schema = _special(where) or _by_default(value, where, texts)
        properties[key] = {"description": texts[where], **schema} if where in texts else schema
    return {"type": "object", "properties": properties}


def _special(path: str) -> Schema | None:
    found = [schema for pattern, schema in SPECIAL.items() if re.fullmatch(pattern, path)]
    return dict(found[-1]) if found else None


def _by_default(value: object, path: str, texts: dict[str, str]) -> Schema:
    match value:
        case bool():
            return {"type": "boolean"}
        case int():
            return dict(_COUNT)
        case str():
            return {"type": "string"}
        case list():
            return dict(_WORDS)
        case dict() if value:
            return _mapping(value, path, texts)
        case _:
            return {"type": "object"}


def _put(schema: Schema, path: str, inner: Schema) -> None:
    """Add a property below the ones that are there, and whatever lies between."""
    *parents, last = path.split(".")
    for parent in parents:
        schema = schema.setdefault("properties", {}).setdefault(parent, {"type": "object", "properties": {}})
    schema["properties"].setdefault(last, inner)


def _at(schema: Schema, path: str) -> Schema:
    for part in path.split("."):
        schema = schema["properties"][part]
    return schema


def _refused(entry: dict[str, Any]) -> Schema:
    """What a key without effect adds; one that has parts with an effect takes any part, for the templates to judge."""
    if "except" in entry:
        text = f"All but {', '.join(entry['except'])} is without effect: {entry['reason']}."
        return {"description": text, "additionalProperties": True}
    return {"description": f"Without effect: {entry['reason']}."}


def _close(schema: Schema) -> None:
    """Let a mapping take no key but its own; its names are what the error then shows."""
    properties = schema.get("properties")
    if properties and "additionalProperties" not in schema:
        schema["propertyNames"] = {"enum": list(properties)}
        schema["additionalProperties"] = False
        for inner in properties.values():
            _close(inner)


def _descriptions(text: str) -> list[tuple[str, str]]:
    """The comments ``# -- ...`` with the path of the key that they precede."""
    found: list[tuple[str, str]] = []
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            words = stripped.lstrip("#").strip()
            if words.startswith("-- "):
                comment = [words.removeprefix("-- ")]
            elif comment:
                comment.append(words)
            continue
        key = re.match(r"( *)([\w-]+):", line)
        if key is None:
            comment = []
            continue
        indent = len(key[1])
        parents = [each for each in parents if each[0] < indent]
        parents.append((indent, key[2]))
        if comment:
            found.append((".".join(name for _, name in parents), " ".join(comment)))
        comment = []
    return found


if __name__ == "__main__":
    (CHART / "values.schema.json").write_text(render(), encoding="utf-8")
    sys.exit(0)
