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
