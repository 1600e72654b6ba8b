"""A whole agent on the real kernel, in this process."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from actors.agent import Agent
from actors.node.disk import open_journal
from actors.node.meta import Meta
from cni.kernel import LinuxKernel
from runtime.actor import System
from runtime.transport.port import Channel


@asynccontextmanager
async def serving(state: Path, controller: Channel, *, meta: Meta | None = None) -> AsyncIterator[Agent]:
    """One with its journal in a folder, from when that is read until it has ended; `meta` as `Agent` has it."""
    agent = Agent(
        System(clock=System.real().clock, random=random.Random(1)),
        path="agent",
        kernel=LinuxKernel(),
        journal=open_journal(state),
        channels=[controller],
        node="n1",
        meta=meta,
    )
    running = asyncio.create_task(agent.supervisor.run())
    await agent.recovered.wait()
    try:
        yield agent
    finally:
        await agent.supervisor.stop()
        await running
