"""Two signals end a process whatever it is at; one ends what can be done again, and waits for what cannot."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from strop.training.stop import StopRequest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals to send to a process")


@pytest.fixture(autouse=True)
def foreground() -> Iterator[None]:
    """SIGINT as a process in the foreground has it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_one_signal_ends_what_can_be_done_again():
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert stop.reason == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):
            stop.check()


def test_what_is_held_is_finished_and_what_is_inside_it_may_end():
    with StopRequest() as stop:
        with stop.held():
            signal.raise_signal(signal.SIGINT)
        assert stop.reason == "SIGINT"
    with StopRequest() as stop, stop.held():
        with pytest.raises(KeyboardInterrupt), stop.interruptible():
            signal.raise_signal(signal.SIGINT)
        assert stop.reason == "SIGINT"


def test_a_signal_inside_an_import_is_noted_and_ends_what_comes_after():
    # Raised there it may reach a callback of the import's locks, which prints a traceback and loses it.
    inside = compile("ask()", "<frozen importlib._bootstrap>", "exec")
    with StopRequest() as stop:
        exec(inside, {"ask": lambda: signal.raise_signal(signal.SIGINT)})
        assert stop.reason == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            stop.check()


def test_handlers_and_pipe_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    handles = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0  # noqa: PTH112, PTH208
    for _ in range(3):
        with StopRequest():
            pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before
    assert handles in (0, len(os.listdir("/proc/self/fd")))  # noqa: PTH208


# The signals come while the main thread is inside a product of many seconds, where Python runs no handler.
DEEP = """
import os, signal, threading, time
import torch
from strop.training.stop import StopRequest

def ask():
    time.sleep(0.3)
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

torch.set_num_threads(1)
with StopRequest(lambda text: print(text, flush=True)) as stop, stop.held():
    a = torch.randn(6000, 6000, dtype=torch.float64)
    threading.Thread(target=ask).start()
    a @ a
    print("survived", flush=True)
"""


def test_a_second_signal_does_not_wait_for_the_library():
    done = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stdout == "stopping as soon as what was begun is done and saved; once more to leave at once\n"
