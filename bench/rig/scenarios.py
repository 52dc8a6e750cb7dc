"""The scenarios. Each yields one measurement for each proxy and repetition.

All proxies of a scenario run at the same time, each on its own port, and are measured in turn, so that a machine that
slows down slows all of them down.
"""

import http.client
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rig import weft
from rig.peers import CERTS, SCRATCH, Command, command
from rig.processes import (
    START_SECONDS,
    UPSTREAM_PORT,
    Failure,
    Processes,
    process_tree,
    measure,
    resident_kb,
    wait_for_answer,
    wait_for_port,
)

FIRST_PORT = 9200
# Between the ports of two proxies that requests pass in turn.
PORTS_APART = 50
# Pause for background work after a start, and after connections were opened or closed.
SETTLE_SECONDS = 1.0
# Repetitions of the scenarios that start a new process for each.
RESTARTS_MAX = 3
IDLE_CONNECTIONS = 10_000
# The share of requests that may fail in a measurement.
FAILED_MAX = 0.001
# The Weft binaries: of this checkout, and one from before a change.
OURS = ("weft", "before")
# Requests directly to the backend, without a proxy.
DIRECT = "direct"


@dataclass(frozen=True)
class Run:
    """The settings of a run."""

    proxies: tuple[str, ...]
    repetitions: int
    seconds: float
    warm_up: float


@dataclass(frozen=True)
class Load:
    """Load through a proxy in a role, or through several: the first one forwards to the second."""

    roles: str
    arguments: str
    backend: str = "backend"
    # Also measures without a proxy, and reports the difference of the medians (added_p50_us).
    added: bool = False


@dataclass(frozen=True)
class Growth:
    """Load through a proxy with configurations of several sizes, which are measured in turn."""

    role: str
    sizes: tuple[int, ...]
    path: Callable[[int], str]


@dataclass(frozen=True)
class Memory:
    """Memory of a proxy that is idle, and with connections that each made one request."""

    role: str = "h1"
    arguments: str = ""


@dataclass(frozen=True)
class Configuration:
    """With this many additional clusters and routes: time from start to the first response, and additional memory."""

    clusters: int


@dataclass(frozen=True)
class Instructions:
    """Instructions in user space per HTTP/1.1 request: comparable between machines, and free of noise."""

    role: str = "h1"
    # Sizes of the configuration.
    sizes: tuple[int | None, ...] = (None,)
    path: Callable[[int | None], str] = lambda _size: "/"
    # The difference of two runs, so that start, end and the first connections do not count.
    few: int = 500
    many: int = 2500


@dataclass
class Target:
    """A running proxy, or several that requests pass in turn."""

    port: int
    roots: tuple[int, ...] = ()

    def pids(self) -> list[int]:
        """The current processes: some proxies listen before all their workers have started."""
        return [pid for root in self.roots for pid in process_tree(root)]


TLS = f"--tls {CERTS}/ca.pem"
MUTUAL_TLS = f"{TLS} --certificate {CERTS}/a.pem --key {CERTS}/a.key"
SCENARIOS = {
    "h1_sat": Load("h1", "load --connections 64"),
    "h1_rate1k": Load("h1", "load --connections 16 --rate 1000", added=True),
    "h1_rate5k": Load("h1", "load --connections 32 --rate 5000", added=True),
    "h1_post8k": Load("h1", "load --connections 64 --post 8192"),
    "h1_close": Load("h1", "load --connections 16 --close"),
    "h2_1x100": Load("h2", "load2 --connections 1 --streams 100", "backend2"),
    "h2_10x100": Load("h2", "load2 --connections 10 --streams 100", "backend2"),
    "h2_rate2k": Load("h2", "load2 --connections 10 --rate 2000", "backend2"),
    "grpc_10x10": Load("h2", "load2 --connections 10 --streams 10 --grpc", "backend2"),
    "grpc_rate2k": Load("h2", "load2 --connections 10 --rate 2000 --grpc", "backend2"),
    "tls_sat": Load("tlsterm", f"load --connections 64 {TLS}"),
    "tls_hs": Load("tlsterm", f"load --connections 16 --close {TLS}"),
    "mtls_hs": Load("server", f"load --connections 16 --close {MUTUAL_TLS}"),
    "twohop_sat": Load("client server", "load --connections 64"),
    "twohop_rate1k": Load("client server", "load --connections 16 --rate 1000", added=True),
    "tcp_req": Load("tcp", "load --connections 64"),
    "tcp_close": Load("tcp", "load --connections 16 --close"),
    "tcp_bulk": Load("tcp", "drain --connections 4", "source"),
    "routes": Growth("routes", (10, 1000, 10_000), weft.path_of_last_route),
    "endpoints": Growth("endpoints", (10, 3000), lambda _count: "/"),
    "mem": Memory(),
    "tlsmem": Memory("server", MUTUAL_TLS),
    "config1000": Configuration(1000),
    "config10000": Configuration(10_000),
    "instructions": Instructions(),
    "routes_instructions": Instructions("routes", (10, 1000, 10_000), weft.path_of_last_route),
    # With more than 600, idle connections are closed before the proxy under valgrind reuses them.
    "endpoints_instructions": Instructions("endpoints", (10, 600), few=4000, many=8000),
}


