"""`spiderpoolctl explain`: what allocation would decide now, by the same rules, and why. Nothing is changed."""

import argparse
import asyncio
import time
from collections.abc import Sequence

from api.configfile import shown as quoted
from ctl import output, programs, stores
from ctl.errors import Misuse
from ctl.explain import pod, pool, scene
from runtime.store.port import Store

_POD = "pod"
_POOL = "pool"


def run(argv: Sequence[str]) -> int:
    """The verb. Raises `Misuse`, `Failure`."""
    parser = argparse.ArgumentParser(
        prog="spiderpoolctl explain",
        description="Say which pools may serve a pod, in which order and why not the others; or whom a pool serves, "
        "what is left in it and why it would refuse. Nothing is changed.",
    )
    words = parser.add_subparsers(dest="word", required=True, metavar="WORD")
    of_pod = words.add_parser(_POD, help="where a pod has its addresses from, or would get them")
    of_pod.add_argument("name", metavar="NAMESPACE/NAME")
    of_pod.add_argument("--nic", default="", help="only this interface (default: all that the pod is known to have)")
    for version in (4, 6):
        of_pod.add_argument(
            f"--default-ipv{version}",
            action="append",
            default=[],
            metavar="POOL",
            help=f"what the plugin's configuration has in default_ipv{version}_ippool (default: what the network "
            "attachment of the interface has, if there is one)",
        )
    of_pool = words.add_parser(_POOL, help="whom a pool serves, what is in it, why it would refuse")
    of_pool.add_argument("name", metavar="NAME")
    for word in (of_pod, of_pool):
        programs.add_arguments(word)
        output.add_argument(word)
        stores.add_arguments(word)
    given = parser.parse_args(argv)
    print(asyncio.run(_pod(given) if given.word == _POD else _pool(given)), end="")
    return 0


async def _pod(given: argparse.Namespace) -> str:
    namespace, slash, name = given.name.partition("/")
    if not (slash and namespace and name) or "/" in name:
        msg = f"{quoted(given.name)}: expected NAMESPACE/NAME"
        raise Misuse(msg)
    async with stores.opened(given.state_dir) as store:
        seen = await _scene(store, given)
        subject = await scene.pod(store, seen, namespace, name, cluster=not given.state_dir)
        plugins = await scene.plugins(
            store, seen, subject, nic=given.nic, ipv4=given.default_ipv4, ipv6=given.default_ipv6
        )
    found = pod.explain(seen, subject, plugins)
    return output.shown(found, given.output, lambda wide: pod.render(found, wide=wide))


async def _scene(store: Store, given: argparse.Namespace) -> scene.Scene:
    release = None if given.state_dir else scene.Release(namespace=given.namespace, controller=given.controller)
    return await scene.read(store, release, now=time.time())


async def _pool(given: argparse.Namespace) -> str:
    async with stores.opened(given.state_dir) as store:
        seen = await _scene(store, given)
    found = pool.explain(seen, given.name)
    return output.shown(found, given.output, lambda wide: pool.render(found, wide=wide))
