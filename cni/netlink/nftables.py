"""Firewall tables over nfnetlink, without the `nft` or `iptables` program.

Only what marking replies takes: one table, chains on hooks, and rules made of a handful of expressions. A batch is one
transaction: all of it is there afterwards, or nothing. What nf_tables reads is in network order, except the values in
its registers, which are the machine's (linux/netfilter/nf_tables.h).
"""

import errno
import struct
from collections.abc import Sequence

from cni.netlink import message
from cni.netlink.message import attribute, nested, text, u32
from cni.netlink.socket import NetlinkSocket, Refusal

_NETLINK_NETFILTER = 12
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, NEWRULE, GETRULE = (_SUBSYSTEM << 8 | number for number in (0, 1, 2, 3, 6, 7))
_F_APPEND = 0x800
_FAMILIES = {4: 2, 6: 10}
"""NFPROTO_* by IP version. One table each: in the common family a chain cannot be of type route before Linux 5.2."""
_HEADER = struct.Struct("!BBH")
_U32 = struct.Struct("!I")

TABLE = "spiderpool"
_TABLE_NAME = 1
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_TYPE = 1, 3, 4, 7
_HOOK_NUMBER, _HOOK_PRIORITY = 1, 2
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_ELEMENT = 1
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_DATA_VALUE = 1
_REGISTER = 1
"""NFT_REG_1, 16 bytes."""

_PREROUTING, _OUTPUT = 0, 3
_MANGLE = -150
_CHAINS = ("prerouting", "output")
_META_MARK, _META_IIFNAME = 3, 6
_CT_STATE, _CT_MARK = 0, 3
_STATE_NEW = 8
_EQUAL, _NOT_EQUAL = 0, 1

type Message = tuple[int, int, bytes]
"""Type, flags, body."""


class FilterSocket(NetlinkSocket):
    """A blocking nfnetlink socket. Close it, best with `with`."""

    def __init__(self) -> None:
        """It lives in the namespace that the calling thread is in now."""
        super().__init__(_NETLINK_NETFILTER)


def mark_replies(sockets: FilterSocket, versions: Sequence[int], *, ifname: str, mark: int) -> None:
    """Have every packet of a connection that came in by `ifname` leave with `mark`, and no other packet changed.

    A table that is there already, from an earlier try, is replaced.

    Raises:
        KernelRefused: the kernel has no nf_tables, or anything else.
    """
    fresh = [one for version in versions for one in marking(version, ifname=ifname, mark=mark)]
    try:
        try:
            sockets.transaction(_batch(fresh))
        except Refusal as refusal:
            if refusal.number != errno.EEXIST:
                raise
            old = [(DELTABLE, 0, body) for kind, _, body in fresh if kind == NEWTABLE]
            make = [(NEWTABLE, message.F_CREATE, body) for _, _, body in old]
            sockets.transaction(_batch([*make, *old, *fresh]))
    except Refusal as refusal:
        raise refusal.explain(f"mark replies to {ifname} by nf_tables table {TABLE}") from None


def remove(sockets: FilterSocket, versions: Sequence[int]) -> None:
    """Remove the table with all that is in it; one that is not there is fine.

    Raises:
        KernelRefused: it cannot be removed.
    """
    for version in versions:
        try:
            sockets.transaction(_batch([(DELTABLE, 0, _body(version, text(_TABLE_NAME, TABLE)))]))
        except Refusal as refusal:
            if refusal.number not in {errno.ENOENT, errno.EOPNOTSUPP}:
                raise refusal.explain(f"remove nf_tables table {TABLE}") from None


def missing(sockets: FilterSocket, version: int) -> list[str]:
    """What of the table is not there, in words: the table itself, or the rules of a chain.

    Raises:
        KernelRefused: the kernel does not say.
    """
    table = f"nf_tables table {TABLE} of IPv{version}"
    try:
        sockets.query(GETTABLE, _body(version, text(_TABLE_NAME, TABLE)))
        found = sockets.dump(GETRULE, _body(version, text(_RULE_TABLE, TABLE)), _place)
    except Refusal as refusal:
        if refusal.number in {errno.ENOENT, errno.EOPNOTSUPP}:
            return [table]
        raise refusal.explain(f"show {table}") from None
    return [f"the rule of chain {chain} in {table}" for chain in _CHAINS if (TABLE, chain) not in found]


