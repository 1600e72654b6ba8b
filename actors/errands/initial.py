"""The objects that a new cluster starts with, from what the chart's values say. Pure; `actors.errands.init` makes them.

The environment is that of the original's init job. A name that is unknown or a value that makes no sense raises
`SettingsError`, one line that names both.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from admission.ippool import IPPoolRules
from admission.review import Review
from api.configfile import SettingsError, did_you_mean, shown
from api.coordinator import CoordinatorSpec, SpiderCoordinator
from api.environment import is_injected
from api.ippool import IPPoolSpec, SpiderIPPool
from api.kinds import COORDINATOR, IPPOOL, SUBNET, Kind
from api.meta import ObjectMeta
from api.route import Route
from api.settings import KNOWN
from api.subnet import SpiderSubnet, SubnetSpec

_COORDINATOR = "SPIDERPOOL_INIT_DEFAULT_COORDINATOR"
_MODES = ("auto", "underlay", "overlay", "disabled")
_POD_CIDR_TYPES = ("auto", "cluster", "calico", "cilium", "none")
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}

_ELSEWHERE = {
    f"{_COORDINATOR}_DETECT_GATEWAY": "enableGatewayDetection of conf.yml",
    f"{_COORDINATOR}_DETECT_IP_CONFLICT": "enableIPConflictDetection of conf.yml",
}
"""Names whose switch is somewhere else now."""

_NOT_THERE = ("SPIDERPOOL_INIT_ENABLE_MULTUS_CONFIG", "SPIDERPOOL_INIT_INSTALL_MULTUS")


class Wanted(Struct, frozen=True):
    """An object that is to be there."""

    kind: Kind[Any]
    item: Any
    """A Struct of `kind.type`."""

    @property
    def name(self) -> str:
        """Of the object."""
        metadata: ObjectMeta = self.item.metadata
        return metadata.name

    def __str__(self) -> str:
        return f"{self.kind.kind} {self.name}"


class Initial(Struct, frozen=True, kw_only=True):
    """What the program is told."""

    namespace: str
    """Of the release."""
    controller: str
    """Name of the controller's Service."""
    objects: tuple[Wanted, ...]


def load(environ: Mapping[str, str]) -> Initial:
    """Read the environment. Raises `SettingsError`."""
    given = {
        name: text.strip()
        for name, text in environ.items()
        if text.strip() and not is_injected(name, environ, known=KNOWN)
    }
    for name in sorted(given):
        if name.startswith("SPIDERPOOL_") and name not in KNOWN:
            message = f"{name}={shown(given[name])} is not a setting{did_you_mean(name, tuple(sorted(KNOWN)))}"
            raise SettingsError(message)
    for name, where in _ELSEWHERE.items():
        if _boolean(given, name):
            message = f"{name}={shown(given[name])}: not a matter of the coordinator here, set {where}"
            raise SettingsError(message)
    for name in _NOT_THERE:
        if _boolean(given, name):
            message = f"{name}={shown(given[name])}: there is no default SpiderMultusConfig yet, leave it out"
            raise SettingsError(message)
    namespace = given.get("SPIDERPOOL_NAMESPACE") or given.get("SPIDERPOOL_POD_NAMESPACE", "")
    if not namespace:
        raise SettingsError("SPIDERPOOL_NAMESPACE is missing: the namespace of the release")
    return Initial(
        namespace=namespace,
        controller=given.get("SPIDERPOOL_CONTROLLER_NAME") or "spiderpool-controller",
        objects=(*_coordinator(given), *_family(given, 4), *_family(given, 6)),
    )


# ---------------------------------------------------------------- coordinator


def _coordinator(given: Mapping[str, str]) -> tuple[Wanted, ...]:
    name = given.get(f"{_COORDINATOR}_NAME", "")
    if not name:
        return ()
    mtu = _number(given, f"{_COORDINATOR}_VETH_MTU")
    tune = _boolean(given, f"{_COORDINATOR}_TUNE_POD_ROUTES")
    link = f"{_COORDINATOR}_VETH_LINK_ADDRESS"
    if link in given:
        _address(link, given[link], given[link])
    spec = CoordinatorSpec(
        mode=_one_of(given, f"{_COORDINATOR}_MODE", _MODES),
        pod_cidr_type=_one_of(given, f"{_COORDINATOR}_POD_CIDR_TYPE", _POD_CIDR_TYPES),
        tune_pod_routes=True if tune is None else tune,
        hijack_cidr=_cidrs(given, f"{_COORDINATOR}_HIJACK_CIDR"),
        policy_routes=_routes(given, f"{_COORDINATOR}_POLICY_ROUTES"),
        veth_link_address=given.get(link),
        veth_mtu=mtu,
    )
    return (Wanted(COORDINATOR, SpiderCoordinator(metadata=ObjectMeta(name=name), spec=spec)),)


