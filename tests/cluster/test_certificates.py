"""The controller's own certificate on real kubelets: replaced while pools are written, and controllers rolled out."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography import x509

from tests.cluster.lab import Cluster
from tests.cluster.lab.cluster import PRODUCT_NAMESPACE
from tests.cluster.product import AGENT, CONTROLLER, Product
from tests.servers import CommandFailed

pytestmark = pytest.mark.timeout(900)

SHORT = {
    "tls": {
        # 15 minutes and 5, each replaced after a fifth. Kubelet may take two minutes to bring an authority to a node;
        # twenty seconds are enough all the same: agents that are up keep their connections, others mount it anew.
        "controller": {
            "caValidityDuration": 900 / 86400,
            "certValidityDuration": 300 / 86400,
            "renewAfterPercent": 20,
            "overlapSeconds": 20,
        }
    }
}


def _data(cluster: Cluster) -> dict[str, bytes]:
    secret = cluster.kubectl_json("get", "secret/spiderpool-controller-server-certs", f"-n={PRODUCT_NAMESPACE}")
    return {name: base64.b64decode(value) for name, value in secret.get("data", {}).items()}


def _signer(cluster: Cluster) -> x509.Name:
    return x509.load_pem_x509_certificate(_data(cluster)["tls.crt"]).issuer


class Pools:
    """Made and deleted by kubectl, one after the other, without a second try."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.done = 0
        self.refusals: list[str] = []

    @contextmanager
    def running(self) -> Iterator[Pools]:
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop,))
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(60)

    def _run(self, stop: threading.Event) -> None:
        while not stop.wait(0.2):
            name = f"written-{self.done}"
            pool: dict[str, Any] = {
                "apiVersion": "spiderpool.spidernet.io/v2beta1",
                "kind": "SpiderIPPool",
                "metadata": {"name": name},
                "spec": {"subnet": f"172.{16 + self.done // 250 % 15}.{self.done % 250}.0/24"},
            }
            try:
                self._cluster.apply(pool)
                self._cluster.kubectl("delete", "spiderippool", name, "--wait=false")
            except CommandFailed as error:
                self.refusals.append(str(error))
            self.done += 1


def _until(what: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"still not after {seconds:g} s"
        time.sleep(2)


def test_authority_and_controllers_are_replaced_while_pools_are_written(
    product: Product, terminal: Callable[[str], None]
) -> None:
    cluster = product.cluster
    assert set(_data(cluster)) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    assert "tls.key" not in cluster.helm("get", "manifest", "spiderpool", f"--namespace={PRODUCT_NAMESPACE}")
    first = _signer(cluster)
    try:
        with Pools(cluster).running() as pools:
            # A roll-out of its own; the authority of ten years is no reason for anything yet.
            product.upgrade(values={CONTROLLER_VALUES: SHORT})
            product.rolled_out(timeout=180)
            assert _signer(cluster) == first
            # As on the day on which it is due: its key is lost.
            cluster.kubectl(
                *("patch", "secret", "spiderpool-controller-server-certs", f"-n={PRODUCT_NAMESPACE}"),
                *("--type=merge", '--patch={"data":{"ca.key":""}}'),
            )
            _until(lambda: _signer(cluster) != first, seconds=300)
            for what in f"daemonset/{AGENT}", f"deployment/{CONTROLLER}":
                cluster.kubectl("rollout", "restart", what, f"--namespace={PRODUCT_NAMESPACE}")
            product.rolled_out(timeout=240)
    finally:
        product.upgrade()
        product.rolled_out(timeout=180)
    terminal(f"{pools.done} pools written while the authority and every controller were replaced")
    assert pools.done > 50
    assert not pools.refusals


CONTROLLER_VALUES = "spiderpoolController"
