"""Certificates and ends of controllers, as the API server sees them: three replicas behind a Service, under load.

`docs/admission.md` says what is claimed here.
"""

import base64
import datetime
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from msgspec import Struct

from tests.processes.front import Front, Kubelet, Redials, Writes, load_of, remove_load, secret_of
from tests.processes.lab import CERTIFICATES, Lab
from tests.servers import ControlPlane
from tests.servers.certificates import CertificateAuthority, KeyPair

pytestmark = [pytest.mark.blocking, pytest.mark.timeout(300)]

SHORT = {
    "SPIDERPOOL_CERTIFICATE_LIFETIME": "9",
    "SPIDERPOOL_CERTIFICATE_AUTHORITY_LIFETIME": "30",
    "SPIDERPOOL_CERTIFICATE_OVERLAP": "1.5",
}
"""Seconds: a certificate lives for six of them, an authority for twenty."""


@contextmanager
def running(
    control_plane: ControlPlane,
    settings: Mapping[str, str] | None = None,
    *,
    own: bool = True,
    replicas: int = 3,
    look: float = 0.2,
) -> Iterator[tuple[Lab, Front]]:
    """Controllers and one agent, with everything that stands between them and the API server."""
    lab = Lab(
        control_plane,
        environment=settings,
        controllers=replicas,
        nodes=("n1",),
        webhooks=True,
        own_certificates=own,
    )
    with ExitStack() as stack:
        stack.callback(remove_load, control_plane)  # once nobody is asked any more
        if own:
            stack.enter_context(Kubelet(lab))
        stack.enter_context(lab)
        yield lab, stack.enter_context(Front(lab, seconds=look))


def shown(lab: Lab, name: str) -> x509.Certificate:
    """The certificate that a controller serves."""
    pem = ssl.get_server_certificate(("127.0.0.1", lab.webhook_ports[name]))
    return x509.load_pem_x509_certificate(pem.encode())


def authorities(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem)


def test_certificates_are_replaced_under_load_and_no_write_is_refused(control_plane: ControlPlane) -> None:
    with running(control_plane, SHORT) as (lab, _):
        leaves: set[int] = set()
        signers: set[x509.Name] = set()
        with Writes(lab) as writes:

            def another_authority_has_served() -> bool:
                for name in lab.controllers:
                    found = shown(lab, name)
                    leaves.add(found.serial_number)
                    signers.add(found.issuer)
                return len(signers) > 1

            lab.wait_for(another_authority_has_served, seconds=120)
            writes.wait_for(20)
            lab.wait_for(lambda: len(writes.tries) > 100 or writes.error)
        assert not writes.refusals
        assert len(leaves) >= 3
        assert len(authorities(secret_of(lab)["ca.crt"])) <= 3, "what has expired is taken out"
        # An agent that begins now trusts what is served now.
        lab.kill("n1")
        lab.start_agent("n1")
        lab.wait_readiness("n1")
        served = lab.processes["controller"].tail(2000)
        assert "Traceback" not in served


def test_the_owner_dies_while_the_authority_is_changed_and_another_one_goes_on(control_plane: ControlPlane) -> None:
    with running(control_plane, SHORT) as (lab, _):
        first = shown(lab, "controller").issuer
        lab.wait_for(lambda: len(authorities(secret_of(lab)["ca.crt"])) == 2, seconds=60)
        names = "controller-1", "controller-2", "controller"
        owners = [name for name in names if "new authority" in lab.processes[name].tail(2000)]
        assert owners, "one of them has made it"
        lab.kill(owners[-1])
        rest = [name for name in names if name != owners[-1]]
        lab.wait_for(lambda: all(shown(lab, name).issuer != first for name in rest), seconds=60)
        with Writes(lab) as writes:
            writes.wait_for(40)
        assert not writes.refusals


