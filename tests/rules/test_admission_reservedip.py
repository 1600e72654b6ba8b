"""What may be written of reserved addresses."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from admission.reservedip import ReservedIPRules
from admission.review import Review
from api.meta import ObjectMeta
from api.reservedip import ReservedIPSpec, SpiderReservedIP
from ipam.ranges import parse_ranges


def reserved(*ips: str, **spec: Any) -> SpiderReservedIP:
    return SpiderReservedIP(spec=msgspec.convert({"ips": list(ips), **spec}, ReservedIPSpec))


def said(new: SpiderReservedIP, old: SpiderReservedIP | None = None, **rules: Any) -> list[str]:
    review = Review("UPDATE" if old else "CREATE", new, old)
    return [str(error) for error in ReservedIPRules(**rules).judge(review).errors]


def test_completed() -> None:
    whole = ReservedIPRules().complete(Review("CREATE", reserved("fd00::9", "FD00::A")))
    assert whole.spec == ReservedIPSpec(ip_version=6, ips=["fd00::9-fd00::a"])


@pytest.mark.parametrize(
    ("item", "errors"),
    [
        (reserved("10.6.0.1", "10.6.0.5-10.6.0.9"), []),
        (reserved(ipVersion=6), []),
        (reserved(), ["spec.ipVersion: Required value: 4 or 6, where spec.ips is empty"]),
        (reserved("fd00::1", ipVersion=4),
         ['spec.ips[0]: Invalid value: "fd00::1": an IPv6 address where IPv4 is expected']),
        (reserved("10.6.0.1", "fd00::1", "x"),
         ['spec.ips[1]: Invalid value: "fd00::1": an IPv6 address where IPv4 is expected',
          "spec.ips[2]: Invalid value: \"x\": 'x' is not an IP address"]),
        (reserved("10.6.0.0/24"),
         ['spec.ips[0]: Invalid value: "10.6.0.0/24": a CIDR is not allowed, write it as first-last']),
    ],
)  # fmt: skip
def test_judged(item: SpiderReservedIP, errors: list[str]) -> None:
    assert said(item) == errors


def test_a_family_that_is_off() -> None:
    assert said(reserved("fd00::1"), families=(4,)) == [
        "spec.ipVersion: Invalid value: 6: IPv6 is switched off: enableIPv6 in conf.yml"
    ]


def test_the_family_never_changes() -> None:
    old = reserved("10.6.0.1", ipVersion=4)
    assert said(reserved("fd00::1", ipVersion=6), old) == [
        "spec.ipVersion: Invalid value: 6: it is 4 and never changes"
    ]
    assert said(reserved("10.6.0.2", ipVersion=4), old) == []


def test_what_is_being_deleted_changes_no_more() -> None:
    going = structs.replace(reserved("10.6.0.1"), metadata=ObjectMeta(deletion_timestamp="x"))
    assert said(structs.replace(going, metadata=ObjectMeta(deletion_timestamp="x", finalizers=["a"])), going) == []
    changed = structs.replace(going, spec=ReservedIPSpec(ips=["10.6.0.2"]))
    assert said(changed, going) == ["spec: Forbidden: the object is being deleted"]


words = st.sampled_from(["", "10.6.0.1", "10.6.0.9-10.6.0.1", "fd00::1", "x-", "::-ffff::"]) | st.text(
    "01f:./-% ", max_size=6
)
items = st.builds(
    SpiderReservedIP,
    spec=st.builds(ReservedIPSpec, ip_version=st.sampled_from([None, 4, 6]), ips=st.lists(words, max_size=4)),
)


@settings(max_examples=200, deadline=None)
@given(items, st.none() | items)
def test_no_object_makes_a_rule_raise(new: SpiderReservedIP, old: SpiderReservedIP | None) -> None:
    rules, operation = ReservedIPRules(), "UPDATE" if old else "CREATE"
    whole = rules.complete(Review(operation, new, old))  # type: ignore[arg-type]
    if not rules.judge(Review(operation, whole, old)).errors and not old:  # type: ignore[arg-type]
        assert whole.spec.ip_version is not None
        parse_ranges(whole.spec.ips, whole.spec.ip_version)
