"""Certificates of our own: when they are made anew, that every step is trusted, and what a crash leaves."""

import base64
import logging
import ssl
import time
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.webhooks import issuing, keeping
from actors.webhooks.bundle import trusting
from actors.webhooks.keeping import Certificates, CertificatesActor, Files
from actors.webhooks.rotation import BACKDATE_SECONDS, Authority, Kept, Leaf, Step, Terms, due, pending, plan
from api.core import ObjectReference, Secret
from api.extensions import MutatingWebhookConfiguration, ValidatingWebhookConfiguration
from api.kinds import MUTATINGWEBHOOK, SECRET, VALIDATINGWEBHOOK
from api.meta import ObjectMeta
from runtime.actor import System
from runtime.store.memory import MemoryStore
from runtime.supervision import Supervisor
from telemetry.health import HealthTree, State
from tests.rules.test_webhooks import configured
from tests.servers.certificates import CertificateAuthority

NAME, HOST = "spiderpool-controller", "spiderpool-controller.kube-system.svc"
DAY = 86400.0
TERMS = Terms(hosts=frozenset({HOST}), authority=3650 * DAY, leaf=365 * DAY, renew=0.66, overlap=3600.0, settle=5.0)


def applied(kept: Kept, step: Step, terms: Terms, *, now: float, made: str) -> Kept:
    """What the Secret says after a step: the model of `issuing.change`."""
    left = [one for one in kept.authorities if one.id not in step.drop]
    left = [Authority(a.id, a.begins, a.ends, a.signs and a.id not in step.forget) for a in left]
    if step.new_authority:
        left.insert(0, Authority(made, now, now + terms.authority, signs=True))
    signer, leaf = (made if step.sign_by_new else step.sign), kept.leaf
    if signer:
        (by,) = (one for one in left if one.id == signer)
        assert by.signs, "nobody has its key"
        leaf = Leaf(signer, now, min(now + terms.leaf, by.ends), terms.hosts)
    return Kept(tuple(left), leaf)


# -- the plan


def test_from_nothing_to_the_first_certificate_and_then_rest() -> None:
    step = plan(Kept(), TERMS, now=1e9, trusted={})
    assert (step.new_authority, step.sign_by_new) == (True, True)
    kept = applied(Kept(), step, TERMS, now=1e9, made="a")
    step = plan(kept, TERMS, now=1e9 + 1, trusted={})
    assert (step.reason, step.until) == ("", 1e9 + 0.66 * 365 * DAY)
    assert not pending(kept)


def test_a_certificate_of_somebody_else_is_taken_over_without_a_gap() -> None:
    """An upgrade from Helm's, whose authority has no key: 200 years, or made a moment ago."""
    for begins in (1e9 - DAY, 1e9 + BACKDATE_SECONDS):
        helms = Kept((Authority("h", begins, 1e10),), Leaf("h", begins, 1e10, TERMS.hosts))
        step = plan(helms, TERMS, now=1e9, trusted={})
        assert (step.new_authority, step.sign_by_new, step.sign, step.drop) == (True, False, "", frozenset())
        both = applied(helms, step, TERMS, now=1e9, made="a")
        assert pending(both)
        assert not plan(both, TERMS, now=1e9 + 3601, trusted={}).reason, "not before it is trusted"
        assert not plan(both, TERMS, now=1e9 + 1800, trusted={"a": 1e9}).reason, "nor before nodes can have heard"
        assert not plan(both, TERMS, now=1e9 + 3601, trusted={"a": 1e9 + 3600}).reason, "nor every API server"
        assert plan(both, TERMS, now=1e9 + 3605, trusted={"a": 1e9 + 3600}).sign == "a"


def test_a_name_that_changes_is_in_the_next_certificate_at_once() -> None:
    kept = Kept((Authority("a", 1e9, 2e9, signs=True),), Leaf("a", 1e9, 1.1e9, frozenset({"other"})))
    assert plan(kept, TERMS, now=1e9 + 1, trusted={}).sign == "a"


def test_what_is_of_no_use_is_replaced_at_once_and_by_who_is_trusted() -> None:
    old, new = Authority("a", 1e9, 2e9, signs=True), Authority("b", 1.05e9, 2e9, signs=True)
    for leaf in None, Leaf("a", 1e9, 1.06e9, TERMS.hosts), Leaf("", 1e9, 2e9, TERMS.hosts):
        step = plan(Kept((new, old), leaf), TERMS, now=1.07e9, trusted={"a": 1.07e9})
        assert step.sign == "a", "the API server trusts that one"
        assert plan(Kept((new, old), leaf), TERMS, now=1.07e9, trusted={}).sign == "b"


