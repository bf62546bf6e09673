"""Tests of Ctrl-C and SIGTERM: real signals to small programs that need no JAX."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import tiny_runs

from sdecor.core import interrupt
from sdecor.core.commands import INTERRUPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PRELUDE = """
import ctypes, os, signal, sys, threading, time
from sdecor.core import interrupt, native

def say(text):
    print(text, flush=True)

def wait(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)

def wait_for_ever():
    # A mutex that is locked twice: no signal ends such a wait.
    mutex, library = ctypes.create_string_buffer(256), ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    timer = threading.Timer(0.2, say, ["ready"])
    timer.daemon = True
    timer.start()
    library.pthread_mutex_lock(mutex)

interrupt.install()
"""


class Program:
    """A started program, which prints a line for each thing that happens to it."""

    def __init__(self, source: str):
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-W", "ignore", "-c", PRELUDE + source]
        self.process = subprocess.Popen(command, cwd=tiny_runs.ROOT, **options)

    def expect(self, line: str) -> None:
        assert self.process.stdout.readline() == f"{line}\n", self.process.communicate(timeout=30)[1]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 30) -> tuple[int, str, str]:
        """Return the exit status, and what was printed after the last expected line."""
        output, errors = self.process.communicate(timeout=seconds)
        return self.process.returncode, output, errors


# Nothing to save


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("busy", ["while True: sum(range(1000))", "time.sleep(60)", "os.read(0, 1)"])
def test_a_signal_ends_a_program_at_once(number, busy):
    program = Program(f"""
try:
    say("ready")
    {busy}
except KeyboardInterrupt:
    sys.exit({INTERRUPTED})
""")
    program.expect("ready")
    program.send(number)
    assert program.end(interrupt.LEAVE_SECONDS) == (INTERRUPTED, "", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_program_that_waits_in_native_code(number):
    program = Program("""
interrupt.LEAVE_SECONDS = 0.3
sys.argv = ["folder/train.py"]
wait_for_ever()
""")
    program.expect("ready")
    program.send(number)
    assert program.end() == (INTERRUPTED, "", f"train.py: stopped by {signal.Signals(number).name}\n")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_repeated_signal_does_not_disturb_the_end(number):
    program = Program(f"""
try:
    say("ready")
    time.sleep(60)
except KeyboardInterrupt:
    say("ending")
    time.sleep(0.3)
    say("ended")
    sys.exit({INTERRUPTED})
""")
    program.expect("ready")
    program.send(number)
    program.expect("ending")
    program.send(number)
    assert program.end() == (INTERRUPTED, "ended\n", "")


@pytest.mark.parametrize("program, number", [("train.py", signal.SIGTERM), ("evaluate.py", signal.SIGINT)])
def test_a_signal_during_the_imports_of_a_program_ends_it_with_one_line(program, number, tmp_path):
    """JAX is replaced by a module that takes long to import."""
    (tmp_path / "jax.py").write_text("import time\nprint('imports', flush=True)\ntime.sleep(60)\n")
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, tiny_runs.ROOT / program], cwd=tmp_path, env=env, **options)
    assert process.stdout.readline() == "imports\n", process.communicate(timeout=30)
    process.send_signal(number)
    assert process.communicate(timeout=30) == ("", f"{program}: stopped by {signal.Signals(number).name}\n")
    assert process.returncode == INTERRUPTED


# Something to save

HELD = """
interrupt.REPEAT_SECONDS = {repeat}
interrupt.LEAVE_SECONDS = 0.05
with interrupt.Interrupt() as flag:
    say(f"ready {{bool(flag)}} {{flag.signal}}")
    wait(lambda: flag)
    say(flag.signal.name)
    time.sleep(0.5)
    say("saved")