def test_without_the_right_to_write_what_there_is_serves_on_and_that_is_said(control_plane: ControlPlane) -> None:
    """The control is the right itself: given back, the certificate is replaced."""
    settings = {**SHORT, "SPIDERPOOL_CERTIFICATE_LIFETIME": "36", "SPIDERPOOL_CERTIFICATE_AUTHORITY_LIFETIME": "200"}
    with running(control_plane, settings, replicas=1) as (lab, _):
        role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{lab.namespace}/roles/spiderpool-controller"
        rules = control_plane.request("GET", role).body["rules"]
        cut = [{**rule, "verbs": ["get"]} if rule["resources"] == ["secrets"] else rule for rule in rules]
        control_plane.request("PATCH", role, {"rules": cut})
        before = shown(lab, "controller")
        due = before.not_valid_after_utc - datetime.timedelta(seconds=0.34 * 36)

        def said() -> bool:
            events = control_plane.request("GET", f"/api/v1/namespaces/{lab.namespace}/events").body["items"]
            return any(
                event["reason"] == "CertificateNotKept"
                and event["involvedObject"]["name"] == CERTIFICATES
                and "forbidden" in event["message"]
                for event in events
            )

        lab.wait_for(said, seconds=90)
        assert datetime.datetime.now(datetime.UTC) > due, "not before there was something to write"
        with Writes(lab) as writes:
            writes.wait_for(10)
        assert not writes.refusals
        assert shown(lab, "controller") == before
        control_plane.request("PATCH", role, {"rules": rules})
        lab.wait_for(lambda: shown(lab, "controller") != before)


def test_who_overwrites_the_secret_has_writes_refused_until_it_is_trusted(control_plane: ControlPlane) -> None:
    """The control of the replacement under load: another authority at once, and the load sees it."""
    with running(control_plane) as (lab, _):
        other = CertificateAuthority(lab.folder / "other", name="other")
        pair = other.issue("x", hosts=[f"spiderpool-controller.{lab.namespace}.svc"])
        files = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": other.ca_file}
        data = {name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}
        path = f"/api/v1/namespaces/{lab.namespace}/secrets/{CERTIFICATES}"
        with Writes(lab) as writes:
            writes.wait_for(10)
            assert not writes.refusals
            control_plane.request("PATCH", path, {"data": data})
            _break_trust(lab, secret_of(lab)["ca.crt"])
            lab.wait_for(lambda: bool(writes.refusals), seconds=60)
            lab.wait_for(lambda: not any(one.refused for one in writes.tries[-20:]), seconds=60)
        assert all(one.status == 500 and "x509" in one.text for one in writes.refusals)
        assert len(authorities(secret_of(lab)["ca.crt"])) == 2, "it is taken over, and replaced in its time"


def _break_trust(lab: Lab, pem: bytes) -> None:
    """Have a connection of its own for each review, as after the API server's has ended: with another bundle."""
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        path = f"/apis/admissionregistration.k8s.io/v1/{kind}/spiderpool-controller"
        hooks = lab.control_plane.request("GET", path).body["webhooks"]
        stale = CertificateAuthority(lab.folder / f"stale-{kind}", name="stale")
        bundle = base64.b64encode(stale.ca_file.read_bytes()).decode()
        assert stale.ca_file.read_bytes() != pem
        for hook in hooks:
            hook["clientConfig"]["caBundle"] = bundle
        lab.control_plane.request("PATCH", path, {"webhooks": hooks})


def _expired(authority: CertificateAuthority, host: str, folder: Path) -> KeyPair:
    """A pair that was valid until a minute ago."""
    pair = authority.issue("expired", hosts=[host])
    own = x509.load_pem_x509_certificate(pair.certificate.read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(own.issuer)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=2))
        .not_valid_after(now - datetime.timedelta(minutes=1))
    )
    for extension in own.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    file = folder / "expired.crt"
    made = builder.sign(authority.private_key, hashes.SHA256())
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return KeyPair(certificate=file, key=pair.key)


def test_an_expired_certificate_of_somebody_else_is_refused_and_said(control_plane: ControlPlane) -> None:
    """The control is the valid one before, and the new one that is put into its place."""
    with running(control_plane, own=False, replicas=1) as (lab, _):
        with Writes(lab) as writes:
            writes.wait_for(4)
        assert not writes.refusals
        good = lab.certificate.read_bytes(), lab.key.read_bytes()
        bad = _expired(control_plane.authority, f"spiderpool-controller.{lab.namespace}.svc", lab.folder)
        _put(lab, bad.certificate.read_bytes(), bad.key.read_bytes())
        lab.wait_for(lambda: _now() > shown(lab, "controller").not_valid_after_utc, seconds=30)
        lab.kill("controller")  # connections that are up would be kept
        lab.start_controller()
        lab.wait_for(lambda: "expired" in _refusal(lab), seconds=30)
        assert "x509: certificate has expired" in _refusal(lab)
        lab.wait_for(lambda: "a client refuses the certificate" in lab.processes["controller"].tail(200))
        _put(lab, *good)
        lab.wait_for(lambda: not _refusal(lab), seconds=30)


