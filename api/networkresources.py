"""Names of the resources that nodes advertise for scheduling: which ones Kubernetes takes, what a NIC's is called."""

import re
from typing import Final

DOMAIN: Final = "spidernet.io"
OWN_PREFIXES: Final = ("cni", "flannel", "veth", "docker", "br-", "virbr", "tun", "tap")
"""Interfaces of container runtimes and networks, never a parent of pods' links."""
_LOOPBACK: Final = "lo"
_SUFFIX: Final = "-nic"
_DOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", re.ASCII)
_QUOTA: Final = "requests."
"""What Kubernetes puts before it in quotas, where the domain has to be one still."""
_DOMAIN_LENGTH: Final = 253 - len(_QUOTA)
_NAME_LENGTH: Final = 63


def is_candidate(ifname: str) -> bool:
    """Whether rules are asked about an interface at all."""
    return ifname != _LOOPBACK and not ifname.startswith(OWN_PREFIXES)


def master_nic(ifname: str) -> str:
    """The resource of a node that has this interface. It may be no name that Kubernetes takes: see `problem`."""
    return f"{DOMAIN}/{ifname}{_SUFFIX}"


def is_master_nic(resource: str) -> bool:
    """Whether the name is of the form that `master_nic` gives."""
    return resource.startswith(f"{DOMAIN}/") and resource.endswith(_SUFFIX)


def problem(resource: str) -> str:
    """Why a device plugin cannot advertise a resource of this name; empty when it can."""
    domain, slash, name = resource.partition("/")
    if not slash:
        return "expected <domain>/<name>"
    if len(domain) > _DOMAIN_LENGTH or not _DOMAIN.fullmatch(domain):
        return f"{domain!r} is no domain of at most {_DOMAIN_LENGTH} lower case letters, digits, '-' and '.'"
    if domain == "kubernetes.io" or domain.endswith(".kubernetes.io"):
        return f"{domain!r} is Kubernetes' own"
    if domain.startswith(_QUOTA):
        return f"{domain!r} begins with {_QUOTA!r}, which quotas begin with"
    if len(name) > _NAME_LENGTH or not _NAME.fullmatch(name):
        return (
            f"{name!r} is no name of at most {_NAME_LENGTH} letters, digits, '-', '_' and '.' with a letter or digit"
            " at both ends"
        )
    return ""
