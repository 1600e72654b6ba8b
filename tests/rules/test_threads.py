"""What threads decode is known to msgspec before there are threads.

Two threads that decode the same Struct first, at once, crash the interpreter (msgspec 0.22.0).
"""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading
import msgspec
{imports}

def decode():
    begin.wait()
    try:
        {decode}
    except msgspec.ValidationError:
        pass

sys.setswitchinterval(1e-6)
begin = threading.Event()
threads = [threading.Thread(target=decode) for _ in range(32)]
for thread in threads:
    thread.start()
begin.set()
for thread in threads:
    thread.join()
"""
TIMES = 8
"""Each of them crashes about one time in three where it can."""

JOURNAL = PROGRAM.format(
    imports="from pathlib import Path; from tempfile import mkdtemp\n"
    "from cni.journal import Journal, JournalEntry, Key\nfrom api.wire import PodRef\n"
    "journal = Journal(Path(mkdtemp()))\n"
    "journal.put(JournalEntry(container_id='c', ifname='eth0', pod=PodRef(namespace='a', name='b', uid='u')))",
    decode="assert journal.get(Key('c', 'eth0')) is not None",
)
KIND = PROGRAM.format(
    imports="from api.kinds import IPPOOL; from runtime.store.document import decode as decoded",
    decode="""decoded(IPPOOL, b'{"metadata": {"name": "v4"}, "spec": {"subnet": "10.0.0.0/24"}}')""",
)
UNKNOWN = PROGRAM.format(
    imports="parts = [msgspec.defstruct(f'Part{at}', [('x', int)]) for at in range(200)]\n"
    "shape = msgspec.defstruct('Shape', [(f'f{at}', part | None, None) for at, part in enumerate(parts)])",
    decode="""msgspec.json.decode(b'{"f199": {"x": 1}}', type=shape)""",
)


def codes(program: str) -> set[int]:
    return {subprocess.run([sys.executable, "-c", program], check=False).returncode for _ in range(TIMES)}


@pytest.mark.parametrize("program", [JOURNAL, KIND], ids=["journal", "kind"])
def test_threads_may_begin_at_once(program: str) -> None:
    assert codes(program) == {0}


def test_that_is_a_crash_where_it_is_not_known() -> None:
    assert -signal.SIGSEGV in codes(UNKNOWN), "msgspec has mended it: nothing has to be made ready any more"