def test_controllers_that_were_away_for_longer_than_a_certificate_lives_make_a_new_one(
    control_plane: ControlPlane,
) -> None:
    with running(control_plane, SHORT, replicas=2) as (lab, _):
        for name in lab.controllers:
            lab.kill(name)
        ends = max(x509.load_pem_x509_certificate(secret_of(lab)["tls.crt"]).not_valid_after_utc, _now())
        lab.wait_for(lambda: _now() > ends, seconds=60)
        assert _refusal(lab), "nobody is there"
        for name in lab.controllers:
            lab.start_controller(name)
        lab.wait_readiness(*lab.controllers)
        lab.wait_for(lambda: not _refusal(lab), seconds=30)
        assert shown(lab, "controller").not_valid_after_utc > ends


def _put(lab: Lab, certificate: bytes, key: bytes) -> None:
    for path, content in ((lab.certificate, certificate), (lab.key, key)):
        new = path.with_suffix(".new")
        new.write_bytes(content)
        new.replace(path)


def _refusal(lab: Lab) -> str:
    """What the API server says of a pool; empty when it takes it."""
    answer = lab.admission._try("192.0.2.0/30")
    return "" if answer.status < 400 else str(answer.body.get("message", answer.body))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


# -- the end of a replica


class End(Struct, frozen=True):
    """Of one replica, monotonic seconds."""

    began: float
    gone: float
    """When its endpoint was taken out of the Service."""


def rolled(lab: Lab, front: Front, end: Callable[[str], None], writes: Writes, *, felt: bool) -> list[End]:
    """End two replicas, one after the other, under load; the first is back before the second one goes.

    Where it is to be `felt` an endpoint stays until the load has met its dead replica.
    """
    found = []
    for name in lab.controllers[1:]:
        writes.wait_for(10)
        known, met = len(front.changes), len(writes.refusals)
        with front.looking if felt else nullcontext():
            began = time.monotonic()
            end(name)
            if felt:
                lab.wait_for(lambda met=met: len(writes.refusals) > met or writes.error, seconds=60)
        lab.wait_for(lambda known=known: len(front.changes) > known, seconds=60)
        at, who, ready = front.changes[known]
        assert (who, ready) == (name, False)
        found.append(End(began, at))
        time.sleep(SEEN_SECONDS)
        writes.wait_for(10)
        lab.start_controller(name)
        lab.wait_for(lambda name=name: front.changes[-1][1:] == (name, True), seconds=60)
    return found


SEEN_SECONDS = 1.0
"""What the API server needs to hear of an endpoint that is gone."""


@pytest.mark.parametrize(("delay", "graceful"), [("5", True), ("0", False)])
def test_a_roll_out_refuses_nothing(control_plane: ControlPlane, delay: str, graceful: bool) -> None:
    """Though each endpoint is there for up to two seconds more: without the delay the same load sees it."""
    with (
        running(control_plane, {"SPIDERPOOL_SHUTDOWN_DELAY": delay}, own=False, look=2.0) as (lab, front),
        Redials(lab),
        Writes(lab) as writes,
    ):
        rolled(lab, front, lambda name: lab.processes[name].stop(), writes, felt=not graceful)
    assert bool(writes.refusals) is not graceful
    assert all("failed calling webhook" in one.text for one in writes.refusals)


def test_a_killed_replica_costs_what_is_sent_to_it_and_nothing_afterwards(control_plane: ControlPlane) -> None:
    with running(control_plane, own=False, look=1.0) as (lab, front), Redials(lab), Writes(lab) as writes:
        ends = rolled(lab, front, lab.kill, writes, felt=True)
        for one in writes.refusals:
            assert one.status == 500
            assert "failed calling webhook" in one.text
            assert any(end.began - 1 < one.began < end.gone + SEEN_SECONDS for end in ends), "not afterwards"
            assert one.ended - one.began < 5.0, "it is said at once, not after a webhook's timeout"
        during = [t for t in writes.tries for end in ends if end.began < t.began < end.gone and not t.refused]
        assert during, "whoever tries again is served by another replica meanwhile"
        deletions = sum(one.verb == "DELETE" for one in writes.refusals)
        lab.wait_for(lambda: len(load_of(control_plane)) <= deletions + 1)  # of a refused creation nothing is there
