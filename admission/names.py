"""Names and values as Kubernetes and CNI spell them."""

import re
from typing import Final

_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SUBDOMAIN_LENGTH: Final = 253
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_RESOURCE: Final = re.compile(rf"({_SUBDOMAIN.pattern}/)?{_LABEL_VALUE.pattern}")
_RESOURCE_LENGTH: Final = _SUBDOMAIN_LENGTH + 1 + 63
_NETWORK: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")


def subdomain_problem(text: str) -> str:
    """Why an object cannot have this name; empty when it can."""
    if not text:
        return "it is empty"
    if len(text) > _SUBDOMAIN_LENGTH:
        return f"it has {len(text)} characters, {_SUBDOMAIN_LENGTH} is the limit"
    if not _SUBDOMAIN.fullmatch(text):
        return "expected lower case letters, digits, '-' and '.', with a letter or digit at both ends of each part"
    return ""


def is_label_value(text: str) -> bool:
    """Whether a label can have this value; an empty one says nothing."""
    return bool(_LABEL_VALUE.fullmatch(text))


def is_resource_name(text: str) -> bool:
    """Whether a device plugin can offer this, as ``example.com/nic``."""
    return len(text) <= _RESOURCE_LENGTH and bool(_RESOURCE.fullmatch(text))


def is_network_name(text: str) -> bool:
    """Whether a CNI network can have this name."""
    return bool(_NETWORK.fullmatch(text))
