"""What happened in a deterministic run, as one hash: two runs of one seed must agree."""

import asyncio
import hashlib

import msgspec


class EventRecord:
    """An `Observer` that folds every delivery (virtual time, actor, message) into a SHA-256."""

    def __init__(self, *, keep: int = 0) -> None:
        """The last `keep` deliveries are kept as text lines, for the report of a failing seed."""
        self._hash = hashlib.sha256()
        self._keep = keep
        self.lines: list[str] = []
        self.count = 0

    def delivered(self, actor: str, message: object) -> None:
        """See `runtime.actor.Observer`."""
        self.event(actor, message)

    def event(self, source: str, what: object) -> None:
        """Fold in something that is not a delivery, for example a fault that was injected."""
        try:
            text = msgspec.json.encode(what).decode()
        except TypeError:
            text = repr(what)
        line = f"{asyncio.get_running_loop().time():.6f} {source} {type(what).__name__} {text}"
        self._hash.update(line.encode())
        self.count += 1
        if self._keep:
            self.lines.append(line)
            del self.lines[: -self._keep]

    def digest(self) -> str:
        """Hex digest of everything so far."""
        return self._hash.hexdigest()
