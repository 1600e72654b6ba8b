"""What a pool of a subnet has to have besides its addresses: owner, labels, finalizer, and what it inherits.

Admission gives it to a pool that is written, and the subnet's owner to one that was there before.
"""

from msgspec import structs

from api.annotations import OWNER_SUBNET, POOL_CIDR, cidr_label
from api.ippool import SpiderIPPool
from api.meta import API_VERSION, FINALIZER, OwnerReference
from api.subnet import SpiderSubnet


def owner(subnet: SpiderSubnet) -> OwnerReference:
    """How its pools name it."""
    return OwnerReference(
        api_version=API_VERSION,
        kind=subnet.kind,
        name=subnet.metadata.name,
        uid=subnet.metadata.uid,
        controller=True,
        block_owner_deletion=True,
    )


def owners(found: list[OwnerReference], subnet: SpiderSubnet) -> list[OwnerReference]:
    """The owners of a pool, the subnet among them. What another subnet left goes; who controls it, does so still."""
    ours = owner(subnet)
    others = [one for one in found if (one.api_version, one.kind) != (ours.api_version, ours.kind)]
    if any(one.controller for one in others):
        ours = structs.replace(ours, controller=None)
    return [*others, ours]


def labels(subnet: SpiderSubnet) -> dict[str, str]:
    """Of every pool of the subnet."""
    return {OWNER_SUBNET: subnet.metadata.name, POOL_CIDR: cidr_label(subnet.spec.subnet)}


def adopted(pool: SpiderIPPool, subnet: SpiderSubnet) -> SpiderIPPool:
    """The pool as one of the subnet.

    Gateway and routes are inherited once, by a pool that had another owner or none: what somebody takes out of a pool
    later stays out.
    """
    meta, spec = pool.metadata, pool.spec
    if all(one.uid != subnet.metadata.uid for one in meta.owner_references):
        meta = structs.replace(meta, owner_references=owners(meta.owner_references, subnet))
        if spec.gateway is None:
            spec = structs.replace(spec, gateway=subnet.spec.gateway)
        if spec.routes is None and subnet.spec.routes:
            spec = structs.replace(spec, routes=subnet.spec.routes)
    if FINALIZER not in meta.finalizers:
        meta = structs.replace(meta, finalizers=[*meta.finalizers, FINALIZER])
    if any(meta.labels.get(key) != value for key, value in labels(subnet).items()):
        meta = structs.replace(meta, labels={**meta.labels, **labels(subnet)})
    return structs.replace(pool, metadata=meta, spec=spec)
