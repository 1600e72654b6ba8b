"""What can go wrong between actors, by cause."""


class ActorError(Exception):
    """Anything the actor kernel itself raises."""


class ActorStopped(ActorError):
    """The actor is stopping or has stopped: the message was not, or not wholly, dealt with."""

    def __init__(self, actor: str) -> None:
        """`actor` is the actor's name."""
        super().__init__(f"actor {actor} has stopped")
        self.actor = actor


class MailboxFull(ActorError):
    """The actor has more queued than it may: try again later. The message was not queued."""

    def __init__(self, actor: str, capacity: int) -> None:
        """`capacity` is the number of messages that the mailbox holds."""
        super().__init__(f"actor {actor} is overloaded: {capacity} messages are queued")
        self.actor = actor
        self.capacity = capacity


class AskTimeout(ActorError):
    """No answer before the deadline. The message may still be dealt with later."""

    def __init__(self, actor: str, seconds: float) -> None:
        """`seconds` is how long the asker waited."""
        super().__init__(f"actor {actor} did not answer within {seconds:.3f} s")
        self.actor = actor


class AskCycle(ActorError):
    """The ask would wait for an actor that is itself waiting for the asker."""

    def __init__(self, chain: tuple[str, ...]) -> None:
        """`chain` is the ask chain, the refused actor last."""
        super().__init__("ask cycle: " + " -> ".join(chain))
        self.chain = chain


class Escalated(ActorError):
    """A child failed more often than its supervisor tolerates; the supervisor gave up."""

    def __init__(self, supervisor: str, child: str, failures: int, seconds: float) -> None:
        """`failures` happened within the last `seconds`."""
        super().__init__(f"supervisor {supervisor} gives up: {child} failed, {failures} failures within {seconds:g} s")
        self.supervisor = supervisor
        self.child = child


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first leaf of an exception group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
