"""What the book of a pool is asked to do, and what it says: the words between `ipam.ledger` and whoever uses it."""

from msgspec import Struct

from api.ippool import AllocationRecord
from api.reasons import Reason
from ipam.history import Change
from ipam.table import Before


class Claim(Struct, frozen=True, tag="claim", kw_only=True):
    """Wanted: an address for one NIC of a pod. A repeated claim gets the same one.

    Attributes:
        pod: `namespace/name`; of a virtual machine with fixed addresses the name of the machine's instance.
        uid: the pod's uid.
        nic: name of the interface inside the pod.
        node: where the pod runs.
        cid: first 12 hex digits of the sandbox's container id. A claim with another cid than the record's is one of a
            newer sandbox and takes the record over.
        fixed: the address belongs to the name: what an earlier pod of that name left is taken over, once no link
            carries it any more.
        begun: when the sandbox's ADD began, unix milliseconds by its node's clock; 0 where that is not known.
        disputed: a claim of an earlier sandbox may still be under way: `begun` is noted, and that one comes too late.
        confirm: nothing is granted or taken over: is what this very sandbox has still its own?
        moving: a live migration runs, so two pods of that name carry the address for a while: it is taken over though
            the other one has it still.
        address: canonical text without prefix length: this one and no other. Empty: whichever is free.
        parent_mac: a network provider will be asked for the address: MAC address of the node's NIC below the pod's.
        by: until when that may be under way, unix milliseconds.

    None of the first five may be empty, such a record could not be released by its holder: the ledger refuses the
    claim, alone, rather than raising, since the rest of the batch is other pods'.
    """

    pod: str
    uid: str
    nic: str
    node: str
    cid: str
    fixed: bool = False
    moving: bool = False
    begun: int = 0
    disputed: bool = False
    confirm: bool = False
    address: str = ""
    parent_mac: str = ""
    by: int = 0


class Heir(Struct, frozen=True):
    """Another pod of the name whose fixed addresses are given up: the source of a live migration that has failed, say.

    Attributes:
        uid: the pod's uid.
        node: where it runs. Its container is not known to whoever passes something on to it.
    """

    uid: str
    node: str


class Surrender(Struct, frozen=True, tag="surrender", kw_only=True):
    """A NIC of a sandbox is gone: its address is free.

    Releases only what matches: the uid, the NIC and the cid. A pod has several sandboxes in its life and the deletion
    of an old one is repeated at any time, so a record that a newer sandbox took over stays.

    Attributes:
        uid: the pod's uid; an empty one matches nothing.
        nic: name of the interface inside the pod.
        cid: as in `Claim`; empty means any sandbox.
        node: the node that asks. A record that says another one is refused, not released; empty means any node.
        keep: None releases that NIC only. Otherwise these are all the NICs that the sandbox has left, and what it holds
            for any other goes; `nic` then only decides about records that name none.
        retain: what matches is not freed but kept for the next pod of the same name.
        kept_only: only what is kept is freed: what a link may still carry stays.
        heir: another pod that may carry the addresses still: what matches becomes its, and nothing is freed.
        successor: the cid of the pod's living sandbox on that node, where there is one. What matches is not freed but
            becomes its: a claim of the old sandbox that came late, after the new one's, had taken it over.
    """

    uid: str
    nic: str
    cid: str = ""
    node: str = ""
    keep: tuple[str, ...] | None = None
    retain: bool = False
    kept_only: bool = False
    successor: str = ""
    heir: Heir | None = None


class Disown(Struct, frozen=True, tag="disown", kw_only=True):
    """Somebody else on the network has these addresses: nobody gets them for a while.

    Matches as a `Surrender` does, and of that only the records of `addresses`.

    Attributes:
        uid: the pod's uid.
        nic: name of the interface inside the pod.
        cid: as in `Surrender`.
        node: as in `Surrender`.
        addresses: canonical texts without prefix length.
        seen: what was met, for the reason that is noted: a hardware address, say.
        seconds: how long.
    """

    uid: str
    nic: str
    cid: str
    node: str
    addresses: tuple[str, ...]
    seen: str
    seconds: float


class Reclaim(Struct, frozen=True, tag="reclaim", kw_only=True):
    """A record is not needed any more, whoever wrote it: it goes if it is still exactly that one.

    Attributes:
        address: as it stands in the pool.
        record: as it was judged; keys that we do not know are not compared.
        retain: as in `Surrender`.
    """

    address: str
    record: AllocationRecord
    retain: bool = False


class Chase(Struct, frozen=True, tag="chase", kw_only=True):
    """A network provider is about to be told that an address is released. Matches if it is owed as it was seen.

    Attributes:
        address: canonical text without prefix length.
        by: the debt's, as it was seen.
        until: until when the release may be under way, unix milliseconds; equal to `by` for one that does not count.
    """

    address: str
    by: int
    until: int


class Settle(Struct, frozen=True, tag="settle", kw_only=True):
    """The provider has released an address. Matches if it is owed as the `Chase` before it left it.

    Attributes:
        address: canonical text without prefix length.
        by: the debt's.
    """

    address: str
    by: int


type Operation = Claim | Surrender | Disown | Reclaim | Chase | Settle


class Granted(Struct, frozen=True, tag="granted", kw_only=True):
    """A claim's address.

    Attributes:
        ip: as a number; up to 128 bits, so not for msgpack.
        prefix: length of the pool's subnet.
        address: `10.0.0.5/16`.
        fresh: it was free before; False when the holder, or its name, had it already.
        dropped: addresses (no prefix) that the holder had and lost because the pool's ranges no longer hold them.
    """

    ip: int
    prefix: int
    address: str
    fresh: bool
    dropped: tuple[str, ...] = ()


class Surrendered(Struct, frozen=True, tag="surrendered", kw_only=True):
    """What a `Surrender`, a `Disown` or a `Reclaim` did; and whether a `Chase` or a `Settle` matched.

    Attributes:
        ips: canonical addresses without prefix that are free now, or matched; empty when nothing did.
        retained: those that matched and are kept.
    """

    ips: tuple[str, ...] = ()
    retained: tuple[str, ...] = ()


class Refused(Struct, frozen=True, tag="refused", kw_only=True):
    """A claim that this pool cannot serve, or a release by a node that does not hold it. What there was stays.

    Attributes:
        reason: its predicate is one of `disable`, `terminating`, `max-records`, `object-size`, `full`, `overlap`,
            `held` for an address that may still be in use, `provider` for one that is owed, `superseded` for a claim
            that a newer sandbox has overtaken, and `claim` for one that lacks something; of an address that was asked
            for `ips`, `taken`, `quarantine` or `overlap`; for a release it is `node`.
        retry: whether the same may succeed later without anybody changing anything.
    """

    reason: Reason
    retry: bool = False


type Answer = Granted | Surrendered | Refused


class Held(Struct, frozen=True, kw_only=True):
    """One address and who holds it.

    Attributes:
        ip: as a number.
        address: `10.0.0.5/16`.
        record: as stored.
    """

    ip: int
    address: str
    record: AllocationRecord


class Outcome(Struct, frozen=True, eq=False, kw_only=True):
    """What one `Ledger.apply` did.

    Attributes:
        answers: one per operation, in the order of the operations.
        changed: the contents differ from before, so `status()` has to be written before anybody is told.
        changes: who holds something otherwise than before, in the order in which it happened.
        undo: what `Ledger.revert` puts back, oldest first.
    """

    answers: tuple[Answer, ...]
    changed: bool
    changes: tuple[Change, ...]
    undo: tuple[Before, ...]
