"""Addresses on which somebody else was found: how an agent gives them up so that nobody gets them for a while."""

from actors.node.controllers import Controllers
from api.wire import Disown, Rejected, Released
from cni.journal import JournalEntry
from runtime.transport.port import TransportError


class KeepsAddresses(Exception):
    """The pod has its addresses whatever is found there: they are fixed, or a setting says that none is given up."""


async def disown(controllers: Controllers, entry: JournalEntry, *, seen: str, deadline: float) -> None:
    """Have the controller quarantine what an entry holds, `seen` being who uses it. Raises as `quarantine` does."""
    addresses = tuple(address.partition("/")[0] for address in entry.addresses)
    question = Disown(
        pod=entry.pod,
        nic=entry.ifname,
        container_id=entry.container_id,
        addresses=addresses,
        pools=entry.pools,
        seen=seen,
    )
    await quarantine(controllers, question, deadline=deadline)


async def quarantine(controllers: Controllers, question: Disown, *, deadline: float) -> None:
    """Have a controller see to it that nobody gets the addresses for a while.

    Raises `KeepsAddresses`, and `TransportError` when it may or may not have been done: it can be asked again.
    """
    answered = await controllers.ask(question, deadline=deadline)
    match answered.response:
        case Released():
            return
        case Rejected(message, cause="stateful" | "forbidden"):
            raise KeepsAddresses(message)
        case Rejected(message):
            raise TransportError(message)
        case other:
            msg = f"a controller answered {type(other).__name__}"
            raise TransportError(msg)
