"""What objects are completed and judged by, a line a kind; the chart has the same kinds (templates/webhooks.yaml)."""

from actors.allocation.networks import Isolation
from actors.pools.ippools import IPPools
from actors.replica.cluster import Cluster
from actors.webhooks.pods import PodWebhook
from admission import injection
from admission.coordinator import CoordinatorRules
from admission.ippool import IPPoolRules
from admission.multusconfig import MultusConfigRules, Others
from admission.reservedip import ReservedIPRules
from admission.rulebook import Rulebook
from admission.subnet import PoolInSubnetRules, SubnetRules
from api.kinds import COORDINATOR, IPPOOL, MULTUSCONFIG, RESERVEDIP, SUBNET
from api.settings import ControllerSettings
from runtime.store.port import Store


def rules(cluster: Cluster, pools: IPPools, settings: ControllerSettings) -> Rulebook:
    """By what a replica sees of the cluster."""
    config = settings.config
    families = [version for version, on in ((4, config.enable_ipv4), (6, config.enable_ipv6)) if on]
    guard = config.enable_validating_resources_deleted_webhook
    book = Rulebook()
    book.add(IPPOOL, IPPoolRules(pools.atlas, families=families, guard_deletion=guard))
    book.add(RESERVEDIP, ReservedIPRules(families=families))
    subnets, owned = cluster.subnets.snapshot.values, config.enable_spider_subnet
    seen = cluster.pools.snapshot.values
    book.add(SUBNET, SubnetRules(subnets, seen, families=families, guard_deletion=guard, finalizer=owned))
    if owned:
        book.add(IPPOOL, PoolInSubnetRules(subnets))
    if settings.coordinator_enabled:
        book.add(COORDINATOR, CoordinatorRules())
    if settings.multus_config_enabled:
        configs, attachments = cluster.multusconfigs.snapshot, cluster.attachments.snapshot
        others = Others(
            configs=configs.objects.values,
            attachment=lambda namespace, name: attachments.get(name, namespace=namespace),
        )
        book.add(MULTUSCONFIG, MultusConfigRules(others))
    return book


def pod_webhook(
    cluster: Cluster, store: Store, settings: ControllerSettings, isolation: Isolation
) -> PodWebhook | None:
    """What pods are given, where that is switched on."""
    if not settings.config.pod_resource_inject.enabled:
        return None
    configs, attachments = cluster.multusconfigs.snapshot, cluster.attachments.snapshot
    return PodWebhook(
        store,
        namespace=cluster.namespaces.snapshot.get,
        configs=configs.values,
        attachment=lambda namespace, name: attachments.get(name, namespace=namespace),
        policy=injection.policy(
            settings.config,
            namespace=settings.pod_namespace,
            allows=lambda pod, network: isolation.allows(pod=pod, network=network),
        ),
    )
