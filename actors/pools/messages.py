"""What the actor of a pool hears besides what it is asked (`actors.pools.claims`): of its replica and its own I/O."""

from msgspec import Struct

from actors.pools.claims import Chase, Claim, Disown, Peek, Reclaim, Settle, Surrender
from api.ippool import SpiderIPPool
from ipam.overlap import Overlap


class Loaded(Struct, frozen=True, tag=True):
    """The object was read."""

    pool: SpiderIPPool


class Written(Struct, frozen=True, tag=True):
    """The write succeeded."""

    pool: SpiderIPPool


class Failed(Struct, frozen=True, tag=True):
    """A read or a write failed."""

    error: Exception
    writing: bool


class Retry(Struct, frozen=True, tag=True):
    """The pause after a failure is over."""


class Surveyed(Struct, frozen=True, tag=True):
    """All pools were read after `generation` of this one was."""

    overlap: Overlap | None
    generation: int


class Paid(Struct, frozen=True, tag=True):
    """The debt to the byte budget is paid off."""


class Due(Struct, frozen=True, tag=True):
    """The patience of a claim that waits is over."""


class Reconsider(Struct, frozen=True, tag=True):
    """Other pools have changed: say what is shared with them now, though nobody asks for anything."""


class Reread(Struct, frozen=True, tag=True):
    """The pool is being deleted, or its status lacks something: read it, though nobody asks for anything."""


class Left(Struct, frozen=True, tag=True):
    """Its finalizer has been taken off."""

    pool: SpiderIPPool


Message = (
    Claim
    | Surrender
    | Disown
    | Reclaim
    | Chase
    | Settle
    | Peek
    | Reconsider
    | Reread
    | Loaded
    | Surveyed
    | Written
    | Left
    | Failed
    | Retry
    | Paid
    | Due
)