def run_scenario(name: str, run: Run) -> Iterator[dict]:
    """The measurements of a scenario."""
    match SCENARIOS[name]:
        case Load() as load:
            lines = _load(load, run)
        case Growth() as growth:
            lines = _growth(growth, run)
        case Memory() as memory:
            lines = _memory(memory, run)
        case Configuration(clusters):
            lines = _configuration(clusters, run)
        case Instructions() as instructions:
            lines = _instructions(instructions, run)
    for line in lines:
        yield {"scenario": name} | line


def _load(scenario: Load, run: Run) -> Iterator[dict]:
    with Processes() as processes:
        processes.backend(scenario.backend)
        targets = {DIRECT: Target(UPSTREAM_PORT)} if scenario.added else {}
        for number, proxy in enumerate(run.proxies):
            try:
                target = _start_all(processes, proxy, scenario.roles.split(), FIRST_PORT + number)
            except Failure as failure:
                yield {"proxy": proxy, "failed": str(failure)}
                continue
            if target is not None:
                targets[proxy] = target
        yield from _in_turn(processes, targets, lambda _name: scenario.arguments.split(), run)


def _start_all(processes: Processes, proxy: str, roles: list[str], port: int) -> Target | None:
    """Starts a proxy in each role, the last one first. None: it does not support a role."""
    ports = [port + PORTS_APART * number for number in range(len(roles))]
    upstreams = [*ports[1:], UPSTREAM_PORT]
    commands = [command(proxy, *each) for each in zip(roles, ports, upstreams)]
    if None in commands:
        return None
    started = [_start(processes, prepared, port) for prepared, port in reversed([*zip(commands, ports)])]
    return Target(port, tuple(pid for target in started for pid in target.roots))


def _growth(scenario: Growth, run: Run) -> Iterator[dict]:
    for proxy in run.proxies:
        if command(proxy, scenario.role, FIRST_PORT, UPSTREAM_PORT, 0) is None:
            continue
        with Processes() as processes:
            processes.backend("backend")
            targets, paths = {}, {}
            for number, size in enumerate(scenario.sizes):
                port = FIRST_PORT + number
                prepared = command(proxy, scenario.role, port, UPSTREAM_PORT, size)
                targets[str(size)] = _start(processes, prepared, port)
                paths[str(size)] = scenario.path(size)
            arguments = lambda size: ["load", "--connections", "64", "--path", paths[size]]
            for line in _in_turn(processes, targets, arguments, run):
                yield line | {"proxy": proxy, "size": int(line["proxy"])}


def _start(processes: Processes, prepared: Command, port: int) -> Target:
    process = processes.proxy(prepared)
    wait_for_port(process, port)
    return Target(port, (process.pid,))


def _in_turn(
    processes: Processes, targets: dict[str, Target], arguments: Callable[[str], list[str]], run: Run
) -> Iterator[dict]:
    time.sleep(SETTLE_SECONDS)
    times = ["--seconds", str(run.seconds), "--warm-up", str(run.warm_up)]
    for repetition in range(run.repetitions):
        direct = None
        proxies = [name for name in targets if name != DIRECT]
        # The order alternates, so that no proxy is always measured after the same other.
        if repetition % 2:
            proxies.reverse()
        for name in [DIRECT] * (DIRECT in targets) + proxies:
            target = targets[name]
            line = {"proxy": name, "repetition": repetition}
            try:
                result = measure(processes, target.pids(), [*arguments(name), "--port", str(target.port), *times])
                line |= _per_unit(result)
            except Failure as failure:
                line["failed"] = str(failure)
            if name == DIRECT:
                direct = line.get("p50_us")
            elif direct is not None and "p50_us" in line:
                line["added_p50_us"] = line["p50_us"] - direct
            yield line


