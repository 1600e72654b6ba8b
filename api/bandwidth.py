"""How fast a pod may send and receive, by the annotations that kubelets and container runtimes know.

The values are Kubernetes quantities, in bits a second; the bounds are those of kubelet and containerd.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from math import ceil
from typing import Final

from api.annotations import AnnotationMeaningError, AnnotationSyntaxError
from api.networks import Bandwidth

INGRESS_BANDWIDTH: Final = "kubernetes.io/ingress-bandwidth"
"""Of what comes to the pod, as ``100M``."""
EGRESS_BANDWIDTH: Final = "kubernetes.io/egress-bandwidth"
"""Of what the pod sends."""
LEAST_RATE: Final = 10**3
"""Bits a second."""
MOST_RATE: Final = 10**15

_QUANTITY: Final = re.compile(
    r"([+-]?)([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:([KMGTPE]i)|([numkMGTPE]?)|[eE]([+-]?[0-9]{1,2}))", re.ASCII
)
"""Longer ones are far beyond any rate, and would cost whoever computes them."""
_BINARY: Final = {unit: 1 << 10 * power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_DECIMAL: Final = {unit: 3 * power for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)}


def pod_bandwidth(annotations: Mapping[str, str]) -> Bandwidth | None:
    """Parse both annotations; None where the pod has neither.

    Raises `AnnotationError`: one is no quantity, or not between 1 kbit/s and 1 Pbit/s.
    """
    ingress, egress = (_rate(annotations, key) for key in (INGRESS_BANDWIDTH, EGRESS_BANDWIDTH))
    return Bandwidth(ingress_rate=ingress, egress_rate=egress) if ingress or egress else None


def _rate(annotations: Mapping[str, str], key: str) -> int:
    """Bits a second; 0 where there is no such annotation."""
    value = annotations.get(key)
    if value is None:
        return 0
    found = _QUANTITY.fullmatch(value)
    if found is None:
        raise AnnotationSyntaxError(key, value, 'not a quantity; want bits a second, such as "100M" or "1.5Gi"')
    sign, digits, binary, decimal, exponent = found.groups()
    scale = Fraction(_BINARY[binary]) if binary else Fraction(10) ** (int(exponent) if exponent else _DECIMAL[decimal])
    rate = ceil(Fraction(f"{sign}{digits}") * scale)
    if not LEAST_RATE <= rate <= MOST_RATE:
        bound = "below 1k" if rate < LEAST_RATE else "above 1P"
        raise AnnotationMeaningError(key, value, f"{bound} bits a second; want 1k to 1P")
    return rate
