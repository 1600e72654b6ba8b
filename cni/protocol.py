"""One CNI call as the agent sees it, and everything that can be wrong with the way it was made.

The shim passes the environment and stdin on unread (`cni/shim/main.c`), so all rules of the protocol are here, where
they can be tested: which verbs a version knows, which variables a verb needs, what a container id looks like, and
whether the call means the plugin itself or its IPAM.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes

from msgspec import Struct

from cni.config import NetConfig, decode_config, decode_json, shown
from cni.errors import IncompatibleVersion, InvalidConfig, InvalidEnvironment
from cni.result import LATEST_VERSION, SUPPORTED_VERSIONS, Result, decode_result

IPAM_TYPE = "spiderpool"
COORDINATOR_TYPE = "coordinator"
IFACER_TYPE = "ifacer"
LINK_KINDS = {"macvlan": "macvlan", "spiderpool": "macvlan", "ipvlan": "ipvlan", "vlan": "vlan", "sriov": "sriov"}
"""Plugin types that make a link here, with the kind of link that each makes (`cni.plan`, `cni.netlink.link`)."""
PLUGIN_TYPES = (*LINK_KINDS, COORDINATOR_TYPE, IFACER_TYPE)
"""All types under which the shim may be called as a plugin of a list."""


class Verb(StrEnum):
    """CNI_COMMAND."""

    ADD = "ADD"
    CHECK = "CHECK"
    DEL = "DEL"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


class Role(StrEnum):
    """What the call wants of us."""

    MAIN = "main"
    """A link with addresses."""
    IPAM = "ipam"
    """Addresses for a link that another plugin makes."""
    COORDINATOR = "coordinator"
    """The way between a pod and its node, for a link that an earlier plugin of the list has made."""
    IFACER = "ifacer"
    """Parents on the node, for the link that a later plugin of the list makes."""


class PodArgs(Struct, frozen=True, kw_only=True):
    """CNI_ARGS."""

    namespace: str = ""
    name: str = ""
    uid: str = ""
    """Older runtimes don't give it."""
    infra: str = ""
    """K8S_POD_INFRA_CONTAINER_ID."""
    mac: str = ""
    extra: dict[str, str] = {}
    """Keys that we don't know."""


class Invocation(Struct, frozen=True, kw_only=True):
    """One call, checked. Fields that the verb has no use for are empty."""

    verb: Verb
    type: str
    """The name under which the shim was called."""
    role: Role = Role.MAIN
    container_id: str = ""
    netns: str = ""
    """Path; may be empty for DEL: the namespace is gone."""
    ifname: str = ""
    args: PodArgs = PodArgs()
    conf: NetConfig = NetConfig()
    prev_result: Result | None = None
    """ADD: what the plugins before this one made; None for the first of a list. CHECK and DEL: what ADD answered, as
    the runtime kept it. None where it kept nothing, or for DEL nothing readable."""
    path: str = ""
    """CNI_PATH."""
    arguments: str = ""
    """CNI_ARGS as they came, for plugins that are called on behalf of this one."""
    gateways: tuple[str, ...] | None = None
    """The next hops of the default routes that the interface is to have; None: those of its addresses."""
    nics: tuple[str, ...] = ()
    """All interfaces that the pod will have, in the order of their making; empty where that is not known."""
    head: str = ""
    """The interface whose ADD this one is made by, where a meta plugin makes several; empty: its own."""
    multus: str = ""
    """``namespace/name`` of the NetworkAttachmentDefinition that the configuration is from, where that is known."""
    traceparent: str = ""
    """W3C trace context, when the runtime put TRACEPARENT into CNI_ARGS; unchecked."""
    shim_start_ns: int = 0
    """When the shim was executed, nanoseconds since the epoch; 0 when unknown."""

    @property
    def link_kind(self) -> str:
        """The kind of link that the call is about; empty for an IPAM call."""
        return LINK_KINDS.get(self.conf.type, self.conf.type) if self.role is Role.MAIN else ""

    @property
    def version(self) -> str:
        """The CNI version to answer in."""
        return self.conf.cni_version or LATEST_VERSION


_REQUIRED: dict[Verb, tuple[str, ...]] = {
    Verb.ADD: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Verb.CHECK: ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    Verb.DEL: ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    Verb.GC: ("CNI_PATH",),
    Verb.STATUS: ("CNI_PATH",),
    Verb.VERSION: (),
}
_SINCE: dict[Verb, str] = {Verb.CHECK: "0.4.0", Verb.GC: "1.1.0", Verb.STATUS: "1.1.0"}
_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_CONTAINER_ID_MAX = 255
_IFNAME_MAX = 15


