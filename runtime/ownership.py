"""Who owns what: a key belongs to the member that scores highest for it (rendezvous hashing).

Everybody who sees the same members agrees, without a word between them and without a lease. When a member goes, only
what it owned moves, and it spreads over all that stay; when it comes back, it gets exactly that back. Ownership is
where work goes, never what makes it safe: two members that see different members for a moment may both believe that
they own a key, and the resourceVersion decides between their writes.
"""

import hashlib
from collections.abc import Iterable


def score(key: str, member: str) -> int:
    """How much a member wants a key. The same in every process and every version: it must not change."""
    digest = hashlib.blake2b(f"{member}\0{key}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def ranking(key: str, members: Iterable[str]) -> tuple[str, ...]:
    """The members in the order in which they own a key: the first does, each next one when all before it are gone."""
    return tuple(sorted(set(members), key=lambda member: (score(key, member), member), reverse=True))


def owner(key: str, members: Iterable[str]) -> str:
    """The owner of a key; empty when there are no members."""
    return max(members, key=lambda member: (score(key, member), member), default="")
