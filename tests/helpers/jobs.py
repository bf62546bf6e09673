"""Jobs of several processes on this machine, each with its own CPU devices."""

import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 300  # after which a process is killed, so that a hang is a failure; machines may be busy


class Job:
    """A started job; the outputs of its processes are in files of `folder`. A program that is `alone` joins no job."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        folder: pathlib.Path,
        *,
        devices: int = 1,
        alone: bool = False,
        **env: str,
    ):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"{i}.txt" for i in range(len(commands))]
        env = os.environ | {
            "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        } | env  # fmt: skip
        self.processes = []
        for i, (command, log) in enumerate(zip(commands, self.logs, strict=True)):
            place = [f"--coordinator=localhost:{port}", f"--processes={len(commands)}", f"--process={i}"]
            with log.open("w") as output:
                started = subprocess.Popen(
                    [*command, *([] if alone else place)], cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
                )
            self.processes.append(started)

    def output(self, process: int) -> str:
        return self.logs[process].read_text()

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until `condition()`; fail, and kill all processes, if one ends before it."""
        end = time.monotonic() + SECONDS
        while not condition():
            ended = [process.poll() for process in self.processes]
            if time.monotonic() > end or None not in ended or any(ended):
                for process in self.processes:
                    process.kill()
                    process.wait()
                outputs = "\n".join(map(self.output, range(len(ended))))
                raise AssertionError(f"{what}: {ended}\n{outputs}")
            time.sleep(0.02)

    def wait(self) -> list[int]:
        """Return the exit statuses; a process that does not end is killed."""
        end = time.monotonic() + SECONDS
        statuses = []
        for process in self.processes:
            try:
                statuses.append(process.wait(max(0.1, end - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                statuses.append(process.wait())
        return statuses
