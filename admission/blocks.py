"""The block of a SpiderMultusConfig that describes the NIC: one for each `cniType`."""

import re
from collections.abc import Iterator
from typing import Final, assert_never

from msgspec import structs

from admission.errors import FieldError, duplicate, forbidden, invalid, required
from admission.names import is_resource_name
from api.multusconfig import (
    BondConfig,
    IBSriovConfig,
    IpoibConfig,
    IPvlanConfig,
    MacvlanConfig,
    OvsConfig,
    SpiderpoolPools,
    SriovConfig,
    Trunk,
    VlanConfig,
)
from cni.bond import bond_options
from cni.errors import CniError
from cni.protocol import ifname_problem
from ipam.wildcards import PatternError, is_pattern, parse

type OnMaster = MacvlanConfig | IPvlanConfig | VlanConfig
type Block = OnMaster | SriovConfig | IBSriovConfig | IpoibConfig | OvsConfig

_MTU: Final = 65535
"""Bytes: more no kind of link takes."""
_RATE: Final = (1 << 32) - 1
"""Mbit/s that the kernel has room for."""
_PKEY: Final = re.compile(r"(0[xX])?[0-9a-fA-F]{1,4}")
_PCI: Final = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]")


def completed_block(block: Block) -> Block:
    """With what an author may leave out."""
    match block:
        case VlanConfig():
            mode = block.vlan_mode or "manual"
            vlan = 0 if mode == "manual" and block.vlan_id is None else block.vlan_id
            return structs.replace(block, mtu=block.mtu or 0, vlan_mode=mode, vlan_id=vlan)
        case MacvlanConfig() | IPvlanConfig():
            return structs.replace(block, mtu=block.mtu or 0, vlan_id=block.vlan_id or 0)
        case SriovConfig():
            return structs.replace(
                block,
                mtu=block.mtu or 0,
                vlan_id=block.vlan_id or 0,
                min_tx_rate_mbps=block.min_tx_rate_mbps or 0,
                max_tx_rate_mbps=block.max_tx_rate_mbps or 0,
            )
        case IBSriovConfig():
            return structs.replace(
                block,
                link_state=block.link_state or "enable",
                rdma_isolation=block.rdma_isolation is not False,
                enable_ib_kubernetes=bool(block.enable_ib_kubernetes),
            )
        case OvsConfig():
            return structs.replace(block, vlan=block.vlan or 0)
        case IpoibConfig():
            return block
        case _:
            assert_never(block)


def block_errors(field: str, block: Block) -> list[FieldError]:
    """All that is wrong with a block; `field` is where it stands."""
    errors = [*_pool_errors(f"{field}.ippools", block.ippools, of_vf=isinstance(block, SriovConfig))]
    match block:
        case MacvlanConfig() | IPvlanConfig() | VlanConfig():
            errors += _on_master_errors(field, block)
        case SriovConfig():
            errors += _sriov_errors(field, block)
        case IBSriovConfig():
            errors += _resource_errors(f"{field}.resourceName", block.resource_name)
            if block.pkey and not _PKEY.fullmatch(block.pkey):
                errors.append(invalid(f"{field}.pkey", block.pkey, "expected up to four hexadecimal digits, as 0x8001"))
        case IpoibConfig():
            errors += _interface_errors(f"{field}.master", block.master)
        case OvsConfig():
            errors += _ovs_errors(field, block)
        case _:
            assert_never(block)
    return errors


def block_warnings(field: str, block: Block) -> Iterator[str]:
    """What has no effect."""
    match block:
        case MacvlanConfig() | IPvlanConfig() | VlanConfig() if block.bond is not None and len(block.master) == 1:
            yield f"{field}.bond: without effect, there is one master"
        case _:
            pass


def _on_master_errors(field: str, block: OnMaster) -> Iterator[FieldError]:
    yield from _mtu_errors(f"{field}.mtu", block.mtu)
    if not block.master:
        yield required(f"{field}.master", "at least one interface of the node")
    for at, name in enumerate(block.master):
        yield from _interface_errors(f"{field}.master[{at}]", name)
        if name in block.master[:at]:
            yield duplicate(f"{field}.master[{at}]", name)
    several = len(block.master) > 1
    if several and block.bond is None:
        yield required(f"{field}.bond", f"{len(block.master)} masters need one")
    elif several and block.bond is not None:
        yield from _bond_errors(f"{field}.bond", block.bond, block.master)
    if isinstance(block, VlanConfig):
        if block.vlan_mode == "auto" and block.vlan_id is not None:
            yield forbidden(f"{field}.vlanID", "vlanMode is auto: it comes with the address")
    elif block.vlan_id and block.master:
        base = block.bond.name if several and block.bond is not None else block.master[0]
        if base and not ifname_problem(base) and (problem := ifname_problem(f"{base}.{block.vlan_id}")):
            text = f"the VLAN would be {base}.{block.vlan_id}, no interface name: {problem}"
            yield invalid(f"{field}.vlanID", block.vlan_id, text)
    if block.rdma_resource_name:
        yield from _resource_errors(f"{field}.rdmaResourceName", block.rdma_resource_name)


