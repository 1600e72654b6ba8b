"""The overlay's network that makes the first interface of pods that name none: its STATUS, and its GC.

A runtime knows the list of plugins that it calls itself, which is ours. What it asks that one is asked of the overlay's
here, as libcni does it (`GetStatusNetworkList`, `GCNetworkList`): where the list's CNI version has these verbs, others'
plugins are executed in their order. One that does not know the verb fails, and that counts as any failure: it does not
have the list's version, so its ADD fails, too.

For this network only. What definitions name a Multus may attach as well, or another runtime, by lists of the same name:
the attachments that we hear of need not be all that are valid there, and a GC would take the others' away.
"""

from collections.abc import Awaitable, Callable

import msgspec

from actors.node.chains import Call, calls, chains, cluster_network, invocation_of
from actors.node.meta import Meta
from api.wire import Networked
from cni.config import shown
from cni.conflist import Asked, ConfList, for_plugin
from cni.delegate import Target
from cni.errors import CniError, InvalidConfig
from cni.protocol import Invocation, Role, Verb

_STATUS_SECONDS = 10.0
"""For one plugin. The kubelet asks every 5 s, one call after the other, and after 30 s without an answer it takes the
runtime for dead; the first plugin that fails ends the round."""


async def find(meta: Meta, invocation: Invocation) -> ConfList | None:
    """The list of the network; None where the call's own makes the first interface, and below a Multus.

    Raises:
        InvalidConfig: the node has none of the name; the details are what it has.
    """
    name = invocation.conf.cluster_network
    if invocation.role is not Role.MAIN or not invocation.conf.networks or not name:
        return None

    def look() -> ConfList | None:
        if meta.below_multus():
            return None
        try:
            return cluster_network(name, meta.find)
        except InvalidConfig as error:
            raise InvalidConfig(error.msg, error.details or meta.contents()) from None

    return await meta.apart(look)


async def check(
    meta: Meta, conflist: ConfList, invocation: Invocation, *, ours: Callable[[Invocation], Awaitable[None]]
) -> None:
    """Have the plugins of the list say in their order whether they could do an ADD; `ours` looks at each of ours.

    Raises:
        CniError: one says no, cannot be called, or does not end in time; or the configuration of one of ours cannot be.
            It names the network and the plugin.
    """
    (attached,) = chains(invocation, Networked(pod_uid=""), find=lambda _: conflist, device=lambda _: "")
    try:
        for call in calls(attached):
            if call.ours:
                await ours(invocation_of(invocation, Verb.STATUS, attached, call))
            elif conflist.has_status_and_gc:
                await meta.delegates.run(Verb.STATUS, _target(invocation), call.conf, seconds=_STATUS_SECONDS)
    except CniError as error:
        error.about(_subject(invocation))
        raise


async def collect(meta: Meta, invocation: Invocation) -> list[str]:
    """GC of others' plugins of the list, whatever each says; their failures, in words.

    The network's attachments are those of the call: to each first interface of ours belongs one of its. A crash leaves
    some of the plugins untold; the runtime has had no answer then, and comes again.
    """
    try:
        conflist = await find(meta, invocation)
    except CniError as error:
        return [str(error)]
    if conflist is None or conflist.disable_gc or not conflist.has_status_and_gc:
        return []
    valid = msgspec.to_builtins(invocation.conf.valid_attachments)
    # The second key is that of drafts of the specification; libcni gives both.
    told = {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
    failures = []
    for at, plugin in enumerate(conflist.plugins):
        if Call(plugin).ours:
            continue
        conf = for_plugin(conflist, at, Asked(), version=invocation.version, ours=False)
        try:
            await meta.delegates.run(Verb.GC, _target(invocation), conf | told)
        except CniError as error:
            failures.append(str(error.about(_subject(invocation))))
    return failures


def _target(invocation: Invocation) -> Target:
    return Target(container_id="", netns="", ifname="", path=invocation.path)


def _subject(invocation: Invocation) -> str:
    return f"clusterNetwork {shown(invocation.conf.cluster_network)}"
