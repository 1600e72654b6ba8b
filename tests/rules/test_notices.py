"""What a controller says about pods and pools: the words, whom they are about, and that nobody is held up."""

from random import Random

from actors.events.notices import Notices
from actors.events.recorder import Message, Say
from api.core import ObjectReference, Pod
from api.ippool import IPPoolSpec, SpiderIPPool
from api.meta import ObjectMeta
from api.multusconfig import SpiderMultusConfig
from api.reasons import Reason
from api.wire import Disown, PodRef, Rejected
from ipam.overlap import Overlap
from ipam.ranges import parse_ranges
from runtime.actor import Ref, System
from runtime.mailbox import Mailbox
from runtime.testing import VirtualClock, run
from telemetry import metrics

POD = Pod(metadata=ObjectMeta(name="web-1", namespace="default", uid="u-1"))
OF_POD = ObjectReference(api_version="v1", kind="Pod", namespace="default", name="web-1", uid="u-1")


def of_pool(name: str, uid: str) -> ObjectReference:
    return ObjectReference(api_version="spiderpool.spidernet.io/v2beta1", kind="SpiderIPPool", name=name, uid=uid)


def pool(name: str) -> SpiderIPPool | None:
    if name == "gone":
        return None
    return SpiderIPPool(
        metadata=ObjectMeta(name=name, uid=f"uid-{name}"), spec=IPPoolSpec(ip_version=4, subnet="10.6.0.0/16")
    )


def said(*, capacity: int = 10) -> tuple[Notices, Mailbox]:
    system = System(clock=VirtualClock(), random=Random(1))
    mailbox = Mailbox("events", capacity=capacity, clock=system.clock)
    ref: Ref[Message] = Ref("events", mailbox, system)
    return Notices(ref, pool=pool), mailbox


def taken(mailbox: Mailbox) -> list[Say]:
    return [envelope.message for envelope in mailbox.take_nowait(100) if isinstance(envelope.message, Say)]


def test_each_notice_says_what_and_about_whom() -> None:
    async def main() -> None:
        notices, mailbox = said()
        notices.failed(POD, Rejected(message="pod default/web-1: no IPv4 address: v4: rejected by full"))
        ref = PodRef(namespace="default", name="web-1", uid="u-1")
        notices.conflict(
            POD,
            Disown(
                pod=ref, nic="eth0", container_id="c", addresses=("10.6.0.9",), pools=("v4",), seen="02:00:00:00:00:01"
            ),
        )
        notices.exhausted("v4", Reason("full", "v4", "a free address", "all 5 taken, 0 more reserved"))
        notices.exhausted("gone", Reason("full", "gone", "a free address", "all 5 taken, 0 more reserved"))
        notices.overlapping("a", Overlap((("b", parse_ranges(["10.6.0.1-10.6.0.5"], 4)),)))
        failed, conflict, exhausted, gone, one, other = taken(mailbox)
        assert (failed.reason, failed.about, failed.message) == (
            "FailedAllocate",
            OF_POD,
            "pod default/web-1: no IPv4 address: v4: rejected by full",
        )
        assert (conflict.reason, conflict.about) == ("IPConflict", OF_POD)
        assert conflict.message == "eth0: 10.6.0.9 is used by somebody else on the network: 02:00:00:00:00:01"
        assert (exhausted.reason, exhausted.about) == ("PoolExhausted", of_pool("v4", "uid-v4"))
        assert exhausted.message == "full: wanted a free address, found all 5 taken, 0 more reserved"
        assert gone.about == of_pool("gone", "")
        assert [(say.reason, say.about, say.key) for say in (one, other)] == [
            ("PoolOverlap", of_pool("a", "uid-a"), "b"),
            ("PoolOverlap", of_pool("b", "uid-b"), "a"),
        ]
        assert one.message.endswith("10.6.0.1-10.6.0.5 with b")
        assert other.message.endswith("10.6.0.1-10.6.0.5 with a")

    run(main, seed=1)


def test_a_notice_of_a_network() -> None:
    async def main() -> None:
        notices, mailbox = said()
        config = SpiderMultusConfig(metadata=ObjectMeta(name="lan", namespace="default", uid="u-2"))
        notices.network(config, "NetworkTaken", "it is Operator op's")
        notices.network(config, "NetworkTaken", "it is Operator other's")
        one, other = taken(mailbox)
        assert (one.reason, one.message, one.warning) == ("NetworkTaken", "it is Operator op's", True)
        assert one.about == ObjectReference(
            api_version="spiderpool.spidernet.io/v2beta1",
            kind="SpiderMultusConfig",
            namespace="default",
            name="lan",
            uid="u-2",
        )
        assert (one.about, one.key) == (other.about, other.key), "one event, with the latest words"

    run(main, seed=1)


def test_numbers_that_change_make_no_new_event() -> None:
    async def main() -> None:
        notices, mailbox = said()
        for taken_now in (4, 5):
            notices.failed(POD, Rejected(message=f"all {taken_now} taken"))
            notices.exhausted("v4", Reason("full", "v4", "a free address", f"all {taken_now} taken"))
        keys = [(say.about, say.reason, say.key) for say in taken(mailbox)]
        assert keys[:2] == keys[2:]

    run(main, seed=1)


def test_a_full_mailbox_is_counted_and_nothing_is_said_where_nobody_listens() -> None:
    def lost() -> float:
        return metrics.REGISTRY.get_sample_value("spiderpool_events_dropped_total", {"why": "overload"}) or 0.0

    async def main() -> None:
        notices, mailbox = said(capacity=3)
        before = lost()
        for _ in range(10):
            notices.failed(POD, Rejected(message="no"))
        assert (len(taken(mailbox)), lost() - before) == (3, 7)
        mailbox.close()
        notices.failed(POD, Rejected(message="no"))
        assert lost() - before == 8
        Notices(None, pool=pool).failed(POD, Rejected(message="no"))
        assert lost() - before == 8

    run(main, seed=1)
