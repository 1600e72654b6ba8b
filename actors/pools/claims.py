"""What the actor of a pool is asked, and what it answers; it travels between replicas too (`actors.pools.peers`)."""

from msgspec import Struct

from api.ippool import AllocationRecord, IPPoolSpec
from api.reasons import Reason
from ipam import operations as rules
from runtime.actor import Question


class Granted(Struct, frozen=True, tag=True):
    """An address is the asker's, and the store has it."""

    address: str
    """With prefix length."""
    fresh: bool
    """False when the record was there before."""
    spec: IPPoolSpec
    """Of the pool as it was committed: gateway and routes come from it."""
    doubtful: bool = False
    """Whether another copy of the claim may still be under way, at a replica that gave no answer."""


class Surrendered(Struct, frozen=True, tag=True):
    """What was freed now, in canonical text without prefix length."""

    addresses: tuple[str, ...] = ()
    held: bool = False
    """Whether this pod uid and NIC still hold an address here, for a newer sandbox."""
    retained: tuple[str, ...] = ()
    """What stays for the next pod of the same name."""


class Refused(Struct, frozen=True, tag=True):
    """The pool cannot or will not; nothing was written for this request."""

    reason: Reason
    retry: bool = False
    doubtful: bool = False
    """As in `Granted`."""


class Claim(Question["Granted | Refused"], frozen=True, tag=True):
    """One address for one NIC of a pod."""

    pod: str
    """``namespace/name``; of a virtual machine with fixed addresses the name of its instance."""
    uid: str
    nic: str
    node: str
    cid: str
    """First 12 hex digits of the container id."""
    fixed: bool = False
    """The address belongs to the name: what an earlier pod of that name left is taken over, once nothing carries it."""
    moving: bool = False
    """A live migration runs: it is taken over though the other pod still carries it."""
    begun: int = 0
    """As in `wire.Allocate`."""
    disputed: bool = False
    """As in `wire.Allocate`."""
    confirm: bool = False
    """Nothing is granted or taken over: is what this very sandbox was granted still its own?"""
    patience: float = 0.0
    """For how many seconds it waits for an address where the pool is full, rather than be refused at once."""
    address: str = ""
    """This one and no other, canonical text without prefix length; empty: whichever is free."""
    parent_mac: str = ""
    """A network provider will be asked for the address: MAC address of the node's NIC below the pod's."""
    by: int = 0
    """Until when that may be under way, unix milliseconds."""


class Surrender(Question["Surrendered | Refused"], frozen=True, tag=True):
    """Give back what this pod uid, NIC and container hold here."""

    uid: str
    nic: str
    cid: str
    node: str = ""
    """The node that asks; a record of another node is not touched. Empty: a caller that may release anything."""
    keep: tuple[str, ...] | None = None
    """All the NICs that the container has left: everything else that it holds goes. None: only `nic` goes."""
    retain: bool = False
    """What goes is kept for the next pod of the same name."""
    kept_only: bool = False
    """What a link may still carry stays."""
    successor: str = ""
    """First 12 hex digits of the pod's living sandbox: what matches becomes its, and nothing is freed."""
    heir: rules.Heir | None = None
    """Another pod that may carry the addresses still: what matches becomes its, and nothing is freed."""


class Disown(Question["Surrendered | Refused"], frozen=True, tag=True):
    """Somebody else on the network has these addresses: the records go, and nobody gets the addresses for a while."""

    uid: str
    nic: str
    cid: str
    node: str
    addresses: tuple[str, ...]
    """Canonical text without prefix length."""
    seen: str
    """What was met."""
    seconds: float


class Reclaim(Question["Surrendered | Refused"], frozen=True, tag=True):
    """A record is not needed any more, whoever wrote it: it goes if it is still exactly that one."""

    address: str
    """As it stands in the pool."""
    record: AllocationRecord
    """As it was judged."""
    retain: bool = False
    """As in `Surrender`."""


class Chase(Question["Surrendered | Refused"], frozen=True, tag=True):
    """A network provider is about to be told that an owed address is released. The answer lists it, if it is owed."""

    address: str
    """Canonical text without prefix length."""
    by: int
    """The debt's, as it was seen; see `ipam.withheld.Owed`."""
    until: int
    """Until when that may be under way, unix milliseconds; equal to `by` for one that does not count."""


class Settle(Question["Surrendered | Refused"], frozen=True, tag=True):
    """The provider has released it. The answer lists the address, if it was owed as the `Chase` before left it."""

    address: str
    by: int


class Peek(Question[bool], frozen=True, tag=True):
    """Whether this pod uid and NIC hold an address here, from memory: a hint for the order of candidates, no more."""

    uid: str
    nic: str
    pod: str = ""
    """Or, if given, a pod of this name does."""


type Request = Claim | Surrender | Disown | Reclaim | Chase | Settle
"""What is answered by a write, or by a read that proves that none is needed."""


def operation(message: Request) -> rules.Operation:
    """A request as the ledger's rule. Replayed for every attempt, so it looks at nothing but the request."""
    match message:
        case Claim(
            pod,
            uid,
            nic,
            node,
            cid,
            fixed,
            moving,
            begun,
            disputed,
            confirm,
            address=address,
            parent_mac=parent_mac,
            by=by,
        ):
            return rules.Claim(
                pod=pod,
                uid=uid,
                nic=nic,
                node=node,
                cid=cid,
                fixed=fixed,
                moving=moving,
                begun=begun,
                disputed=disputed,
                confirm=confirm,
                address=address,
                parent_mac=parent_mac,
                by=by,
            )
        case Surrender(uid, nic, cid, node, keep, retain, kept_only, successor, heir):
            return rules.Surrender(
                uid=uid,
                nic=nic,
                cid=cid,
                node=node,
                keep=keep,
                retain=retain,
                kept_only=kept_only,
                successor=successor,
                heir=heir,
            )
        case Disown(uid, nic, cid, node, addresses, seen, seconds):
            return rules.Disown(uid=uid, nic=nic, cid=cid, node=node, addresses=addresses, seen=seen, seconds=seconds)
        case Reclaim(address, record, retain):
            return rules.Reclaim(address=address, record=record, retain=retain)
        case Chase(address, by, until):
            return rules.Chase(address=address, by=by, until=until)
        case Settle(address, by):
            return rules.Settle(address=address, by=by)


def holder(message: Request) -> tuple[str, str]:
    """The pod uid and the NIC that a request is about."""
    match message:
        case Reclaim(record=record):
            return record.pod_uid, record.nic
        case Chase() | Settle():
            return "", ""
        case _:
            return message.uid, message.nic