def _one_of(given: Mapping[str, str], name: str, words: tuple[str, ...]) -> Any:
    word = given.get(name)
    if word is not None and word not in words:
        message = f"{name}={shown(word)}: expected one of {', '.join(words)}"
        raise SettingsError(message)
    return word or "auto"


def _boolean(given: Mapping[str, str], name: str) -> bool | None:
    text = given.get(name)
    if text is None:
        return None
    if text.lower() not in _BOOLEANS:
        message = f"{name}={shown(text)}: expected true or false"
        raise SettingsError(message)
    return _BOOLEANS[text.lower()]


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if text is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text, re.ASCII):
        message = f"{name}={shown(text)}: expected a whole number above 0"
        raise SettingsError(message)
    return int(text)


def _words(text: str) -> list[str]:
    """A list as charts and shells write it: JSON, ``[a b]`` as Go prints it, or ``a,b``."""
    return [word for word in re.split(r"[\s,]+", re.sub(r"[\[\]\"']", " ", text)) if word]


def _cidrs(given: Mapping[str, str], name: str) -> list[str]:
    words = _words(given.get(name, ""))
    for word in words:
        try:
            ip_network(word, strict=False)
        except ValueError:
            message = f"{name}={shown(given[name])}: {shown(word)} is no address or CIDR"
            raise SettingsError(message) from None
    return words


def _address(name: str, text: str, word: str) -> None:
    try:
        ip_address(word)
    except ValueError:
        message = f"{name}={shown(text)}: {shown(word)} is no IP address"
        raise SettingsError(message) from None


def _routes(given: Mapping[str, str], name: str) -> list[Route]:
    text = given.get(name)
    if text is None:
        return []
    try:
        routes = msgspec.json.decode(text, type=list[Route])
        fits = all(ip_network(each.dst, strict=False).version == ip_address(each.gw).version for each in routes)
    except ValueError:
        fits, routes = False, []
    if not fits:
        message = f'{name}={shown(text)}: expected JSON as in [{{"dst": "10.0.0.0/8", "gw": "10.6.0.1"}}]'
        raise SettingsError(message)
    return routes


# ---------------------------------------------------------------- pools


def _family(given: Mapping[str, str], version: Literal[4, 6]) -> tuple[Wanted, ...]:
    """The default subnet and pool of one IP family; none where no name is given."""
    prefix = f"SPIDERPOOL_INIT_DEFAULT_IPV{version}"
    pool, subnet = given.get(f"{prefix}_IPPOOL_NAME", ""), given.get(f"{prefix}_SUBNET_NAME", "")
    if not pool and not subnet:
        return ()
    cidr = given.get(f"{prefix}_IPPOOL_SUBNET", "")
    if not cidr:
        message = f"{prefix}_IPPOOL_SUBNET is missing: {pool or subnet} needs a CIDR such as {_EXAMPLE[version]}"
        raise SettingsError(message)
    spec = IPPoolSpec(
        ip_version=version,
        subnet=cidr,
        ips=_words(given.get(f"{prefix}_IPPOOL_IPRANGES", "")),
        gateway=given.get(f"{prefix}_IPPOOL_GATEWAY"),
        default=True,
    )
    _check(spec, given, prefix)
    made: list[Wanted] = []
    if subnet:
        owner = SubnetSpec(ip_version=version, subnet=cidr, ips=spec.ips, gateway=spec.gateway)
        made.append(Wanted(SUBNET, SpiderSubnet(metadata=ObjectMeta(name=subnet), spec=owner)))
    if pool:
        made.append(Wanted(IPPOOL, SpiderIPPool(metadata=ObjectMeta(name=pool), spec=spec)))
    return tuple(made)


_EXAMPLE = {4: "10.6.0.0/16", 6: "fd00:6::/64"}
_ENVIRONMENT = {"spec.ips": "IPRANGES", "spec.gateway": "GATEWAY", "spec.subnet": "SUBNET", "spec.ipVersion": "SUBNET"}
"""By field of the object: the end of the name that it comes from."""


def _check(spec: IPPoolSpec, given: Mapping[str, str], prefix: str) -> None:
    errors = IPPoolRules().judge(Review("CREATE", SpiderIPPool(spec=spec))).errors
    if errors:
        name = f"{prefix}_IPPOOL_{_ENVIRONMENT[errors[0].field.partition('[')[0]]}"
        message = f"{name}={shown(given[name])}: {'; '.join(str(error) for error in errors)}"
        raise SettingsError(message)


assert set(_MODES) == set(get_args(get_args(CoordinatorSpec.__annotations__["mode"])[0]))
