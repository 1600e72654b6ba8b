"""Steps at the same time: all of them, or the first failure."""

from functools import partial

import anyio
import pytest

from runtime.together import together


async def test_all_are_under_way_at_once_and_have_ended() -> None:
    arrived: list[int] = []
    all_here = anyio.Event()

    async def step(number: int) -> None:
        arrived.append(number)
        if len(arrived) == 3:
            all_here.set()
        await all_here.wait()

    with anyio.fail_after(5):
        await together(*(partial(step, number) for number in range(3)))
    assert arrived == [0, 1, 2]


@pytest.mark.parametrize("others", [0, 2])
async def test_a_failure_is_raised_as_it_is_and_the_others_end(others: int) -> None:
    ended: list[str] = []

    async def waiting() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def failing() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await together(*[waiting] * others, failing)
    assert ended == ["cancelled"] * others


async def test_nothing_to_do_is_done() -> None:
    await together()
