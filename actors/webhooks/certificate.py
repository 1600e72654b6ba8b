"""What clients would say of the certificate that is served: found out here before they do.

Nobody looks at a certificate until it has expired, or a Secret has been given whose authority does not fit it. So a
replica connects to itself from time to time, as the API server and agents do, and says in `/healthz` and by a metric
what came of it. It makes no replica unready: another one has the same certificate.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from runtime.actor import System
from runtime.transport.credentials import one_line
from runtime.transport.port import TransportError
from telemetry import metrics
from telemetry.health import HealthTree, State

_log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 60.0
SOON_SECONDS: Final = 14 * 86400.0
"""Before the certificate expires it is said for so long."""
_TREE: Final = "controller/webhooks/certificate"


async def watch(expiry: Callable[[], Awaitable[float]], system: System, *, soon: float = SOON_SECONDS) -> None:
    """Look for ever.

    Args:
        expiry: connects, and returns when the certificate expires (Unix seconds); raises OSError and `TransportError`.
        system: clock and health.
        soon: seconds before the certificate expires from which that is a problem.
    """
    health = system.health or HealthTree("nobody asks")
    said = ""
    while True:
        try:
            until = await expiry()
        except (OSError, TransportError) as error:
            problem = f"a client refuses the certificate that is served: {one_line(error)}"
        else:
            metrics.CERTIFICATE_EXPIRY.set(until)
            left = until - system.clock.wall()
            problem = f"the certificate expires in {left / 86400:.0f} days" if left < soon else ""
        if problem and problem != said:
            _log.warning("%s", problem)
        said = problem
        health.report(_TREE, State.DEGRADED if problem else State.OK, problem)
        await anyio.sleep(LOOK_SECONDS)