def _per_unit(result: dict) -> dict:
    """A result with CPU time per request or per gigabyte."""
    cpu = result.pop("cpu_s")
    if "bytes" in result:
        if result["bytes"] == 0:
            raise Failure("no bytes were transferred")
        return result | {"cpu_s_per_gb": cpu / (result["bytes"] / 1e9)}
    requests, failed = result["requests"], result["refused"] + result["broken"]
    if failed > FAILED_MAX * requests or requests == 0:
        raise Failure(f"{failed} of {requests + result['broken']} requests failed")
    return result | {"cpu_us": cpu * 1e6 / requests}


def _memory(scenario: Memory, run: Run) -> Iterator[dict]:
    for repetition in range(min(run.repetitions, RESTARTS_MAX)):
        for proxy in run.proxies:
            prepared = command(proxy, scenario.role, FIRST_PORT, UPSTREAM_PORT)
            if prepared is not None:
                line = {"proxy": proxy, "repetition": repetition}
                yield line | _or_failure(_memory_of, prepared, scenario.arguments.split())


def _memory_of(prepared: Command, arguments: list[str]) -> dict:
    with Processes() as processes:
        processes.backend("backend")
        target = _start(processes, prepared, FIRST_PORT)
        time.sleep(SETTLE_SECONDS)
        idle = resident_kb(target.pids())
        connections = ["--port", str(target.port), "--connections", str(IDLE_CONNECTIONS)]
        holder = processes.driver("hold", *connections, *arguments)
        if not holder.stdout.readline():
            raise Failure(f"{IDLE_CONNECTIONS} connections could not be opened")
        time.sleep(SETTLE_SECONDS)
        held = resident_kb(target.pids())
        holder.communicate()
        time.sleep(SETTLE_SECONDS)
        after = resident_kb(target.pids())
    return {"idle_kb": idle, "kb_per_connection": (held - idle) / IDLE_CONNECTIONS, "after_kb": after}


def _configuration(clusters: int, run: Run) -> Iterator[dict]:
    for repetition in range(min(run.repetitions, RESTARTS_MAX)):
        for proxy in run.proxies:
            if command(proxy, "config", FIRST_PORT, UPSTREAM_PORT, 0) is None:
                continue
            yield {"proxy": proxy, "repetition": repetition} | _or_failure(_configuration_of, proxy, clusters)


def _configuration_of(proxy: str, clusters: int) -> dict:
    _, empty_kb = _started(proxy, 0)
    start_s, full_kb = _started(proxy, clusters)
    return {"start_s": start_s, "growth_kb": full_kb - empty_kb}


def _started(proxy: str, clusters: int) -> tuple[float, int]:
    prepared = command(proxy, "config", FIRST_PORT, UPSTREAM_PORT, clusters)
    with Processes() as processes:
        processes.backend("backend")
        begun = time.monotonic()
        process = processes.proxy(prepared)
        wait_for_answer(process, FIRST_PORT)
        took = time.monotonic() - begun
        time.sleep(SETTLE_SECONDS)
        return took, resident_kb(process_tree(process.pid))


def _or_failure(work: Callable[..., dict], *arguments: object) -> dict:
    try:
        return work(*arguments)
    except Failure as failure:
        return {"failed": str(failure)}


def _instructions(scenario: Instructions, run: Run) -> Iterator[dict]:
    for proxy in [proxy for proxy in run.proxies if proxy in OURS]:
        for size in scenario.sizes:
            line = {"proxy": proxy, "repetition": 0} | ({} if size is None else {"size": size})
            yield line | _or_failure(_instructions_of, proxy, scenario, size)


def _instructions_of(proxy: str, scenario: Instructions, size: int | None) -> dict:
    few, many = (_counted(proxy, scenario, size, requests) for requests in (scenario.few, scenario.many))
    return {"instructions": (many - few) / (scenario.many - scenario.few)}


def _counted(proxy: str, scenario: Instructions, size: int | None, requests: int) -> int:
    """Instructions of a proxy from its start to its end, with this many requests."""
    prepared = command(proxy, scenario.role, FIRST_PORT, UPSTREAM_PORT, size or 0)
    log = SCRATCH / "valgrind.log"
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", f"--log-file={log}"]
    with Processes() as processes:
        processes.backend("backend")
        process = processes.proxy(Command([*valgrind, *prepared.argv], prepared.environment))
        wait_for_answer(process, FIRST_PORT)
        connection = http.client.HTTPConnection("127.0.0.1", FIRST_PORT, timeout=10)
        for _ in range(requests):
            connection.request("GET", scenario.path(size))
            connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGTERM)
        process.wait(START_SECONDS)
    collected = re.search(r"Collected : (\d+)", log.read_text())
    if not collected:
        raise Failure("valgrind printed no count")
    return int(collected[1])
