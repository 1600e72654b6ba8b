"""What a controller replica says of itself at `/debug/status` of its health port; `spiderpoolctl status` reads it."""

from msgspec import Struct

SOCKET_NAME = "http.sock"
"""In the state folder of a spiderpool-standalone: the unix socket that answers as its health port does."""


class NodeActivity(Struct, frozen=True):
    """What one node's agent has asked of a replica."""

    node: str
    agent: str = ""
    """The agent's pod, ``namespace/name``."""
    last_add: float = 0.0
    """When the last ADD was granted, Unix seconds; 0 if none was."""
    last_pod: str = ""
    """Whose that was, ``namespace/name``."""
    adds: int = 0
    failures: int = 0
    """ADDs that were granted and that were refused, since the replica started."""


class Problem(Struct, frozen=True):
    """A request that was refused, with its repetitions."""

    at: float
    """When it was refused last, Unix seconds."""
    count: int
    node: str
    pod: str
    """``namespace/name``."""
    cause: str
    """The short word of `api.wire.Rejected.cause`."""
    message: str


class PoolWork(Struct, frozen=True):
    """What one pool's actor has in hand, and what it has done since it began."""

    waiting: int = 0
    """Requests in its mailbox."""
    oldest: float = 0.0
    """For how long the first of them has waited, in seconds."""
    busy: bool = False
    """Whether a batch is being written, or the pool pauses for the byte budget."""
    batches: int = 0
    requests: int = 0
    """In all batches."""
    largest: int = 0
    """Requests in the largest one."""


class Budget(Struct, frozen=True):
    """A replica's share of the bytes that may be written of pools."""

    rate: float = 0.0
    """Bytes a second; 0: there is no limit."""
    balance: float = 0.0
    """What may be written at once; negative while pools pause."""


class ReplicaStatus(Struct, frozen=True):
    """One replica."""

    replica: str
    """Name of its pod."""
    version: str
    started: float
    """Unix seconds."""
    pools: dict[str, str] = {}
    """Every IPPool with the replica that owns it in this replica's eyes."""
    nodes: tuple[NodeActivity, ...] = ()
    problems: tuple[Problem, ...] = ()
    """Those of the last hour, the latest first."""
    work: dict[str, PoolWork] = {}
    """By pool, where this replica has an actor for it."""
    budget: Budget = Budget()
    writes: int = 0
    """Of pools, that changed who has an address, since the replica started."""
    granted: int = 0
    """Addresses that nobody had before, by those writes."""