def test_who_is_no_longer_seen_to_be_trusted_is_not_left_for_an_older_one() -> None:
    """Somebody has applied the configurations without a bundle: it comes back in a moment."""
    old, new = Authority("a", 1e9, 2e9, signs=True), Authority("b", 1.05e9, 2e9, signs=True)
    kept = Kept((new, old), Leaf("b", 1.05e9, 1.05e9 + TERMS.leaf, TERMS.hosts))
    assert not plan(kept, TERMS, now=1.06e9, trusted={"a": 1e9}).reason


class World:
    """A Secret, replicas that read it late, API servers and nodes that hear of authorities late."""

    def __init__(self, terms: Terms, random: Random) -> None:
        self.terms, self.random, self.now, self.made = terms, random, 1e9, 0
        self.states: list[tuple[float, Kept]] = [(self.now, Kept())]
        self.bundle: frozenset[str] = frozenset()
        self.bundles: list[tuple[float, frozenset[str]]] = [(self.now, self.bundle)]
        self.seen: dict[str, float] = {}
        self.careful = True

    @property
    def kept(self) -> Kept:
        return self.states[-1][1]

    def look(self, *, writes: bool = True) -> float:
        """One look of the owner; where it `writes` not, it crashes before that. Returns when to look again."""
        ids = frozenset(one.id for one in self.kept.authorities)
        if pending(self.kept):
            self.seen = {one: self.seen.get(one, self.now) for one in self.bundle}
        trusted = self.seen if self.careful else dict.fromkeys(ids, 0.0)
        step = plan(self.kept, self.terms, now=self.now, trusted=trusted)
        if step.reason and writes:
            self.made += 1
            self.states.append((self.now, applied(self.kept, step, self.terms, now=self.now, made=f"ca{self.made}")))
        if not writes:
            self.seen = {}
        return self.now + 0.2 if step.reason else step.until

    def publish(self) -> None:
        """The bundle's actor writes the configurations."""
        self.bundle = frozenset(one.id for one in self.kept.authorities)
        self.bundles.append((self.now, self.bundle))

    def check(self, *, lag: float, node_lag: float) -> None:
        """Whatever a replica may serve now is valid, and trusted by whatever an API server and a node may know now."""
        leaves = [kept.leaf for kept in known([(at, kept) for at, kept in self.states], self.now, lag) if kept.leaf]
        for leaf in leaves:
            assert self.now < leaf.ends, "expired"
            for bundle in known(self.bundles, self.now, self.terms.settle):
                assert leaf.authority in bundle, "an API server refuses it"
            for kept in known(self.states, self.now, node_lag):
                assert leaf.authority in {one.id for one in kept.authorities}, "a node refuses it"


def known[T](states: list[tuple[float, T]], now: float, lag: float) -> list[T]:
    """What somebody may have who hears of changes up to `lag` seconds late."""
    return [
        state
        for number, (_, state) in enumerate(states)
        if number == len(states) - 1 or states[number + 1][0] >= now - lag
    ]


TERMS_ST = st.builds(
    lambda leaf, factor, renew, part: Terms(
        hosts=TERMS.hosts,
        leaf=leaf,
        authority=factor * leaf / (1 - renew),
        renew=renew,
        overlap=part * leaf * (1 - renew) / 2,
        settle=min(5.0, part * leaf * (1 - renew) / 2),
    ),
    leaf=st.floats(1e3, 1e8),
    factor=st.floats(1.0, 20.0),
    renew=st.floats(0.3, 0.9),
    part=st.floats(0.1, 1.0),
)


def lived(terms: Terms, seed: int, *, careful: bool = True, crashes: float = 0.2) -> World:
    """Some generations of authorities, with crashes, late readers and a bundle that is written late."""
    random = Random(seed)
    world = World(terms, random)
    world.careful = careful
    longest = (1 - terms.renew) * terms.leaf / 10
    world.look()
    world.publish()
    # Behind the first moments, in which no replica is ready.
    world.now += terms.overlap + 1
    world.states, world.bundles = world.states[-1:], world.bundles[-1:]
    for _ in range(300):
        again = world.look(writes=random.random() > crashes)
        world.now = min(max(again, world.now + 0.2), world.now + longest * random.uniform(0.5, 1.0))
        if random.random() < 0.7:
            world.publish()
        world.check(lag=min(terms.settle, longest), node_lag=terms.overlap * 0.99)
    return world


