"""Whose the certificate is that a replica serves with: somebody else's, in files, or the controller's own."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.lowlevel
from msgspec import Struct

from actors.webhooks.certificate import SOON_SECONDS
from api.core import ObjectReference
from api.settings import ControllerSettings
from runtime.store.port import Store
from runtime.supervision import Supervisor
from runtime.transport.server import ServerTiming


class Certified(Struct, frozen=True, kw_only=True):
    """What whoever serves or trusts has to know."""

    authority: Callable[[], Awaitable[bytes]]
    """Whom the API server is to trust, PEM. Raises OSError and `StoreError`."""
    there: Callable[[], Awaitable[object]]
    """Returns when there are files to serve with."""
    look: float = ServerTiming().certificate
    """Seconds between two looks at them."""
    soon: float = SOON_SECONDS
    """Seconds before the certificate expires from which that is a problem."""


def certify(
    root: Supervisor,
    store: Store,
    settings: ControllerSettings,
    *,
    mine: Callable[[], bool],
    say: Callable[[ObjectReference, str], None],
) -> Certified:
    """Add to `root` what keeps the certificate, where the controller does that itself.

    `mine` says whether this replica writes it, `say` tells people what is wrong about an object.
    """
    if not settings.certificate_secret:
        return Certified(authority=anyio.Path(settings.controller_ca_file).read_bytes, there=anyio.lowlevel.checkpoint)
    # Where the certificate is somebody else's, nothing is made, and the library's 12 MB are not needed.
    from actors.webhooks import keeping  # noqa: PLC0415

    terms = keeping.terms_of(settings)
    kept = keeping.Certificates(store, namespace=settings.pod_namespace, secret=settings.certificate_secret)
    files = keeping.Files(served=Path(settings.tls_server_cert), trusted=Path(settings.controller_ca_file))
    root.add_actor(
        "certificates",
        lambda: keeping.CertificatesActor(
            store, kept, terms=terms, files=files, name=settings.controller_name, mine=mine, say=say
        ),
        capacity=keeping.CertificatesActor.capacity,
    )
    return Certified(
        authority=kept.authority,
        there=kept.there.wait,
        look=min(ServerTiming().certificate, keeping.look_seconds(terms)),
        soon=min(SOON_SECONDS, (1 - terms.renew) * terms.leaf / 2),
    )
