"""Whether the addresses of a sandbox are still on some link, though its namespace is not where it was.

A namespace outlives its mount as long as a process is in it. Its links then still answer for their addresses, and
nobody can take them away by the path any more.
"""

from actors.node.disk import Journal
from cni.journal import JournalEntry, State
from cni.kernel import Kernel


async def still_carried(entry: JournalEntry, *, kernel: Kernel, journal: Journal) -> frozenset[str]:
    """The addresses of the entry that a link of this node carries, and no other entry of the journal accounts for.

    A pod's newer sandbox has the same addresses as the one before. Raises `CniError`.
    """
    found = await kernel.carried(entry.addresses) if entry.addresses else frozenset()
    if not found:
        return frozenset()
    others = [one for one in await journal.load() if one.key != entry.key and one.state is State.ADDED]
    return found - {address for other in others for address in other.addresses}
