"""When certificates of our own are made anew, and in which order: pure functions of what there is and of the time.

An authority signs the leaf that is served. Both are replaced long before they expire, and each step is safe to be the
last for a while:

1. a new authority is published: whoever trusts, trusts the old one and the new one;
2. when everybody does (the API server by the webhook configurations, the nodes by the overlap), it signs a new leaf;
3. an authority that has expired is taken out: nothing that it has signed is valid any more.

So between two states that follow each other whoever knows either trusts what is served in both. What has gone wrong all
the way, a leaf that has expired or is nobody's, is replaced at once: nothing could become worse.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from msgspec import Struct

BACKDATE_SECONDS: Final = 300.0
"""A certificate is valid from so long before it is made: clocks differ."""


class Authority(Struct, frozen=True):
    """One that is trusted."""

    id: str
    begins: float
    """When it was made, Unix seconds; all times here are."""
    ends: float
    signs: bool = False
    """Whether its private key is at hand."""


class Leaf(Struct, frozen=True):
    """The certificate that is served, where it belongs to its private key."""

    authority: str
    """Which of the trusted ones has signed it; empty: none has."""
    begins: float
    ends: float
    hosts: frozenset[str]
    """DNS names and addresses."""


class Kept(Struct, frozen=True):
    """What the Secret holds."""

    authorities: tuple[Authority, ...] = ()
    leaf: Leaf | None = None


class Terms(Struct, frozen=True, kw_only=True):
    """How it is to be. Seconds."""

    hosts: frozenset[str]
    authority: float
    """How long an authority is valid."""
    leaf: float
    renew: float
    """Share of its life after which either is replaced, above 0 and below 1."""
    overlap: float
    """How long a new authority is trusted before anything is signed by it: what a node may need to hear of it."""
    settle: float
    """The same from when the webhook configurations are seen to have it: what an API server may need."""


class Step(Struct, frozen=True, kw_only=True):
    """What is to be done now. Nothing, when there is no reason: then look again at `until`."""

    reason: str = ""
    until: float = 0.0
    new_authority: bool = False
    sign: str = ""
    """Make a leaf, signed by this authority."""
    sign_by_new: bool = False
    """Make a leaf, signed by the authority that is made now."""
    drop: frozenset[str] = frozenset()
    """Trust these no longer."""
    forget: frozenset[str] = frozenset()
    """The private keys of these are of no more use."""


def pending(kept: Kept) -> bool:
    """Whether an authority waits for being trusted: only then `plan` asks who trusts it."""
    newest = max(_signing(kept.authorities), key=_begins, default=None)
    return newest is not None and (kept.leaf is None or kept.leaf.authority != newest.id)


def plan(kept: Kept, terms: Terms, *, now: float, trusted: Mapping[str, float]) -> Step:
    """What is to be done. `trusted`: since when each authority is seen to be trusted by the API server."""
    alive = [one for one in kept.authorities if now < one.ends]
    gone = frozenset(one.id for one in kept.authorities) - {one.id for one in alive}
    signers = sorted(_signing(alive), key=_begins)
    newest = signers[-1] if signers else None
    leaf = kept.leaf
    own = next((one for one in alive if leaf is not None and one.id == leaf.authority), None)
    if leaf is not None and (own is None or now >= leaf.ends):
        leaf = None
    if newest is None:
        no_leaf = leaf is None
        return Step(reason="no authority can sign", new_authority=True, sign_by_new=no_leaf, drop=gone, forget=gone)
    if leaf is None or own is None:
        signer = max((one for one in signers if one.id in trusted), key=_begins, default=newest)
        return Step(reason="no certificate is valid", sign=signer.id, drop=gone, forget=gone)
    if now >= due(newest.begins, newest.ends, terms):
        return Step(reason="the authority is to be replaced", new_authority=True, drop=gone, forget=gone)
    settled = max((one for one in signers if now >= _settles(one, terms, trusted)), key=_begins, default=None)
    next_signer, why = _signs_next(leaf, own, settled, terms, now)
    if next_signer is not None:
        useless = frozenset(one.id for one in signers if one.begins < next_signer.begins)
        return Step(reason=why, sign=next_signer.id, drop=gone, forget=gone | useless)
    if gone:
        return Step(reason="an authority has expired", drop=gone, forget=gone)
    times = [due(newest.begins, newest.ends, terms), due(leaf.begins, leaf.ends, terms), *(a.ends for a in alive)]
    if _newer(newest, own):
        times.append(_settles(newest, terms, trusted))
    return Step(until=min((at for at in times if at > now), default=now))


def due(begins: float, ends: float, terms: Terms) -> float:
    """When something with this life is to be replaced."""
    return begins + terms.renew * (ends - begins)


def _signs_next(
    leaf: Leaf, own: Authority, settled: Authority | None, terms: Terms, now: float
) -> tuple[Authority | None, str]:
    """Who is to sign a leaf now though there is one, and why; None while that will do."""
    if settled is not None and _newer(settled, own):
        return settled, "the new authority is trusted"
    # Whoever trusts what is served trusts another one of the same authority.
    signer = own if own.signs else settled
    if leaf.hosts != terms.hosts:
        return signer, "the names have changed"
    return (signer if now >= due(leaf.begins, leaf.ends, terms) else None), "the certificate is to be replaced"


def _settles(one: Authority, terms: Terms, trusted: Mapping[str, float]) -> float:
    """From when it may sign."""
    return max(one.begins + terms.overlap, trusted.get(one.id, math.inf) + terms.settle)


def _newer(one: Authority, own: Authority) -> bool:
    """Whether it takes the place of the one whose leaf is served; one whose key nobody has is the oldest."""
    return one.id != own.id and (not own.signs or one.begins > own.begins)


def _signing(authorities: Iterable[Authority]) -> list[Authority]:
    return [one for one in authorities if one.signs]


def _begins(one: Authority) -> float:
    return one.begins