@settings(max_examples=60)
@given(terms=TERMS_ST, seed=st.integers(0, 1 << 32))
def test_no_replica_ever_serves_what_somebody_does_not_trust(terms: Terms, seed: int) -> None:
    world = lived(terms, seed)
    assert len(world.kept.authorities) <= 2 + 1 / terms.renew
    assert sum(one.signs for one in world.kept.authorities) <= 2


def test_it_would_show_if_trust_were_not_waited_for() -> None:
    """The control: the same worlds with a plan that believes in everybody's trust."""
    terms = Terms(hosts=TERMS.hosts, authority=9e3, leaf=3e3, renew=0.5, overlap=1.0, settle=1.0)
    lived(terms, 1)
    with pytest.raises(AssertionError, match="refuses it"):
        lived(terms, 1, careful=False)


@given(terms=TERMS_ST, begins=st.floats(0, 1e9), life=st.floats(1, 1e9))
def test_what_is_due_is_due_before_it_expires(terms: Terms, begins: float, life: float) -> None:
    assert begins <= due(begins, begins + life, terms) < begins + life


# -- certificates as bytes


def data_of(step: Step, data: dict[str, bytes], *, now: float = 1.75e9, terms: Terms = TERMS) -> dict[str, bytes]:
    return issuing.change(data, step, terms, now=now, name=NAME)


def test_what_is_made_is_read_back_as_it_was_meant() -> None:
    terms = Terms(
        hosts=frozenset({HOST, "10.6.0.1", "fd00::1"}), authority=9e6, leaf=3e6, renew=0.5, overlap=9.0, settle=1.0
    )
    first = data_of(Step(new_authority=True, sign_by_new=True), {}, terms=terms)
    kept = issuing.read(first)
    (one,) = kept.authorities
    assert (one.begins, one.ends, one.signs) == (1.75e9, 1.75e9 + 9e6, True)
    assert kept.leaf == Leaf(one.id, 1.75e9, 1.75e9 + 3e6, terms.hosts)
    second = data_of(Step(new_authority=True), first, now=1.751e9, terms=terms)
    both = issuing.read(second)
    assert [a.signs for a in both.authorities] == [True, True]
    assert both.leaf == kept.leaf
    new = both.authorities[0].id
    third = issuing.read(data_of(Step(sign=new, forget=frozenset({one.id})), second, now=1.752e9, terms=terms))
    assert third.leaf is not None
    assert (third.leaf.authority, [a.signs for a in third.authorities]) == (new, [True, False])
    last = issuing.read(data_of(Step(drop=frozenset({one.id})), second, terms=terms))
    assert [a.id for a in last.authorities] == [new]
    assert issuing.bundled(base64.b64encode(second["ca.crt"]).decode()) == {new, one.id}


@given(st.dictionaries(st.sampled_from(["tls.crt", "tls.key", "ca.crt", "ca.key"]), st.binary(max_size=200)))
def test_whatever_a_secret_holds_is_read(data: dict[str, bytes]) -> None:
    assert issuing.read(data) == Kept()


def test_halves_of_a_secret_are_no_certificate() -> None:
    whole, other = (data_of(Step(new_authority=True, sign_by_new=True), {}) for _ in range(2))
    assert issuing.read(whole).leaf is not None
    assert issuing.read({**whole, "tls.key": other["tls.key"]}).leaf is None
    cut = {**whole, "tls.crt": whole["tls.crt"][:200]}
    assert issuing.read(cut).leaf is None
    foreign = issuing.read({**whole, "ca.crt": other["ca.crt"]})
    assert foreign.leaf is not None
    assert (foreign.leaf.authority, foreign.authorities[0].signs) == ("", False)
    torn = issuing.read({**whole, "ca.crt": b"-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n" * 2})
    assert torn.authorities == ()
    for bundle in "", "%%%", "QQ==":
        assert issuing.bundled(bundle) == frozenset()


# -- the actor