def parse_invocation(headers: Mapping[str, str], body: bytes) -> Invocation:
    """Read one request of the shim.

    Args:
        headers: names in lower case; `cni-type`, `cni-start` and one `cni-*` per CNI variable, percent-encoded.
        body: stdin, as it came.

    Raises:
        InvalidEnvironment: a variable is missing or malformed.
        DecodeFailure: stdin is no JSON object.
        IncompatibleVersion: cniVersion is not ours, or too old for the verb.
        InvalidConfig: the configuration says something that cannot be.
    """
    environment = _environment(headers)
    verb = _verb(environment)
    called_as = PurePosixPath(_decoded(headers, "cni-type")).name
    start_ns = _start_ns(headers)
    if verb is Verb.VERSION:
        return Invocation(verb=verb, type=called_as, shim_start_ns=start_ns)
    _require(verb, environment)
    tree = decode_json(body)
    check_version(verb, tree.get("cniVersion"))
    conf = decode_config(tree, lenient=verb is Verb.DEL)
    role = role_of(called_as, conf, goes=verb is Verb.DEL)
    args = _pod_args(environment.get("CNI_ARGS", ""))
    of_container = verb in {Verb.ADD, Verb.CHECK, Verb.DEL}
    return Invocation(
        verb=verb,
        type=called_as,
        role=role,
        container_id=_container_id(environment["CNI_CONTAINERID"]) if of_container else "",
        netns=environment.get("CNI_NETNS", "") if of_container else "",
        ifname=_ifname(verb, environment["CNI_IFNAME"]) if of_container else "",
        args=args,
        conf=conf,
        prev_result=_prev_result(verb, role, conf),
        path=environment.get("CNI_PATH", ""),
        arguments=environment.get("CNI_ARGS", ""),
        traceparent=args.extra.get("TRACEPARENT", ""),
        shim_start_ns=start_ns,
    )


def peek_version(body: bytes) -> str:
    """The cniVersion to answer in when the rest of the request made no sense."""
    try:
        version = decode_json(body).get("cniVersion")
    except Exception:  # noqa: BLE001 - whatever is wrong with it has been, or will be, said by parse_invocation
        return LATEST_VERSION
    return version if isinstance(version, str) and version in SUPPORTED_VERSIONS else LATEST_VERSION


def _environment(headers: Mapping[str, str]) -> dict[str, str]:
    names = ("command", "containerid", "netns", "ifname", "args", "path")
    return {f"CNI_{name.upper()}": _decoded(headers, f"cni-{name}") for name in names}


def _decoded(headers: Mapping[str, str], header: str) -> str:
    raw = unquote_to_bytes(headers.get(header, ""))
    name = header.upper().replace("-", "_")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise InvalidEnvironment(f"{name}: {raw!r} is not UTF-8") from None
    if "\0" in text:
        raise InvalidEnvironment(f"{name}: {shown(text)} has a zero byte")
    return text


def _verb(environment: Mapping[str, str]) -> Verb:
    command = environment["CNI_COMMAND"]
    if not command:
        raise InvalidEnvironment("CNI_COMMAND: required environment variable is missing")
    try:
        return Verb(command)
    except ValueError:
        raise InvalidEnvironment(f"CNI_COMMAND: {shown(command)} is unknown", f"known: {', '.join(Verb)}") from None