def _place(body: memoryview) -> tuple[str, str]:
    """Of a rule: its table and chain."""
    found = message.attributes(body[_HEADER.size :])
    return message.read_text(found.get(_RULE_TABLE)), message.read_text(found.get(_RULE_CHAIN))


def marking(version: int, *, ifname: str, mark: int) -> list[Message]:
    """The table of one IP version as messages, without the frame of a batch.

    In `nft` words, type route being what makes the kernel route the packet again once its mark has changed:

        chain prerouting { type filter hook prerouting priority mangle;
                           iifname <ifname> ct state new meta mark set <mark> ct mark set <mark> }
        chain output     { type route hook output priority mangle; ct mark <mark> meta mark set <mark> }
    """
    value = u32(mark)
    incoming = [
        _load("meta", _META_IIFNAME),
        _compare(ifname.encode().ljust(16, b"\0")),
        _load("ct", _CT_STATE),
        _keep(_STATE_NEW),
        _compare(u32(0), _NOT_EQUAL),
        _immediate(value),
        _store("meta", _META_MARK),
        _store("ct", _CT_MARK),
    ]
    outgoing = [_load("ct", _CT_MARK), _compare(value), _store("meta", _META_MARK)]
    return [
        (NEWTABLE, message.F_CREATE | message.F_EXCL, _body(version, text(_TABLE_NAME, TABLE))),
        _chain(version, "prerouting", "filter", _PREROUTING),
        _chain(version, "output", "route", _OUTPUT),
        _rule(version, "prerouting", incoming),
        _rule(version, "output", outgoing),
    ]


def _batch(messages: Sequence[Message]) -> list[Message]:
    frame = _HEADER.pack(0, 0, _SUBSYSTEM)
    return [(_BATCH_BEGIN, 0, frame), *messages, (_BATCH_END, 0, frame)]


def _body(version: int, *attributes: bytes) -> bytes:
    return _HEADER.pack(_FAMILIES[version], 0, 0) + b"".join(attributes)


def _chain(version: int, name: str, kind: str, hook: int) -> Message:
    place = nested(
        _CHAIN_HOOK,
        attribute(_HOOK_NUMBER, _U32.pack(hook)),
        attribute(_HOOK_PRIORITY, _U32.pack(_MANGLE & 0xFFFFFFFF)),
    )
    body = _body(version, text(_CHAIN_TABLE, TABLE), text(_CHAIN_NAME, name), place, text(_CHAIN_TYPE, kind))
    return NEWCHAIN, message.F_CREATE | message.F_EXCL, body


def _rule(version: int, chain: str, expressions: Sequence[bytes]) -> Message:
    body = _body(
        version,
        text(_RULE_TABLE, TABLE),
        text(_RULE_CHAIN, chain),
        nested(_RULE_EXPRESSIONS, *(nested(_ELEMENT, one) for one in expressions)),
    )
    return NEWRULE, message.F_CREATE | _F_APPEND, body


def _expression(name: str, *attributes: bytes) -> bytes:
    return text(_EXPRESSION_NAME, name) + nested(_EXPRESSION_DATA, *attributes)


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, attribute(_DATA_VALUE, value))


def _load(name: str, key: int) -> bytes:
    """`meta` or `ct`: register = key. Both number destination 1 and key 2."""
    return _expression(name, _number(1, _REGISTER), _number(2, key))


def _store(name: str, key: int) -> bytes:
    """`meta` or `ct`: key = register. Their source registers are numbered differently."""
    return _expression(name, _number(2, key), _number({"meta": 3, "ct": 4}[name], _REGISTER))


def _compare(value: bytes, operation: int = _EQUAL) -> bytes:
    """The rule ends here unless the register compares so."""
    return _expression("cmp", _number(1, _REGISTER), _number(2, operation), _value(3, value))


def _keep(bits: int) -> bytes:
    """register &= bits."""
    width = _number(3, 4)
    return _expression(
        "bitwise", _number(1, _REGISTER), _number(2, _REGISTER), width, _value(4, u32(bits)), _value(5, u32(0))
    )


def _immediate(value: bytes) -> bytes:
    """register = value."""
    return _expression("immediate", _number(1, _REGISTER), _value(2, value))
