"""Makes what a replica needs for the network provider that its settings name."""

import ssl
from collections.abc import Callable

from actors.pools.peers import Peers, pool_key
from actors.provider.following import Following
from actors.provider.provider import Provider
from actors.provider.releases import ReleasesActor
from api.configfile import IaasNetworkProvider
from api.ippool import SpiderIPPool
from api.settings import SettingsError
from runtime.clock import Clock
from runtime.store.snapshot import Snapshot
from runtime.supervision import Supervisor
from runtime.web import AiohttpWeb, Web


def web_of(config: IaasNetworkProvider) -> AiohttpWeb | None:
    """How the provider is asked; None where there is none. Raises `SettingsError`."""
    if not config.server_url:
        return None
    try:
        context = ssl.create_default_context(cadata=config.ca_bundle or None)
    except ssl.SSLError as error:
        raise SettingsError(f"iaasNetworkProvider.caBundle: expected certificates in PEM: {error}") from None
    if config.insecure_skip_verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return AiohttpWeb(context)


def assemble(
    config: IaasNetworkProvider,
    web: Web | None,
    *,
    clock: Clock,
    supervisor: Supervisor,
    pools: Snapshot[SpiderIPPool],
    peers: Peers,
    say: Callable[[str, str], None],
) -> Provider | None:
    """The provider, and below `supervisor` whoever tells it of releases; None where there is none.

    Args:
        config: names it.
        web: how it is asked; None: this program does not.
        clock: the program's.
        supervisor: of the replica.
        pools: as they are seen.
        peers: the owners of pools.
        say: is told of a pool whose address is not released, and why.
    """
    if web is None or not config.server_url:
        return None
    provider = Provider(web, url=config.server_url, timeout=config.timeout, clock=clock)
    following = Following(pools, mine=lambda name: peers.mine(pool_key(name)))
    ref = supervisor.add_actor(
        "provider",
        lambda: ReleasesActor(provider, pools=peers, say=say, begin=following.begin),
        capacity=ReleasesActor.capacity,
    )
    supervisor.add_service("debts", lambda: following.run(ref))
    return provider
