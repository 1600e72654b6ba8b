"""`spiderpoolctl demo`: two pods get addresses on a LAN, talk, and go; what is printed is what happened.

Everything is real but the wire: the programs, the shim, the store, the kernel's links. The exit code is 0 only when
every packet was answered and nothing was left behind.
"""

import argparse
import asyncio
import os
import platform
import secrets
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from actors.manifest import apply, read
from cni.errors import CniError
from cni.netlink.socket import Refusal
from ctl.demo import relay
from ctl.demo.echo import ping
from ctl.demo.isolation import Isolation, enter
from ctl.demo.node import NAME, Call, Node, Pod
from ctl.demo.relay import Relay
from ctl.demo.remains import Remains, look
from ctl.demo.report import Report
from ctl.demo.segment import GATEWAYS, NODES, Segment
from ctl.errors import Failure, Misuse
from runtime.store.sqlite import FILE_NAME, SQLiteStore
from telemetry import attributes, waterfall
from telemetry.recorder import FinishedSpan

PODS = ("pod-a", "pod-b")
_POOLS = Path(__file__).with_name("pools.yaml")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_GONE_SECONDS = 5.0
_BAR_WIDTH = 32


def run(argv: Sequence[str]) -> int:
    """The verb. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl demo",
        description="Two pods get addresses on a LAN of network namespaces, talk to each other, and go again.",
        epilog="Works as any user and touches nothing outside of its own namespaces. Where "
        "OTEL_EXPORTER_OTLP_ENDPOINT is set, the traces go there too.",
    )
    parser.add_argument("--shim", metavar="FILE", default="", help="the CNI executable (default: build/cni/<arch>)")
    shim = _shim(parser.parse_args(argv).shim)
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, _terminated)
    isolation = enter()
    report = Report()
    report.line(f"Spiderpool on {os.uname().release}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")
    try:
        with _folder() as folder:
            _demonstrate(report, folder, shim, isolation)
    except CniError as error:
        msg = f"{error} {getattr(error, 'details', '')}"
        raise Failure(msg) from error
    except (Refusal, OSError) as error:
        raise Failure(str(error)) from error
    report.line()
    if report.failures:
        raise Failure(f"{len(report.failures)} of what should hold did not: {'; '.join(report.failures)}")
    report.line(f"done in {time.monotonic() - begun:.1f} s")
    return 0


def _demonstrate(report: Report, folder: Path, shim: Path, isolation: Isolation) -> None:
    with ExitStack() as stack:
        (folder / "netns").mkdir()
        segment = stack.enter_context(Segment(folder / "netns", pods=PODS))
        report.heading("LAN")
        report.line(f"  switch ── router  {'  '.join(GATEWAYS.values())}")
        report.line(f"     └───── {NAME}  {'  '.join(NODES.values())}  eth0, the parent of the pods' macvlan links")
        report.line(f"  network namespaces of our own{', in a user namespace' if isolation.is_user else ''}")

        environ = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
        collector = relay.endpoint(environ)
        if collector is not None:
            name, url = collector
            environ |= stack.enter_context(Relay(segment.namespaces["node"], url, outside=isolation.outside)).settings(
                name
            )
        node = Node(segment.namespaces["node"], folder, shim=shim, environ=environ)
        asyncio.run(_seed(report, node.state))
        begun = time.monotonic()
        with node:
            report.heading("Node")
            report.line(f"  spiderpool-standalone, process {node.pid}, serves after {time.monotonic() - begun:.2f} s")
            if collector is not None:
                report.line(f"  traces go to {collector[1]} too")
            try:
                _live(report, segment, node)
            except Failure:
                sys.stderr.write(f"{node.log_tail()}\n")
                raise
            code = node.stop()
        report.verdict(f"spiderpool-standalone ended with code {code}", good=code == 0)


async def _seed(report: Report, state: Path) -> None:
    report.heading(f"Pools  ({_POOLS.name})")
    store = SQLiteStore(state / FILE_NAME)
    try:
        for manifest in read(_POOLS.read_text(encoding="utf-8"), source=_POOLS.name):
            done = await apply(store, manifest)
            report.line(f"  {manifest.metadata.name:<11} {', '.join(manifest.item.spec.ips)}  {done}")
    finally:
        await store.aclose()


def _live(report: Report, segment: Segment, node: Node) -> None:
    pods = [
        Pod(name=name, netns=segment.path(name), container_id=secrets.token_hex(32), uid=str(uuid.uuid4()))
        for name in PODS
    ]
    before = {name: segment.links(name) for name in ("node", *PODS)}
    addresses: dict[str, list[str]] = {}
    for pod in pods:
        added = node.call("ADD", pod)
        addresses[pod.name] = [ip["address"].partition("/")[0] for ip in added.result.get("ips", ())]
        _describe(report, pod, added, node.trace(added.trace_id))

    report.heading("Packets")
    for source, target in ((PODS[0], PODS[1]), (PODS[1], PODS[0])):
        for address in addresses[target]:
            _ping(report, segment, source, f"{target} {address}", address)
    for source in PODS:
        for gateway in GATEWAYS.values():
            address = gateway.partition("/")[0]
            _ping(report, segment, source, f"the gateway {address}", address)

    # A macvlan link cannot talk to its parent: this goes over the pair beside it.
    for source in PODS:
        for own in NODES.values():
            address = own.partition("/")[0]
            _ping(report, segment, source, f"its own node {address}", address)
        for address in addresses[source]:
            _ping(report, segment, "node", f"{source} {address}", address)

    report.heading("DEL")
    held = asyncio.run(look(segment, node.state, before))
    for pod in pods:
        report.line(f"  {pod} {node.call('DEL', pod).milliseconds:.1f} ms")
    report.line(f"  before: {held}")
    left = _settled(segment, node, before)
    report.verdict(f"{'left' if left else 'nothing is left'}: {left}", good=not left)
    if not held:
        report.verdict("before DEL there was nothing to be seen of the pods", good=False)


def _describe(report: Report, pod: Pod, added: Call, spans: Sequence[FinishedSpan]) -> None:
    report.heading(f"ADD {pod}  {added.milliseconds:.1f} ms")
    for ip in added.result.get("ips", ()):
        report.line(f"  address  {ip['address']} via {ip.get('gateway', '-')}")
    if len(added.result.get("ips", ())) != len(GATEWAYS):
        report.verdict(f"{pod} has not got an address of each family", good=False)
    said = {key: value for span in spans for key, value in span.attributes.items()}
    report.line(f"  pools    from {said.get(attributes.SELECTION_SOURCE, '?')}")
    for line in str(said.get(attributes.EXPLANATION, "?")).splitlines():
        report.line(f"           {line}")
    if not spans:
        report.verdict(f"the trace of {pod} is missing", good=False)
    report.line()
    report.block(waterfall.draw(spans, width=_BAR_WIDTH))


def _ping(report: Report, segment: Segment, source: str, name: str, address: str) -> None:
    took = ping(segment.namespaces[source], address)
    answer = "no answer" if took is None else f"{took:.2f} ms"
    report.verdict(f"{source} -> {name}  {answer}", good=took is not None)


def _settled(segment: Segment, node: Node, before: dict[str, set[str]]) -> Remains:
    """What is left when the node has had the time to give everything back."""
    until = time.monotonic() + _GONE_SECONDS
    while (left := asyncio.run(look(segment, node.state, before))) and time.monotonic() < until:
        time.sleep(0.02)
    return left


def _shim(given: str) -> Path:
    architecture = _MACHINES.get(platform.machine(), platform.machine())
    path = Path(given) if given else Path(__file__).parents[2] / "build" / "cni" / architecture / "spiderpool"
    if not path.is_file() or not os.access(path, os.X_OK):
        flag = "--shim: " if given else ""
        msg = f"{flag}{path}: no such executable{'' if given else ', make it with: make shim'}"
        raise Misuse(msg)
    return path.resolve()


@contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder. Its name is short: a socket's path has at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="spiderpool-demo-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)
