"""How the plugins of a sandbox's networks are called: ours by the sandbox actor, others' by execution.

No actor: the networks actor's messages call it, one at a time. It persists nothing; what a failure or a crash leaves is
taken away by the networks actor, which has written down what was going to be called.
"""

import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

import msgspec

from actors.node import chains
from actors.node.chains import Call, Made, calls, invocation_of, main_of, naming_network, subject_of, was_not_made
from actors.node.sandbox import Attach, Detach, Verify
from actors.node.sandbox import Message as SandboxMessage
from cni.delegate import Delegates, Target
from cni.errors import CniError
from cni.journal import Attached, JournalEntry, State
from cni.kernel import Kernel
from cni.protocol import IFACER_TYPE, Invocation, Verb
from cni.result import Result
from runtime.actor import Question, Ref
from runtime.errors import ActorError

_log = logging.getLogger(__name__)

_SANDBOX_SECONDS = 55.0


class Plugins:
    """See the module."""

    def __init__(
        self,
        container_id: str,
        *,
        delegates: Delegates,
        kernel: Kernel,
        sandbox: Callable[[], Ref[SandboxMessage]],
        provide: Callable[[Invocation], Coroutine[Any, Any, None]],
    ) -> None:
        """Nothing is called yet.

        Args:
            container_id: whose networks.
            delegates: executes others' plugins.
            kernel: a port; directs what others' plugins have made.
            sandbox: the way to the container's sandbox actor.
            provide: makes the parents that an `ifacer` plugin names. Raises `CniError`.
        """
        self._container_id = container_id
        self._delegates = delegates
        self._kernel = kernel
        self._sandbox = sandbox
        self._provide = provide

    def __repr__(self) -> str:
        return f"<Plugins of {self._container_id[:12]}>"

    async def ask[R](self, question: Question[R]) -> R:
        """Have the sandbox actor do its part. Raises `CniError` and `ActorError`."""
        return await self._sandbox().ask(question, timeout=_SANDBOX_SECONDS)

    async def add(
        self, head: Invocation, networks: Sequence[Attached], made: set[Made], *, begun: bool
    ) -> tuple[Attached, ...]:
        """Call every plugin; the networks with their results. What fails leaves what was made before.

        Args:
            head: the ADD of the pod's first interface.
            networks: what is to be attached.
            made: gets each plugin of somebody else's that has said that it did its part.
            begun: whether the first interface may be there, made before it was known whose it is.

        Raises `CniError` that names the network, and `ActorError`.
        """
        head = msgspec.structs.replace(head, nics=tuple(one.ifname for one in networks))
        results: dict[str, Result] = {}
        mains: list[Invocation] = []
        for one in networks:
            for call in calls(one):
                if call.type == IFACER_TYPE and call.ours:
                    with naming_network(one):
                        await self._provide(invocation_of(head, Verb.ADD, one, call))
            main = main_of(one)
            if main is not None:
                mains.append(invocation_of(head, Verb.ADD, one, main))
        if begun and head.ifname not in {main.ifname for main in mains}:
            await self.ask(Detach((head,)))
        if mains:
            answers = await self.ask(Attach(tuple(mains)))
            results = {main.ifname: result for main, result in zip(mains, answers, strict=True)}
        done = []
        for one in networks:
            with naming_network(one):
                done.append(await self._run_rest(head, one, results.get(one.ifname), made))
        return tuple(done)

    async def _run_rest(self, head: Invocation, one: Attached, previous: Result | None, made: set[Made]) -> Attached:
        """The plugins of a list that were not called with all others'; `previous` is what those have made."""
        done = previous is not None
        for call, text in zip(calls(one), one.plugins, strict=True):
            if call.ours and call.type == IFACER_TYPE:
                continue
            if done and call.ours and call == main_of(one):
                continue
            if call.ours:
                (previous,) = await self.ask(
                    Attach((invocation_of(head, Verb.ADD, one, call, previous=previous or Result()),))
                )
            else:
                is_first = previous is None
                previous = await self._delegates.run(
                    Verb.ADD, self._target(head, one.ifname), call.conf, previous=previous
                )
                made.add((one.ifname, text))
                if is_first:
                    previous = await self._direct(head, one, previous)
        return msgspec.structs.replace(one, result=previous)

    async def _direct(self, head: Invocation, one: Attached, made: Result) -> Result:
        """Have default routes by what somebody else's plugin has made go where the pod's annotation says."""
        if one.gateways is None or not (made.interfaces or made.ips):
            return made
        result, gateways = chains.directed(made, one.gateways)
        await self._kernel.direct(head.netns, one.ifname, gateways)
        return result

    async def check(self, record: JournalEntry, head: Invocation) -> None:
        """CHECK of every plugin that knows it. Raises `CniError` and `ActorError`."""
        for one in record.networks:
            for call in () if one.unchecked else calls(one):
                if not call.ours:
                    if not call.checks:
                        continue
                    await self._delegates.run(
                        Verb.CHECK, self._target(head, one.ifname), call.conf, previous=one.result
                    )
                elif call.type != IFACER_TYPE:
                    await self.ask(Verify(invocation_of(head, Verb.CHECK, one, call, previous=one.result)))

    async def call_off(
        self,
        record: JournalEntry,
        head: Invocation,
        one: Attached,
        made: Collection[Made] | None,
        failures: list[Exception],
    ) -> tuple[str, ...]:
        """DEL of the plugins of a list but the one that makes a link of ours.

        Returns those that have to be called again where something has failed: ours, and who has failed. Their failures
        are added to `failures`. `made` as `add` has said it; None: that is not known.
        """
        main = main_of(one)
        stay = []
        for call, text in reversed([*zip(calls(one), one.plugins, strict=True)]):
            if call.ours:
                stay.append(text)
            try:
                if call != main:
                    await self._take_away(head, one, call)
            except (CniError, ActorError) as error:
                if record.state is State.ADDING and was_not_made(error, (one.ifname, text), made):
                    _log.warning("%s: nothing was made that its DEL could take away: %s", subject_of(one), error)
                    continue
                failures.append(error.about(subject_of(one)) if isinstance(error, CniError) else error)
                stay += [] if call.ours else [text]
        return tuple(reversed(stay))

    async def _take_away(self, head: Invocation, one: Attached, call: Call) -> None:
        if not call.ours:
            target = self._target(head, one.ifname)
            if not await self._kernel.netns_exists(head.netns):
                # Plugins fail for a path that leads nowhere; an empty one tells them that it has gone.
                target = msgspec.structs.replace(target, netns="")
            await self._delegates.run(Verb.DEL, target, call.conf, previous=one.result if call.checks else None)
        elif call.type != IFACER_TYPE:
            await self.ask(Detach((invocation_of(head, Verb.DEL, one, call, previous=one.result),)))

    def _target(self, head: Invocation, ifname: str) -> Target:
        return Target(
            container_id=self._container_id, netns=head.netns, ifname=ifname, args=head.arguments, path=head.path
        )
