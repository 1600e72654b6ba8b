"""What objects are completed and judged by, a line a kind; the chart has the same kinds (templates/webhooks.yaml)."""

from actors.pools.ippools import IPPools
from actors.replica.cluster import Cluster
from admission.coordinator import CoordinatorRules
from admission.ippool import IPPoolRules
from admission.multusconfig import MultusConfigRules, Others
from admission.reservedip import ReservedIPRules
from admission.rulebook import Rulebook
from admission.subnet import PoolInSubnetRules, SubnetRules
from api.kinds import COORDINATOR, IPPOOL, MULTUSCONFIG, RESERVEDIP, SUBNET
from api.settings import ControllerSettings


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
