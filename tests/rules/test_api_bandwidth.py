"""Bandwidth annotations: Kubernetes quantities within bounds, and what is said of others."""

from decimal import ROUND_CEILING, Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.annotations import AnnotationError, AnnotationMeaningError, AnnotationSyntaxError
from api.bandwidth import EGRESS_BANDWIDTH, INGRESS_BANDWIDTH, pod_bandwidth
from api.networks import Bandwidth

UNITS = {
    **{unit: Decimal(10) ** (3 * power) for power, unit in enumerate(("n", "u", "m", "", "k", "M", "G", "T"), -3)},
    **{unit: Decimal(2) ** (10 * power) for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), 1)},
}


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        ("1k", 1000),
        ("100M", 100_000_000),
        ("1.5Gi", 1_610_612_736),
        ("1P", 10**15),
        ("1e6", 1_000_000),
        ("1E6", 1_000_000),
        ("25e-1", None),
        ("+2M", 2_000_000),
        (".5M", 500_000),
        ("5.M", 5_000_000),
        ("1000000m", 1000),
        ("1000.2", 1001),  # as in Go, up
        ("999", None),
        ("0", None),
        ("-1M", None),
        ("100m", None),
        ("1.1P", None),
        ("1E", None),  # the unit: 10^18
    ],
)
@pytest.mark.parametrize("key", [INGRESS_BANDWIDTH, EGRESS_BANDWIDTH])
def test_rates(key: str, value: str, rate: int | None) -> None:
    if rate is None:
        with pytest.raises(AnnotationMeaningError, match="bits a second; want 1k to 1P") as caught:
            pod_bandwidth({key: value})
        assert (caught.value.key, caught.value.value) == (key, value)
        return
    found = pod_bandwidth({key: value})
    assert found == (Bandwidth(ingress_rate=rate) if key == INGRESS_BANDWIDTH else Bandwidth(egress_rate=rate))


@pytest.mark.parametrize(
    "value",
    ["", " ", "M", "1 M", "1M ", "1Kib", "0x10", "1,5M", "100Mbit", "1K", "1e", "1e1.5", "١٠٠M", "1e999", "9" * 99],
)
def test_what_is_no_quantity_is_refused_by_key_and_value(value: str) -> None:
    with pytest.raises(AnnotationSyntaxError) as caught:
        pod_bandwidth({INGRESS_BANDWIDTH: "1M", EGRESS_BANDWIDTH: value})
    assert EGRESS_BANDWIDTH in str(caught.value)
    assert repr(value) in str(caught.value)


def test_both_and_none() -> None:
    assert pod_bandwidth({"other": "1M"}) is None
    both = pod_bandwidth({INGRESS_BANDWIDTH: "20M", EGRESS_BANDWIDTH: "40M"})
    assert both == Bandwidth(ingress_rate=20_000_000, egress_rate=40_000_000)


@given(number=st.decimals(min_value=0, max_value=10**9, places=3, allow_nan=False), unit=st.sampled_from(sorted(UNITS)))
def test_a_number_and_its_unit(number: Decimal, unit: str) -> None:
    with localcontext(prec=60):
        rate = int((number * UNITS[unit]).to_integral_value(ROUND_CEILING))
    value = f"{number:f}{unit}"
    if 10**3 <= rate <= 10**15:
        assert pod_bandwidth({INGRESS_BANDWIDTH: value}) == Bandwidth(ingress_rate=rate)
    else:
        with pytest.raises(AnnotationMeaningError):
            pod_bandwidth({INGRESS_BANDWIDTH: value})


@given(value=st.text() | st.from_regex(r"[+-]?[0-9.]{0,50}[a-zA-Z]{0,2}[0-9]{0,4}", fullmatch=True))
def test_whatever_is_written_is_read_or_refused(value: str) -> None:
    refused: AnnotationError | None = None
    found: Bandwidth | None = None
    try:
        found = pod_bandwidth({INGRESS_BANDWIDTH: value})
    except AnnotationError as error:
        refused = error
    if refused is not None:
        assert (refused.key, refused.value) == (INGRESS_BANDWIDTH, value)
    else:
        assert found is not None
        assert 10**3 <= found.ingress_rate <= 10**15
