"""One piece of work at a time: an actor that begins something and takes no other message until it has ended."""

from typing import Any

from runtime.actor import Actor
from runtime.envelope import Envelope


class Turn:
    """Who is being served. The actor keeps one, begins it with the work and ends it with the work's own message."""

    def __init__(self, actor: Actor[Any]) -> None:
        """Nobody yet."""
        self._actor = actor
        self._asker: Envelope | None = None

    def __repr__(self) -> str:
        return f"<Turn{' busy' if self._asker else ''}>"

    def __bool__(self) -> bool:
        """Whether somebody is."""
        return self._asker is not None

    def begin(self, envelope: Envelope) -> None:
        """Hold all messages but those of the work."""
        self._asker = envelope
        self._actor.hold()

    def end(self, answer: object, error: Exception | None) -> Envelope | None:
        """Answer who asked, and go on with the next message; returns what the one that has ended was asked by."""
        asker, self._asker = self._asker, None
        self._actor.release()
        if asker is not None and asker.reply is not None:
            if error is None:
                asker.reply.resolve(answer)
            else:
                asker.reply.fail(error)
        return asker
