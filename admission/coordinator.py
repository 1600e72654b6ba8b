"""SpiderCoordinator: the settings of all pods, and where the cluster's own addresses are read from."""

from msgspec import structs

from admission.coordination import completed, coordination_errors
from admission.errors import required
from admission.review import Judgement, Review
from api.coordinator import CoordinatorSpec, SpiderCoordinator

_VETH_MTU = 1500
"""Bytes; the original's webhook fills in the same."""


class CoordinatorRules:
    """See `admission.review.Rules`. Each object is judged by itself: there may be several, and one counts."""

    def __repr__(self) -> str:
        return "<CoordinatorRules>"

    def complete(self, review: Review[SpiderCoordinator]) -> SpiderCoordinator:
        """See the protocol. It gets no finalizer: nothing has to be given back before it goes."""
        if review.operation == "DELETE":
            return review.new
        return structs.replace(review.new, spec=_completed(review.new.spec))

    def judge(self, review: Review[SpiderCoordinator]) -> Judgement:
        """See the protocol. What an object had before anybody judged it keeps nobody from changing its metadata."""
        spec, old = review.new.spec, review.old
        goes = review.operation == "DELETE" or review.new.metadata.deletion_timestamp is not None
        if goes or (old is not None and _completed(old.spec) == _completed(spec)):
            return Judgement()
        errors = coordination_errors("spec", spec)
        if spec.pod_cidr_type is None:
            text = "where the CIDRs of pods are read from: auto, cluster, calico, cilium or none"
            errors.insert(0, required("spec.podCIDRType", text))
        return Judgement(errors=tuple(errors))


def _completed(spec: CoordinatorSpec) -> CoordinatorSpec:
    spec = completed(spec)
    return spec if spec.veth_mtu is not None else structs.replace(spec, veth_mtu=_VETH_MTU)
