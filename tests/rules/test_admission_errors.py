"""What is wrong with an object is said in the API server's words."""

import pytest

from admission.errors import FieldError, duplicate, forbidden, invalid, required, summary, unsupported
from api.kinds import IPPOOL, POD


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (invalid("spec.ips[0]", "10.6.0.9-10.6.0.1", "it ends before it begins"),
         'spec.ips[0]: Invalid value: "10.6.0.9-10.6.0.1": it ends before it begins'),
        (invalid("spec.vlanID", 4095, "at most 4094"), "spec.vlanID: Invalid value: 4095: at most 4094"),
        (required("spec.macvlan"), "spec.macvlan: Required value"),
        (required("spec.macvlan", "cniType is macvlan"), "spec.macvlan: Required value: cniType is macvlan"),
        (forbidden("spec.subnet", "it never changes"), "spec.subnet: Forbidden: it never changes"),
        (unsupported("spec.mode", "x", ["auto", "underlay"]),
         'spec.mode: Unsupported value: "x": supported values: "auto", "underlay"'),
        (duplicate("spec.routes[1].dst", "10.0.0.0/8"), 'spec.routes[1].dst: Duplicate value: "10.0.0.0/8"'),
    ],
)  # fmt: skip
def test_texts(error: FieldError, text: str) -> None:
    assert str(error) == text


def test_a_long_value_is_cut() -> None:
    assert len(str(invalid("spec.ips", ["10.6.0.1"] * 10_000, "too many"))) < 300


def test_all_that_is_wrong_is_one_sentence() -> None:
    one, two = required("spec.a"), forbidden("spec.b", "no")
    assert (
        summary(IPPOOL.qualified, "p", [one])
        == 'SpiderIPPool.spiderpool.spidernet.io "p" is invalid: spec.a: Required value'
    )
    both = 'SpiderIPPool.spiderpool.spidernet.io "p" is invalid: [spec.a: Required value, spec.b: Forbidden: no]'
    assert summary(IPPOOL.qualified, "p", [one, two]) == both
    assert summary(POD.qualified, "web", [two]) == 'Pod "web" is invalid: spec.b: Forbidden: no'
