"""ServiceAccount tokens, made and judged by the API server: TokenRequest and TokenReview.

Neither is an object that is stored, so they are no part of the store port.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from api.core import Pod
from runtime.store.apiserver import ApiServer, Call
from runtime.store.observe import observed
from runtime.store.port import Invalid

NODE_NAME = "authentication.kubernetes.io/node-name"
"""In `UserInfo.extra` of a token bound to a pod (API servers from 1.30 on): the node it runs on."""

POD_NAME = "authentication.kubernetes.io/pod-name"
"""In `UserInfo.extra` of a token bound to a pod: its name."""

POD_UID = "authentication.kubernetes.io/pod-uid"
"""In `UserInfo.extra` of a token bound to a pod: its uid."""


class UserInfo(Struct, rename="camel", frozen=True):
    """Whose token it is. A ServiceAccount's username is ``system:serviceaccount:<namespace>:<name>``."""

    username: str = ""
    uid: str = ""
    groups: list[str] = []
    extra: Mapping[str, list[str]] = {}

    def one(self, key: str) -> str:
        """Return the value of `extra` under this key, empty unless there is exactly one."""
        values = self.extra.get(key) or []
        return values[0] if len(values) == 1 else ""


class Review(Struct, rename="camel", frozen=True):
    """What the API server thinks of a token."""

    authenticated: bool = False
    user: UserInfo = msgspec.field(default_factory=UserInfo)
    audiences: list[str] = []
    """Those of the asked ones that the token is for."""
    error: str = ""
    """Why it is not, for the log; never for the one who sent it."""


class _ReviewAnswer(Struct):
    status: Review = msgspec.field(default_factory=Review)


class _TokenStatus(Struct, rename="camel"):
    token: str
    expiration_timestamp: str = ""


class _TokenAnswer(Struct):
    status: _TokenStatus


async def create_token(
    server: ApiServer,
    *,
    service_account: str,
    namespace: str,
    audiences: Sequence[str],
    pod: Pod | None = None,
    seconds: int = 3600,
) -> str:
    """Get a token of a ServiceAccount, as kubelet does for a projected volume.

    Args:
        server: the API server, for example `KubernetesStore.server`.
        service_account: the account's name.
        namespace: the account's, and the pod's.
        audiences: whom the token is for; none means the API server.
        pod: the token ends with it, and carries its name, uid and node. It must run under this account.
        seconds: how long it is valid; the API server refuses less than 600.

    Raises the `StoreError` tree.
    """
    spec: dict[str, object] = {"audiences": list(audiences), "expirationSeconds": seconds}
    if pod is not None:
        reference = {"apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid}
        spec["boundObjectRef"] = reference
    answer = await _post(
        server,
        f"/api/v1/namespaces/{namespace}/serviceaccounts/{service_account}/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
        what="create serviceaccounts/token",
        resource="serviceaccounts/token",
    )
    return _decode(answer, _TokenAnswer).status.token


async def review_token(server: ApiServer, token: str, *, audiences: Sequence[str]) -> Review:
    """Ask the API server whose token this is. A bad token is an answer, not an error.

    `audiences` are those that would do; a token for none of them is not authenticated. Raises the `StoreError` tree.
    """
    answer = await _post(
        server,
        "/apis/authentication.k8s.io/v1/tokenreviews",
        {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": list(audiences)},
        },
        what="create tokenreviews",
        resource="tokenreviews",
    )
    return _decode(answer, _ReviewAnswer).status


async def _post(server: ApiServer, path: str, document: object, *, what: str, resource: str) -> bytes:
    """Send a request that changes nothing that is stored, hence a read that may be repeated."""
    call = Call(method="POST", path=path, body=msgspec.json.encode(document), what=what)
    host, port = server.credentials.address
    attributes: dict[str, str | int] = {"server.address": host, "server.port": port}
    with observed("create", resource, requests=Counter(), attributes=attributes) as outcome:
        return await server.request(call, outcome)


def _decode[T](body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        msg = f"{kind.__name__}: {error}"
        raise Invalid(msg) from error
