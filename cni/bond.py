"""What a bond is to be like: the options of the plugin `ifacer`, read and compared. Pure.

Options come as the text "miimon=100;primary=eth1". A value may be the kernel's number or its word for it
(Documentation/networking/bonding.rst). What was not given is the kernel's to choose, and is not compared.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Address

import msgspec
from msgspec import Struct

from cni.config import shown
from cni.errors import InvalidConfig

type Value = int | str | tuple[str, ...]
"""A number, the name of a link or a MAC address, or IPv4 addresses."""

MODES = ("balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb")

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_TARGETS = 16
"""As many addresses does the kernel keep."""


class _Number(Struct, frozen=True):
    high: int = (1 << 31) - 1
    low: int = 0
    words: tuple[str, ...] = ()
    """Of the values from 0 on."""


_ONOFF = _Number(1, words=("off", "on"))
_NUMBERS: Mapping[str, _Number] = {
    "ad_actor_sys_prio": _Number(65535, 1),
    "ad_select": _Number(3, words=("stable", "bandwidth", "count", "prio")),
    "ad_user_port_key": _Number(1023),
    "all_slaves_active": _Number(1, words=("dropped", "delivered")),
    "arp_all_targets": _Number(1, words=("any", "all")),
    "arp_interval": _Number(),
    "arp_validate": _Number(6, words=("none", "active", "backup", "all", "filter", "filter_active", "filter_backup")),
    "downdelay": _Number(),
    "fail_over_mac": _Number(2, words=("none", "active", "follow")),
    "lacp_rate": _Number(1, words=("slow", "fast")),
    "lp_interval": _Number(low=1),
    "miimon": _Number(),
    "min_links": _Number(),
    "num_peer_notif": _Number(255),
    "packets_per_slave": _Number(65535),
    "peer_notif_delay": _Number(300_000),
    "primary_reselect": _Number(2, words=("always", "better", "failure")),
    "resend_igmp": _Number(255),
    "tlb_dynamic_lb": _ONOFF,
    "updelay": _Number(),
    "use_carrier": _ONOFF,
    "xmit_hash_policy": _Number(5, words=("layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac")),
}
SLAVES = frozenset({"active_slave", "primary"})
"""Options whose value is the name of a slave."""
KNOWN = (*sorted({*_NUMBERS, *SLAVES, "ad_actor_system", "arp_ip_target"}),)
_SPELLINGS = {"up_delay": "updelay"}
"""How the original spells them."""
DELAYS = frozenset({"downdelay", "peer_notif_delay", "updelay"})
"""Options that the kernel keeps as a number of miimon's periods."""
PASSING = frozenset({"active_slave"})
"""Options that say how a bond begins; it changes them by itself."""


class BondPlan(Struct, frozen=True, kw_only=True):
    """A bond to have on the node."""

    name: str
    mode: int
    options: tuple[tuple[str, Value], ...] = ()
    """By name, those that were given."""

    def __str__(self) -> str:
        given = "".join(f", {name}={said(value)}" for name, value in self.options)
        return f"{self.name} ({MODES[self.mode]}{given})"


class BondState(Struct, frozen=True, kw_only=True):
    """A bond as the kernel shows it."""

    mode: int
    options: Mapping[str, Value]
    """Slaves by name. Those that the kernel shows in other modes only, or only when they are set, may be missing."""


def bond_options(text: str, *, slaves: tuple[str, ...]) -> tuple[tuple[str, Value], ...]:
    """The options in `bond.options`, in the order of their names.

    Raises:
        InvalidConfig: one is unknown, or its value cannot be; the message names it.
    """
    found: dict[str, Value] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        field = f"bond.options: {key}"
        if not separator:
            raise InvalidConfig(f"bond.options: {shown(part)} is not KEY=VALUE", 'expected "miimon=100;primary=eth1"')
        name = _SPELLINGS.get(key, key)
        if name not in KNOWN:
            raise InvalidConfig(f"bond.options: {shown(key)} is no option of a bond", f"known: {', '.join(KNOWN)}")
        if name in found:
            raise InvalidConfig(f"{field} is there twice")
        found[name] = _value(field, name, value, slaves)
    if found.get("miimon") and found.get("arp_interval"):
        problem = f"there is arp_interval={found['arp_interval']}, too; a bond is monitored in one way"
        raise InvalidConfig(f"bond.options: miimon: {found['miimon']} is not possible", problem)
    return tuple(sorted(found.items()))


def differences(plan: BondPlan, state: BondState, *, whole: bool) -> list[str]:
    """What of a bond is not as planned, in words; `whole` tells that it has all its slaves."""
    found = []
    if state.mode != plan.mode:
        found.append(f"its mode is {MODES[state.mode]}, not {MODES[plan.mode]}")
    for name, value in plan.options:
        seen, kept = state.options.get(name), _kept(name, value, state.options.get("miimon"))
        if name in PASSING or seen == kept or (seen is None and not (whole and name == "primary")):
            continue
        found.append(f"its {name} is {said(seen) if seen is not None else 'not set'}, not {said(kept)}")
    return found


def _kept(name: str, value: Value, period: Value | None) -> Value:
    """What the kernel makes of a value."""
    if name in DELAYS and isinstance(value, int) and isinstance(period, int) and period:
        return value - value % period
    return value


def _value(field: str, name: str, value: str, slaves: tuple[str, ...]) -> Value:
    number = _NUMBERS.get(name)
    if number is not None:
        return _number(field, value, number)
    if name in SLAVES:
        if value not in slaves:
            raise InvalidConfig(f"{field}: {shown(value)} is none of the interfaces", f"they are {', '.join(slaves)}")
        return value
    if name == "ad_actor_system":
        if not _MAC.fullmatch(value.lower()):
            raise InvalidConfig(f"{field}: {shown(value)} is not a MAC address")
        return value.lower()
    return _addresses(field, value)


def _number(field: str, value: str, number: _Number) -> int:
    if value in number.words:
        return number.words.index(value)
    if not (value.isascii() and value.isdigit() and len(value) < 11) or not number.low <= int(value) <= number.high:
        words = f", or one of {', '.join(number.words)}" if number.words else ""
        problem = f"expected a number from {number.low} to {number.high}{words}"
        raise InvalidConfig(f"{field}: {shown(value)} is not possible", problem)
    return int(value)


def _addresses(field: str, value: str) -> tuple[str, ...]:
    """A JSON list, as the original has it, or with commas, as the kernel has it."""
    try:
        texts = msgspec.json.decode(value, type=list[str]) if value.startswith("[") else value.split(",")
        addresses = tuple(str(IPv4Address(text.strip())) for text in texts)
    except ValueError as error:
        raise InvalidConfig(f"{field}: {shown(value)} is not a list of IPv4 addresses", str(error)) from None
    if not 0 < len(addresses) <= _TARGETS:
        raise InvalidConfig(f"{field}: {shown(value)} has {len(addresses)} addresses", f"expected 1 to {_TARGETS}")
    return addresses


def said(value: Value) -> str:
    """A value for a message."""
    return str(value) if isinstance(value, int | str) else ",".join(value)
