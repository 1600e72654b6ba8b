"""What pools and subnets have in common: a network that never changes, and the addresses of it that they have."""

from collections.abc import Collection

from msgspec import structs

from admission.errors import FieldError, invalid
from admission.network import Network, canonical, network, network_errors
from api.annotations import cidr_label
from api.ippool import IPPoolSpec
from api.meta import FINALIZER, ObjectMeta
from api.subnet import SubnetSpec


def completed[S: (IPPoolSpec, SubnetSpec)](
    meta: ObjectMeta, spec: S, *, label: str, finalizer: bool
) -> tuple[ObjectMeta, S]:
    """With the family, the label that names the network, the finalizer, and lists of addresses in their one form."""
    found = network(spec.subnet)
    version = spec.ip_version or (found.version if found is not None else None)
    if finalizer and FINALIZER not in meta.finalizers:
        meta = structs.replace(meta, finalizers=[*meta.finalizers, FINALIZER])
    if not network_errors("", spec.subnet):
        meta = structs.replace(meta, labels={**meta.labels, label: cidr_label(spec.subnet)})
    spec = structs.replace(
        spec, ip_version=version, ips=canonical(spec.ips, version), exclude_ips=canonical(spec.exclude_ips, version)
    )
    return meta, spec


def family_errors(
    spec: IPPoolSpec | SubnetSpec, within: Network | None, *, families: Collection[int], created: bool
) -> list[FieldError]:
    """The family is the network's, and new objects have one that is switched on."""
    version = spec.ip_version or (within.version if within is not None else None)
    if within is not None and version != within.version:
        return [invalid("spec.ipVersion", version, f"spec.subnet {spec.subnet} is IPv{within.version}")]
    if created and version is not None and version not in families:
        return [invalid("spec.ipVersion", version, f"IPv{version} is switched off: enableIPv{version} in conf.yml")]
    return []


def fixed_errors(old: IPPoolSpec | SubnetSpec, new: IPPoolSpec | SubnetSpec) -> list[FieldError]:
    """Network and family stay."""
    before = network(old.subnet)
    if before is None or before != network(new.subnet):
        changed = new.subnet != old.subnet
        return [invalid("spec.subnet", new.subnet, f"it is {old.subnet} and never changes")] if changed else []
    if old.ip_version is not None and new.ip_version not in {old.ip_version, None}:
        return [invalid("spec.ipVersion", new.ip_version, f"it is {old.ip_version} and never changes")]
    return []
