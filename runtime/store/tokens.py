"""Tokens of service accounts: have the API server look at one (TokenReview).

Not part of the store port: it reads and writes no object, and only the API server can do it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from runtime.store.apiserver import ApiServer, Call
from runtime.store.observe import observed

_PATH = "/apis/authentication.k8s.io/v1/tokenreviews"


class TokenReview(Struct, frozen=True):
    """What the API server says of a token."""

    authenticated: bool
    """Valid now, and for an audience that was asked for."""
    username: str = ""
    """``system:serviceaccount:namespace:name`` for a service account."""
    extra: Mapping[str, Sequence[str]] = {}
    """Claims such as ``authentication.kubernetes.io/pod-name``, each with its values."""
    error: str = ""
    """Why not, in the API server's words."""


class _User(Struct, frozen=True):
    username: str = ""
    extra: dict[str, list[str]] | None = None


class _Status(Struct, frozen=True):
    authenticated: bool = False
    user: _User = _User()
    audiences: list[str] = []
    error: str = ""


class _Answer(Struct, frozen=True):
    status: _Status = _Status()


_requests: Counter[tuple[str, str, str]] = Counter()


async def review_token(server: ApiServer, token: str, *, audiences: Sequence[str]) -> TokenReview:
    """Ask whose token it is. Raises the `StoreError` tree when there is no answer."""
    body = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": list(audiences)},
    }
    call = Call(method="POST", path=_PATH, what="review a token", body=msgspec.json.encode(body))
    with observed("create", "tokenreviews", requests=_requests, attributes={}) as outcome:
        status = msgspec.json.decode(await server.request(call, outcome), type=_Answer).status
    # An API server that does not know audiences confirms none: that is no confirmation of ours.
    confirmed = status.authenticated and bool(set(audiences) & set(status.audiences))
    return TokenReview(
        authenticated=confirmed,
        username=status.user.username,
        extra=status.user.extra or {},
        error=status.error or ("" if confirmed else f"not valid for {', '.join(audiences)}"),
    )