class Clock:
    """The loop's, and a wall clock that a test may turn."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return anyio.current_time()

    def wall(self) -> float:
        return 1.75e9 + self.now() + self.ahead


class Rig:
    """A Secret, the configurations, and replicas."""

    terms = Terms(hosts=TERMS.hosts, authority=9e6, leaf=3e6, renew=0.5, overlap=3600.0, settle=0.0)

    def __init__(self, folder: Path, store: MemoryStore) -> None:
        self.folder, self.store, self.clock = folder, store, Clock()
        self.said: list[str] = []
        self.health = HealthTree("x")

    async def install(self, data: dict[str, bytes] | None = None) -> None:
        meta = ObjectMeta(name=NAME)
        await self.store.create(MUTATINGWEBHOOK, MutatingWebhookConfiguration(metadata=meta, webhooks=configured()))
        await self.store.create(VALIDATINGWEBHOOK, ValidatingWebhookConfiguration(metadata=meta, webhooks=configured()))
        await self.store.create(
            SECRET, Secret(metadata=ObjectMeta(name="certs", namespace="kube-system"), data=data or {})
        )

    def say(self, about: ObjectReference, text: str) -> None:
        self.said.append(f"{about.kind} {about.name}: {text}")

    def replica(self, name: str, *, store: MemoryStore | None = None) -> tuple[Supervisor, Certificates, Files]:
        where = store or self.store
        certificates = Certificates(where, namespace="kube-system", secret="certs")
        files = Files(served=self.folder / name / "server.pem", trusted=self.folder / name / "ca.crt")
        system = System(clock=self.clock, random=Random(1), health=self.health)
        supervisor = Supervisor(name, system)
        supervisor.add_actor(
            "certificates",
            lambda: CertificatesActor(
                where, certificates, terms=self.terms, files=files, name=NAME, mine=lambda: True, say=self.say
            ),
        )
        return supervisor, certificates, files

    async def kept(self) -> Kept:
        found = await self.store.get(SECRET, "certs", namespace="kube-system")
        return issuing.read(found.data)

    async def publish(self) -> None:
        found = await self.store.get(SECRET, "certs", namespace="kube-system")
        bundle = base64.b64encode(found.data["ca.crt"]).decode()
        for kind in keeping._CONFIGURATIONS:
            one = await self.store.get(kind, NAME)
            if (after := trusting(one.webhooks, bundle)) is not None:
                await self.store.patch(kind, NAME, {"webhooks": after})


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_SECONDS", "_SHORTEST_SECONDS"):
        monkeypatch.setattr(keeping, name, 0.005)


async def until(what: Any) -> None:
    """Until the coroutine function says so."""
    with anyio.fail_after(20):
        while not await what():  # noqa: ASYNC110 - what is under test
            await anyio.sleep(0.005)


async def test_an_empty_secret_is_filled_and_replicas_agree(tmp_path: Path) -> None:
    rig = Rig(tmp_path, MemoryStore())
    await rig.install()
    replicas = [rig.replica(name) for name in "abc"]
    async with anyio.create_task_group() as group:
        for supervisor, _, _ in replicas:
            group.start_soon(supervisor.run)
        for _, certificates, _ in replicas:
            await certificates.there.wait()
        assert len((await rig.kept()).authorities) == 1, "one of three has made it, whoever it was"
        stored = await rig.store.get(SECRET, "certs", namespace="kube-system")
        assert await replicas[0][1].authority() == stored.data["ca.crt"]

        async def agreed() -> bool:
            served = {await anyio.Path(files.served).read_bytes() for _, _, files in replicas}
            return served == {stored.data["tls.crt"] + b"\n" + stored.data["tls.key"]}

        await until(agreed)
        for supervisor, _, _ in replicas:
            await supervisor.stop()
    assert replicas[0][2].served.stat().st_mode & 0o077 == 0, "nobody else reads the key"
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(replicas[0][2].served, replicas[0][2].served)
    assert not rig.said


async def test_years_pass(tmp_path: Path) -> None:
    rig = Rig(tmp_path, MemoryStore())
    await rig.install()
    supervisor, certificates, _ = rig.replica("a")
    served = []
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await certificates.there.wait()
        for _ in range(40):  # two and a half lives of an authority
            await rig.publish()
            rig.clock.ahead += 0.19 * rig.terms.leaf

            async def at_rest() -> bool:
                kept, now = await rig.kept(), rig.clock.wall()
                trusted = dict.fromkeys((one.id for one in kept.authorities), now - 1)
                step = plan(kept, rig.terms, now=now, trusted=trusted)
                assert kept.leaf is not None
                return not step.reason and now < kept.leaf.ends

            await rig.publish()
            await until(at_rest)
            kept = await rig.kept()
            assert kept.leaf is not None
            served.append(kept.leaf)
            assert len(kept.authorities) <= 3
        await supervisor.stop()
    assert len({leaf.begins for leaf in served}) > 8
    assert len({leaf.authority for leaf in served}) > 3
    assert not rig.said


class Dying(MemoryStore):
    """Breaks off at the n-th request: before it has an effect, or behind."""

    def __init__(self, inner: MemoryStore, at: int, *, behind: bool, die: Any) -> None:
        super().__init__()
        self.inner, self.left, self.behind, self.die = inner, at, behind, die

    async def _pass(self, work: Any) -> Any:
        self.left -= 1
        if self.left == 0 and not self.behind:
            work.close()
            self.die()
            await anyio.sleep_forever()
        done = await work
        if self.left == 0:
            self.die()
            await anyio.sleep_forever()
        return done

    async def get(self, *given: Any, **named: Any) -> Any:
        return await self._pass(self.inner.get(*given, **named))

    async def patch(self, *given: Any, **named: Any) -> Any:
        return await self._pass(self.inner.patch(*given, **named))


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("at", range(1, 9))
async def test_a_crash_at_any_request_converges(tmp_path: Path, at: int, behind: bool) -> None:
    """From an empty Secret, and while the authority is changed."""
    for begun in False, True:
        rig = Rig(tmp_path / f"{begun}", MemoryStore())
        old = data_of(Step(new_authority=True, sign_by_new=True), {}, now=1.75e9 - 5e6, terms=rig.terms)
        old = data_of(Step(sign=issuing.read(old).authorities[0].id), old, now=1.75e9 - 1e5, terms=rig.terms)
        await rig.install(old if begun else {})
        ended = anyio.Event()
        dying, _, _ = rig.replica("a", store=Dying(rig.store, at, behind=behind, die=ended.set))
        async with anyio.create_task_group() as group:
            group.start_soon(dying.run)
            await ended.wait()
            group.cancel_scope.cancel()
        await _converges(rig)


async def _converges(rig: Rig) -> None:
    supervisor, certificates, files = rig.replica("a")
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await certificates.there.wait()
        before = (await rig.kept()).authorities
        await rig.publish()
        rig.clock.ahead += rig.terms.overlap + 1

        async def newest_is_served() -> bool:
            stored = await rig.store.get(SECRET, "certs", namespace="kube-system")
            kept = issuing.read(stored.data)
            copied = (await anyio.Path(files.served).read_bytes()).startswith(stored.data["tls.crt"])
            return copied and kept.leaf is not None and kept.leaf.authority == kept.authorities[0].id

        await until(newest_is_served)
        assert (await rig.kept()).authorities[0].id == before[0].id, "nothing was made twice"
        await supervisor.stop()


async def test_what_is_wrong_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(tmp_path, MemoryStore())
    supervisor, certificates, _ = rig.replica("a")
    with caplog.at_level(logging.WARNING):
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)

            async def said() -> bool:
                return bool(rig.said)

            await until(said)
            assert rig.said[0] == "Secret certs: there is none: `helm upgrade` brings it back"
            assert rig.health.status() is State.BLOCKED, "nothing is served"
            with pytest.raises(FileNotFoundError, match="there is none"):
                await certificates.authority()
            ca = CertificateAuthority(tmp_path / "pki")
            pair = ca.issue(NAME, hosts=[HOST])
            theirs = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": ca.ca_file}
            rig.clock.ahead = time.time() - 1.75e9  # theirs has begun
            rig.said.clear()
            await rig.install({name: path.read_bytes() for name, path in theirs.items()})
            rig.clock.ahead += 2 * rig.terms.overlap

            async def trust_said() -> bool:
                rig.clock.ahead += 100
                return any("not in the webhook configurations" in line for line in rig.said)

            await certificates.there.wait()
            await until(trust_said)
            assert rig.health.status() is State.DEGRADED, "it is served all the same"
            await supervisor.stop()
    assert len([record for record in caplog.records if "not in the webhook" in record.message]) == 1


def test_the_longest_name_of_a_wild_host_is_taken() -> None:
    terms = Terms(hosts=frozenset({"*.example", HOST}), authority=9e6, leaf=3e6, renew=0.5, overlap=9.0, settle=1.0)
    made = issuing.read(data_of(Step(new_authority=True, sign_by_new=True), {}, terms=terms))
    assert made.leaf is not None
    assert made.leaf.hosts == terms.hosts