"""


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("times", [1, 2])
def test_a_held_interrupt_is_a_flag_and_a_repeated_signal_the_same_request(number, times):
    program = Program(HELD.format(repeat=10))
    program.expect("ready False None")
    program.send(number)
    program.expect(signal.Signals(number).name)
    for _ in range(times - 1):
        program.send(number)
    assert program.end() == (0, "saved\n", "")


@pytest.mark.parametrize(
    "number, ending", [(signal.SIGINT, (-signal.SIGINT, "", "")), (signal.SIGTERM, (0, "saved\n", ""))]
)
def test_of_later_signals_only_ctrl_c_kills(number, ending):
    program = Program(HELD.format(repeat=0))
    program.expect("ready False None")
    program.send(number)
    program.expect(signal.Signals(number).name)
    program.send(number)
    assert program.end() == ending


def test_check_stops_a_single_process_and_leaves_a_job_alone():
    program = Program("""
with interrupt.Interrupt() as flag:
    interrupt.check()
    say("ready")
    wait(lambda: flag)
    try:
        interrupt.check()
    except interrupt.Stopped as error:
        say(isinstance(error, KeyboardInterrupt))
    interrupt.join_job(lambda: None, print)
    interrupt.check()
""")
    program.expect("ready")
    program.send(signal.SIGTERM)
    assert program.end() == (0, "True\n", "")


def test_every_signal_is_announced_to_the_job_also_from_native_code():
    program = Program("""
interrupt.join_job(lambda: say("announced"), print)
with interrupt.Interrupt():
    wait_for_ever()
""")
    program.expect("ready")
    program.send(signal.SIGTERM)
    program.expect("announced")
    program.process.kill()
    program.end()


def test_a_forked_child_has_its_own_signals():
    program = Program("""
told = []
interrupt.join_job(lambda: told.append(1), print)
with interrupt.Interrupt() as flag:
    reader, writer = os.pipe()
    for number in (signal.SIGINT, signal.SIGTERM):
        if not (child := os.fork()):
            os.write(writer, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(reader, 1)
        os.kill(child, number)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number)
    time.sleep(0.2)
    say(f"{bool(flag)} {told}")
    os.kill(os.getpid(), signal.SIGTERM)
    wait(lambda: told)
    say(f"{bool(flag)} {told}")
""")
    assert program.end() == (0, "True\nTrue\nFalse []\nTrue [1]\n", "")


def test_the_handler_of_a_library_is_replaced_and_can_be_called():
    program = Program("""
library = ctypes.CDLL(None)
library.signal.restype, library.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: say(f"library: {number}"))
library.signal(signal.SIGTERM, ctypes.cast(handler, ctypes.c_void_p))
call = native.replace_handler(signal.SIGTERM, None)
call(signal.SIGTERM)
say(native.replace_handler(signal.SIGTERM, None))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
say(native.replace_handler(signal.SIGTERM, None))
os.kill(os.getpid(), signal.SIGTERM)  # the default now
""")
    assert program.end() == (-signal.SIGTERM, f"library: {signal.SIGTERM}\nNone\nNone\n", "")


# As a library, without `install`


@pytest.fixture
def handlers() -> Iterator[dict[int, list]]:
    """Return the signals that a user's own handlers have received."""
    received = {number: [] for number in SIGNALS}
    former = {number: signal.signal(number, lambda it, frame: received[it].append(it)) for number in SIGNALS}
    yield received
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_of_the_user_are_back_after_a_hold(handlers, number):
    for _ in range(2):  # a second hold does not see the signal of the first
        with interrupt.Interrupt() as outer:
            assert not outer
            os.kill(os.getpid(), number)
            with interrupt.Interrupt() as inner:
                assert outer and inner and inner.signal == number
        assert not handlers[number]
    os.kill(os.getpid(), number)
    assert handlers[number] == [number]


def test_a_hold_in_another_thread_leaves_the_handlers_alone(handlers):
    found = []

    def hold() -> None:
        with interrupt.Interrupt() as flag:
            found.append((bool(flag), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    with interrupt.Interrupt():
        pass  # no earlier test's signal is left
    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert found == [(False, before)]
