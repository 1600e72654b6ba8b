"""CNI configuration lists as a meta plugin reads them, and what it adds to a plugin's configuration before it runs.

What libcni does for a runtime (name, cniVersion, prevResult, `runtimeConfig` of the capabilities that a plugin has) and
what Multus adds for a network (the device's id), as existing definitions expect it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from cni import install
from cni.config import kind_of, shown
from cni.errors import InvalidConfig
from cni.result import SUPPORTED_VERSIONS

_SUFFIXES = (".conf", ".conflist", ".json")
_WITHOUT_STATUS_AND_GC = frozenset({"", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"})
"""CNI versions; a list that says none has the first."""


class ConfList(Struct, frozen=True, kw_only=True):
    """A network's plugins in their order."""

    name: str
    cni_version: str = ""
    """Empty where the list does not say."""
    plugins: tuple[dict[str, Any], ...]
    """At least one, each with its type."""
    disable_check: bool = False
    """Whether the plugins are not to be asked to CHECK."""
    disable_gc: bool = False
    """Whether they are not to be told to collect what nobody uses: another list shares it."""

    @property
    def has_status_and_gc(self) -> bool:
        """Whether its CNI version has these verbs."""
        return self.cni_version not in _WITHOUT_STATUS_AND_GC


class Asked(Struct, frozen=True, kw_only=True):
    """What a pod, or its kubelet, wants of one attachment."""

    ips: tuple[str, ...] = ()
    mac: str = ""
    device_id: str = ""
    cni_args: dict[str, Any] = {}
    bandwidth: dict[str, Any] = {}
    port_mappings: list[Any] = []
    infiniband_guid: str = ""


def read_conflist(text: str | bytes, *, where: str, name: str = "") -> ConfList:
    """A list, or a single plugin's configuration, which is a list of one.

    Args:
        text: JSON.
        where: what it is the text of, for errors: ``NetworkAttachmentDefinition ns/lan: spec.config``.
        name: of the network, where the text has none.

    Raises:
        InvalidConfig: it cannot be read, or lists no plugins, or one without a type.
    """
    try:
        tree = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidConfig(f"{where}: it is not JSON", str(error)) from None
    if not isinstance(tree, dict):
        raise InvalidConfig(f"{where}: it is not a JSON object", f"it is a JSON {kind_of(tree)}: {shown(tree)}")
    plugins = tree.get("plugins", [tree] if "type" in tree else None)
    if not isinstance(plugins, list) or not plugins:
        raise InvalidConfig(f"{where}: plugins: {shown(plugins)} lists no plugin")
    for at, plugin in enumerate(plugins):
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise InvalidConfig(f"{where}: plugins[{at}].type: {shown(kind)} is no plugin type")
    named, version = tree.get("name") or name, tree.get("cniVersion") or ""
    for field, value in (("name", named), ("cniVersion", version)):
        if not isinstance(value, str):
            raise InvalidConfig(f"{where}: {field}: {shown(value)} is not valid", "Expected `str`")
    versions = tree.get("cniVersions") or []
    if not isinstance(versions, list):
        raise InvalidConfig(f"{where}: cniVersions: {shown(versions)} is not valid", "Expected `array`")
    known = [one for one in SUPPORTED_VERSIONS if one in versions or one == version]
    return ConfList(
        name=named,
        cni_version=known[-1] if versions and known else version,
        plugins=tuple(plugins),
        disable_check=_is_on(tree.get("disableCheck"), field=f"{where}: disableCheck"),
        disable_gc=_is_on(tree.get("disableGC"), field=f"{where}: disableGC"),
    )


def _is_on(value: object, *, field: str) -> bool:
    """A truth value of a list, for which runtimes take words, too."""
    match value.lower() if isinstance(value, str) else value:
        case None | False | "false" | "0" | "no" | "off":
            return False
        case True | "true" | "1" | "yes" | "on":
            return True
        case _:
            raise InvalidConfig(f"{field}: {shown(value)} is not valid", "Expected `bool`")


def find_conflist(folder: Path, name: str) -> ConfList | None:
    """The first list of a folder that has this name, None where none has. Blocks.

    What a runtime could not use is passed over.

    Raises:
        InvalidConfig: the folder cannot be read.
    """
    found = (one for _, one in _conflists(folder) if isinstance(one, ConfList) and one.name == name)
    try:
        return next(found, None)
    except OSError as error:
        raise InvalidConfig(f"the CNI configurations of this node in {folder} cannot be read", str(error)) from error


def contents(folder: Path) -> str:
    """What is in a folder of configurations, for somebody who looks for another one there. Blocks."""
    where = install.on_node(folder)
    try:
        found = [
            f"{path.name} of the name {shown(one.name)}" if isinstance(one, ConfList) else one.msg
            for path, one in _conflists(folder)
        ]
    except OSError as error:
        return f"{where} cannot be read: {error}"
    return f"{where} has {', '.join(found) or 'none'}"


def _conflists(folder: Path) -> Iterator[tuple[Path, ConfList | InvalidConfig]]:
    """The configurations of a folder in a runtime's order, or why one cannot be used. Raises `OSError`: none can."""
    for path in sorted(path for path in folder.iterdir() if path.suffix in _SUFFIXES):
        try:
            yield path, read_conflist(path.read_bytes(), where=path.name)
        except InvalidConfig as error:
            yield path, error
        except OSError as error:
            yield path, InvalidConfig(f"{path.name}: it cannot be read: {error.strerror}")


def for_plugin(conflist: ConfList, at: int, asked: Asked, *, version: str, ours: bool) -> dict[str, Any]:
    """The configuration of one plugin of a list, without prevResult.

    Args:
        conflist: the list.
        at: which of its plugins.
        asked: what is wanted of the attachment.
        version: the CNI version where the list says none.
        ours: whether it is a plugin of ours, which is told everything without declaring capabilities.
    """
    plugin = dict(conflist.plugins[at])
    capabilities = plugin.pop("capabilities", None)
    able = {key for key, on in capabilities.items() if on is True} if isinstance(capabilities, Mapping) else set()
    wanted: dict[str, Any] = {
        "mac": asked.mac,
        "ips": list(asked.ips),
        "deviceID": asked.device_id,
        "bandwidth": asked.bandwidth,
        "portMappings": asked.port_mappings,
        "infinibandGUID": asked.infiniband_guid,
    }
    given = {key: value for key, value in wanted.items() if value and (ours or key in able)}
    if given:
        before = plugin.get("runtimeConfig")
        plugin["runtimeConfig"] = {**(before if isinstance(before, Mapping) else {}), **given}
    if asked.device_id:
        plugin |= {"deviceID": asked.device_id, "pciBusID": asked.device_id}
    if asked.cni_args:
        args = plugin.get("args")
        args = dict(args) if isinstance(args, Mapping) else {}
        before = args.get("cni")
        plugin["args"] = {**args, "cni": {**(before if isinstance(before, Mapping) else {}), **asked.cni_args}}
    return plugin | {"name": conflist.name, "cniVersion": conflist.cni_version or version}


def calls_multus(folder: Path) -> bool:
    """Whether the configuration that a runtime takes from a folder is that of a Multus. Blocks.

    A folder or file that cannot be read says nothing.
    """
    try:
        names = install.in_order(path.name for path in folder.iterdir())
        if not names or names[0] == install.CONFLIST:
            return False
        found = install.read_configuration(names[0], (folder / names[0]).read_bytes())
    except OSError:
        return False
    return bool(found.types & install.META_PLUGINS)
