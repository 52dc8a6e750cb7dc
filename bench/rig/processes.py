"""Processes of a measurement: the proxy has one core to itself, all others share a second core."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from rig.peers import BENCH, SCRATCH, Command

PROXY_CORE = int(os.environ.get("BENCH_PROXY_CORE", "0"))
LOAD_CORE = int(os.environ.get("BENCH_LOAD_CORE", "1"))
UPSTREAM_PORT = 9100
# A process that does not listen within this time has failed.
START_SECONDS = 120


class Failure(Exception):
    """A measurement failed, for this reason."""


class Processes:
    """The processes of one scenario. All are killed at its end."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen] = []

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_exception: object) -> None:
        for process in self._started:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()

    def proxy(self, command: Command) -> subprocess.Popen:
        """Starts a proxy. Its standard output (the access log) is discarded, its errors go to stderr.log."""
        with (SCRATCH / "stderr.log").open("a") as errors:
            return self._start(command.argv, PROXY_CORE, env=os.environ | command.environment, stderr=errors)

    def backend(self, kind: str) -> None:
        """Starts a backend and waits until it listens."""
        argv = [str(driver()), kind, "--port", str(UPSTREAM_PORT)]
        wait_for_port(self._start(argv, LOAD_CORE), UPSTREAM_PORT)

    def driver(self, *arguments: str) -> subprocess.Popen:
        """Starts the driver, with pipes for its input and output."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        return self._start([str(driver()), *arguments], LOAD_CORE, **pipes)

    def _start(self, argv: list[str], core: int, **options: object) -> subprocess.Popen:
        def pin() -> None:
            os.sched_setaffinity(0, {core})

        defaults = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "start_new_session": True}
        process = subprocess.Popen(argv, preexec_fn=pin, **(defaults | options))
        self._started.append(process)
        return process


def driver() -> Path:
    """As built by setup.sh."""
    return next(iter((BENCH / "target").glob("*/release/mb")), BENCH / "target" / "release" / "mb")


def wait_for_port(process: subprocess.Popen, port: int) -> None:
    """Waits until the process listens on the port."""
    _wait(process, port, lambda connection: True)


def wait_for_answer(process: subprocess.Popen, port: int) -> None:
    """Waits until the process answers a request with 200."""

    def answered(connection: socket.socket) -> bool:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: bench.local\r\nconnection: close\r\n\r\n")
        return connection.recv(4096).startswith(b"HTTP/1.1 200")

    _wait(process, port, answered)


def _wait(process: subprocess.Popen, port: int, is_ready: callable) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise Failure(f"{process.args[0]} ended with status {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                if is_ready(connection):
                    return
        except OSError:
            pass
        time.sleep(0.005)
    raise Failure(f"{process.args[0]} did not listen on port {port} within {START_SECONDS} s")


def process_tree(pid: int) -> list[int]:
    """A process and its descendants."""
    members = [pid]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            members += process_tree(int(child))
    return members


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of all threads. /proc has it in nanoseconds."""
    total = 0
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_kb(pids: Iterable[int]) -> int:
    """Resident memory (RSS) of the processes."""
    total = 0
    for pid in pids:
        total += int(re.search(r"^Rss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])
    return total


def measure(processes: Processes, pids: list[int], arguments: list[str]) -> dict:
    """Runs the driver. Returns its result, and the CPU time of the processes between the end of its warm-up and the end."""
    load = processes.driver(*arguments)
    begun = ended = None
    for line in load.stdout:
        now = (time.monotonic(), cpu_seconds(pids))
        message = json.loads(line)
        if message.get("phase") == "measure":
            begun = now
        else:
            ended, result = now, message
    if load.wait() != 0 or begun is None or ended is None:
        raise Failure(f"the driver ended with status {load.returncode} and printed no result")
    return result | {"cpu_s": ended[1] - begun[1], "busy": (ended[1] - begun[1]) / (ended[0] - begun[0])}
