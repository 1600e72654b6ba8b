"""Label selectors: the schema knows their shape only, and one that Kubernetes would refuse silently matches nobody."""

import re
from typing import Final

from admission.errors import FieldError, invalid, required, unsupported
from api.meta import LabelSelector

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?").fullmatch
_DOMAIN: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*").fullmatch
_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")


def selector_errors(field: str, selector: LabelSelector) -> list[FieldError]:
    """What Kubernetes would say of it. An empty selector is right: it matches everything."""
    errors = []
    for key, value in selector.match_labels.items():
        errors += _key_errors(f"{field}.matchLabels", key)
        errors += _value_errors(f"{field}.matchLabels[{key}]", value)
    for at, term in enumerate(selector.match_expressions):
        place = f"{field}.matchExpressions[{at}]"
        errors += _key_errors(f"{place}.key", term.key)
        match term.operator:
            case "In" | "NotIn":
                if not term.values:
                    errors.append(required(f"{place}.values", f"operator {term.operator} needs at least one"))
                for number, value in enumerate(term.values):
                    errors += _value_errors(f"{place}.values[{number}]", value)
            case "Exists" | "DoesNotExist":
                if term.values:
                    errors.append(invalid(f"{place}.values", term.values, f"operator {term.operator} takes none"))
            case _:
                errors.append(unsupported(f"{place}.operator", term.operator, _OPERATORS))
    return errors


def _key_errors(field: str, key: str) -> list[FieldError]:
    domain, slash, name = key.rpartition("/")
    if not _NAME(name) or (slash and (not _DOMAIN(domain) or len(domain) > 253)):
        return [invalid(field, key, "is no key of a label")]
    return []


def _value_errors(field: str, value: str) -> list[FieldError]:
    return [invalid(field, value, "is no value of a label")] if value and not _NAME(value) else []
