"""Timers are messages: an actor asks to be sent one later, and deals with it in its turn."""

import asyncio
from collections.abc import Callable


class Timers:
    """The timers of one life of one actor, by key. They end with it."""

    def __init__(self, fire: Callable[[object], None]) -> None:
        """`fire` puts a message on the actor's internal lane."""
        self._fire = fire
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def __repr__(self) -> str:
        return f"<Timers {sorted(self._handles)}>"

    def start(self, key: str, delay: float, message: object) -> None:
        """Send `message` after `delay` seconds. A running timer of the same key is replaced."""
        self.cancel(key)
        self._handles[key] = asyncio.get_running_loop().call_later(delay, self._expired, key, message)

    def cancel(self, key: str) -> None:
        """Forget a timer; unknown keys are ignored. A message that has already been sent still comes."""
        handle = self._handles.pop(key, None)
        if handle is not None:
            handle.cancel()

    def running(self, key: str) -> bool:
        """Whether a timer of that key is still to fire."""
        return key in self._handles

    def cancel_all(self) -> None:
        """Forget every timer."""
        for key in list(self._handles):
            self.cancel(key)

    def _expired(self, key: str, message: object) -> None:
        self._handles.pop(key, None)
        self._fire(message)