def _bond_errors(field: str, bond: BondConfig, masters: list[str]) -> Iterator[FieldError]:
    yield from _interface_errors(f"{field}.name", bond.name)
    if bond.name in masters:
        yield invalid(f"{field}.name", bond.name, "one of the masters has this name")
    try:
        bond_options(bond.options or "", slaves=tuple(masters))
    except CniError as error:
        said = error.msg.removeprefix("bond.options: ")
        yield invalid(f"{field}.options", bond.options, f"{said}: {error.details}" if error.details else said)


def _sriov_errors(field: str, block: SriovConfig) -> Iterator[FieldError]:
    yield from _resource_errors(f"{field}.resourceName", block.resource_name)
    yield from _mtu_errors(f"{field}.mtu", block.mtu)
    least, most = block.min_tx_rate_mbps or 0, block.max_tx_rate_mbps or 0
    for name, rate in (("minTxRateMbps", least), ("maxTxRateMbps", most)):
        if rate > _RATE:
            yield invalid(f"{field}.{name}", rate, f"at most {_RATE}")
    if most and least > most:
        yield invalid(f"{field}.minTxRateMbps", least, f"larger than maxTxRateMbps, {most}")
    if not block.vlan_id:
        for name, value in (("vlanQoS", block.vlan_qos), ("vlanProto", block.vlan_proto)):
            if value not in {None, 0, "802.1q"}:
                yield invalid(f"{field}.{name}", value, "it is of a VLAN, and vlanID names none")


def _ovs_errors(field: str, block: OvsConfig) -> Iterator[FieldError]:
    yield from _interface_errors(f"{field}.bridge", block.bridge, what="bridge")
    for at, trunk in enumerate(block.trunk):
        yield from _trunk_errors(f"{field}.trunk[{at}]", trunk)
    if block.device_id and not _PCI.fullmatch(block.device_id):
        yield invalid(f"{field}.deviceID", block.device_id, "expected a PCI address, as 0000:03:02.1")


def _trunk_errors(field: str, trunk: Trunk) -> Iterator[FieldError]:
    first, last = trunk.min_id, trunk.max_id
    if first is None and last is None and trunk.id is None:
        yield required(field, "id, or minID and maxID")
    elif first is None and last is not None:
        yield required(f"{field}.minID", f"maxID is {last}")
    elif last is None and first is not None:
        yield required(f"{field}.maxID", f"minID is {first}")
    elif first is not None and last is not None and first > last:
        yield invalid(f"{field}.minID", first, f"larger than maxID, {last}")


def _pool_errors(field: str, pools: SpiderpoolPools | None, *, of_vf: bool) -> Iterator[FieldError]:
    if pools is None:
        return
    for name, entries in (("ipv4", pools.ipv4), ("ipv6", pools.ipv6)):
        for at, entry in enumerate(entries):
            if not entry:
                yield invalid(f"{field}.{name}[{at}]", entry, "expected the name of a pool")
            elif entry in entries[:at]:
                yield duplicate(f"{field}.{name}[{at}]", entry)
            elif problem := _pattern_problem(entry):
                yield invalid(f"{field}.{name}[{at}]", entry, problem)
    if pools.match_master_subnet and not of_vf:
        yield forbidden(f"{field}.matchMasterSubnet", "only with cniType sriov")


def _pattern_problem(text: str) -> str:
    """Why it is no pattern, where it is meant as one; empty when it is."""
    try:
        if is_pattern(text):
            parse(text)
    except PatternError as error:
        return error.problem
    return ""


def _mtu_errors(field: str, mtu: int | None) -> Iterator[FieldError]:
    if mtu is not None and mtu > _MTU:
        yield invalid(field, mtu, f"at most {_MTU} bytes")


def _resource_errors(field: str, name: str) -> Iterator[FieldError]:
    if not name:
        yield required(field, "what the device plugin calls them, as example.com/nic")
    elif not is_resource_name(name):
        yield invalid(field, name, "expected the name of a resource, as example.com/nic")


def _interface_errors(field: str, name: str, *, what: str = "interface") -> Iterator[FieldError]:
    if not name:
        yield required(field, f"the name of {'an' if what[0] in 'aeiou' else 'a'} {what} of the node")
    elif problem := ifname_problem(name):
        yield invalid(field, name, f"no {what} can have this name: {problem}")
