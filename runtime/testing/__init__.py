"""A deterministic world for actors: public, so that whoever builds on the kernel can test the same way.

`loop` is an event loop with a virtual clock and a seeded order, and a quick one in asyncio's own order for big worlds;
`record` hashes what happened, `store` and `transport` are the ports with faults. A test that runs the real actors in it
is fast (an hour of timers takes milliseconds), explores another interleaving with every seed, and repeats a seed to the
letter.
"""

from runtime.testing.loop import Deadlock, SteadyLoop, VirtualClock, VirtualLoop, run
from runtime.testing.record import EventRecord

__all__ = ["Deadlock", "EventRecord", "SteadyLoop", "VirtualClock", "VirtualLoop", "run"]