def _start_ns(headers: Mapping[str, str]) -> int:
    text = headers.get("cni-start", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _require(verb: Verb, environment: Mapping[str, str]) -> None:
    missing = [name for name in _REQUIRED[verb] if not environment.get(name)]
    if missing:
        plural = "variables are" if len(missing) > 1 else "variable is"
        raise InvalidEnvironment(f"{', '.join(missing)}: required environment {plural} missing ({verb})")


def check_version(verb: Verb, version: object) -> None:
    """Refuse a cniVersion that is none of ours, or too old for the verb.

    Raises:
        IncompatibleVersion: it is.
        InvalidConfig: it is no text.
    """
    supported = f"supported: {', '.join(SUPPORTED_VERSIONS)}"
    if version is None:
        raise IncompatibleVersion("cniVersion: missing from the network configuration, which means 0.1.0", supported)
    if not isinstance(version, str):
        raise InvalidConfig(f"cniVersion: {shown(version)} is not valid", "Expected `str`")
    if version not in SUPPORTED_VERSIONS:
        raise IncompatibleVersion(f"cniVersion: {shown(version)} is not supported", supported)
    since = _SINCE.get(verb)
    if since and SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(since):
        raise IncompatibleVersion(f"cniVersion: {shown(version)} has no {verb}", f"{verb} needs {since} or later")


def role_of(called_as: str, conf: NetConfig, *, goes: bool = False) -> Role:
    """What a plugin of ours is to do that is called by this name. With `goes`, what its ADD was refused for is fine.

    Raises:
        InvalidConfig: name and configuration do not go together.
    """
    if called_as == conf.type:
        if called_as == COORDINATOR_TYPE:
            return Role.COORDINATOR
        if called_as == IFACER_TYPE:
            return Role.IFACER
        if called_as not in LINK_KINDS:
            known = f"plugin types: {', '.join(PLUGIN_TYPES)}; ipam.type: {IPAM_TYPE}"
            raise InvalidConfig(f"type: {shown(conf.type)} is no plugin type of ours", known)
        if conf.ipam.type not in {"", IPAM_TYPE} and not goes:
            raise InvalidConfig(
                f'ipam.type: {shown(conf.ipam.type)} is not "{IPAM_TYPE}", the only one that '
                f"plugin type {shown(conf.type)} works with here"
            )
        return Role.MAIN
    if called_as == conf.ipam.type:
        if called_as != IPAM_TYPE:
            raise InvalidConfig(f'ipam.type: {shown(conf.ipam.type)} is not "{IPAM_TYPE}"')
        return Role.IPAM
    raise InvalidConfig(
        f"type: {shown(conf.type)} and ipam.type: {shown(conf.ipam.type)} both differ from the name "
        f"{shown(called_as)} that the plugin was called by"
    )


def container_id_problem(text: str) -> str:
    """Why this is no container id; empty when it is one."""
    if _CONTAINER_ID.fullmatch(text) and len(text) <= _CONTAINER_ID_MAX:
        return ""
    return f"expected {_CONTAINER_ID.pattern}, at most {_CONTAINER_ID_MAX} characters"


def ifname_problem(text: str) -> str:
    """Why this is no interface name; empty when it is one, or empty itself."""
    if len(text.encode()) > _IFNAME_MAX:
        return f"it is longer than {_IFNAME_MAX} bytes"
    if text in {".", ".."}:
        return "that is a folder"
    if any(character in "/:" or character.isspace() for character in text):
        return "/, : and white space are not allowed"
    if "\0" in text:
        return "a zero byte is not allowed"
    if "%" in text:
        return "% is not allowed, the kernel would put a number there"
    return ""


def _container_id(text: str) -> str:
    problem = container_id_problem(text)
    if problem:
        raise InvalidEnvironment(f"CNI_CONTAINERID: {shown(text)} is not a container id", problem)
    return text


def _ifname(verb: Verb, text: str) -> str:
    # That a name has a % the runtime does not mind, so it comes with the DEL after the ADD that was refused for it.
    problem = ifname_problem(text.replace("%", "") if verb is Verb.DEL else text)
    if problem:
        raise InvalidEnvironment(f"CNI_IFNAME: {shown(text)} is not an interface name", problem)
    return text


def _pod_args(text: str) -> PodArgs:
    pairs: dict[str, str] = {}
    for part in filter(None, text.split(";")):
        key, separator, value = part.partition("=")
        if not separator or not key:
            raise InvalidEnvironment(f"CNI_ARGS: {shown(part)} is not KEY=VALUE", f"CNI_ARGS is {shown(text)}")
        pairs[key] = value
    return PodArgs(
        namespace=pairs.pop("K8S_POD_NAMESPACE", ""),
        name=pairs.pop("K8S_POD_NAME", ""),
        uid=pairs.pop("K8S_POD_UID", ""),
        infra=pairs.pop("K8S_POD_INFRA_CONTAINER_ID", ""),
        mac=pairs.pop("MAC", ""),
        extra=pairs,
    )


def _prev_result(verb: Verb, role: Role, conf: NetConfig) -> Result | None:
    if conf.prev_result is None:
        if verb is Verb.CHECK:
            raise InvalidConfig("prevResult: missing from the network configuration, CHECK needs it")
        if verb is Verb.ADD and role is Role.COORDINATOR:
            msg = "prevResult: missing from the network configuration"
            raise InvalidConfig(msg, f"{COORDINATOR_TYPE} comes behind the plugin that makes the interface")
        return None
    if verb in {Verb.ADD, Verb.CHECK}:
        return decode_result(conf.prev_result)
    if verb is Verb.DEL:
        try:
            return decode_result(conf.prev_result)
        except InvalidConfig:
            return None  # as where it is missing
    return None
