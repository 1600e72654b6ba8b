"""What may be written of a SpiderReservedIP. It counts from then on: whoever has such an address keeps it."""

from collections.abc import Collection

from msgspec import structs

from admission.errors import FieldError, forbidden, invalid, required
from admission.network import canonical, ranges, version_of
from admission.review import Judgement, Review
from api.reservedip import ReservedIPSpec, SpiderReservedIP


class ReservedIPRules:
    """`admission.review.Rules` of reserved addresses."""

    def __init__(self, *, families: Collection[int] = (4, 6)) -> None:
        """`families`: IP versions that new objects may have."""
        self._families = families

    def complete(self, review: Review[SpiderReservedIP]) -> SpiderReservedIP:
        """Family, and the addresses in their one form."""
        item = review.new
        if review.operation == "DELETE" or item.metadata.deletion_timestamp is not None:
            return item
        version = _family(item.spec)
        spec = structs.replace(item.spec, ip_version=version, ips=canonical(item.spec.ips, version))
        return structs.replace(item, spec=spec)

    def judge(self, review: Review[SpiderReservedIP]) -> Judgement:
        """Whether it may be written."""
        new, old = review.new.spec, review.old.spec if review.old is not None else None
        if review.operation == "DELETE" or new == old:
            return Judgement()
        if review.old is not None and review.old.metadata.deletion_timestamp is not None:
            return Judgement((forbidden("spec", "the object is being deleted"),))
        version = _family(new)
        errors: list[FieldError] = []
        before = old.ip_version if old is not None else None
        if version is None and not new.ips:
            errors.append(required("spec.ipVersion", "4 or 6, where spec.ips is empty"))
        if before is not None and new.ip_version not in {before, None}:
            errors.append(invalid("spec.ipVersion", new.ip_version, f"it is {before} and never changes"))
        if before is None and version is not None and version not in self._families:
            text = f"IPv{version} is switched off: enableIPv{version} in conf.yml"
            errors.append(invalid("spec.ipVersion", version, text))
        errors += ranges("spec.ips", new.ips, version)[1]
        return Judgement(tuple(errors))


def _family(spec: ReservedIPSpec) -> int | None:
    """As it says, else that of the first address that can be read."""
    return spec.ip_version or next((found for entry in spec.ips if (found := version_of(entry))), None)
