#!/usr/bin/env python3
"""Measures Weft beside Envoy, nginx and haproxy on this machine. README.md says how and what.

Raw lines go to results/latest.jsonl as they come, the table to latest.md, the chart to latest.svg. A run of all
scenarios also renews the figures in the README at the top.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

from rig import peers, processes, report, scenarios, weft

RESULTS = peers.BENCH / "results"
README = weft.CHECKOUT / "README.md"
# Twice the connections of the memory scenario, and some.
FILES = 65_536


def main() -> int:
    arguments = parse_arguments()
    prepare()
    run = scenarios.Run(arguments.proxies, arguments.repetitions, arguments.seconds, arguments.warm_up)
    about = describe(run)
    print(report.machine(about))
    lines = []
    arguments.results.mkdir(parents=True, exist_ok=True)
    with (arguments.results / "latest.jsonl").open("w") as raw:
        write_line(raw, {"about": about})
        for number, name in enumerate(arguments.scenarios, 1):
            print(f"\n[{number}/{len(arguments.scenarios)}] {name}", flush=True)
            for line in scenarios.run_scenario(name, run):
                write_line(raw, line)
                lines.append(line)
                print(f"  {progress(line)}", flush=True)
    page = report.markdown(about, lines)
    print(f"\n{report.comparison(lines) if report.BEFORE in run.proxies else page}")
    (arguments.results / "latest.md").write_text(page)
    (arguments.results / "latest.svg").write_text(report.chart(about, lines))
    failed, missed = report.failures(lines), report.missed(lines)
    if not failed and set(arguments.scenarios) == set(scenarios.SCENARIOS) and arguments.results == RESULTS:
        README.write_text(report.with_section(README.read_text(), about, lines))
    for text in failed:
        print(f"failed: {text}")
    for text in missed if arguments.check else []:
        print(f"missed: {text}")
    return 1 if failed or (arguments.check and missed) else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = lambda text: tuple(text.replace(",", " ").split())
    names = ", ".join(scenarios.SCENARIOS)
    parser.add_argument("--scenarios", type=words, default=(), help=f"of {names}; default: all")
    parser.add_argument("--proxies", type=words, default=("weft", *report.PEERS), help="in the order of their turns")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds before each measurement")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder that they go to")
    parser.add_argument("--check", action="store_true", help="fail if a ratio is not what it must be")
    arguments = parser.parse_args()
    arguments.scenarios = arguments.scenarios or tuple(scenarios.SCENARIOS)
    for chosen, known in (arguments.scenarios, scenarios.SCENARIOS), (arguments.proxies, peers.STARTERS):
        if unknown := [name for name in chosen if name not in known]:
            parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return arguments


def prepare() -> None:
    """The place for configurations, files enough for every connection, and a core for this process."""
    peers.SCRATCH.mkdir(parents=True, exist_ok=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most) if most > 0 else FILES, most))
    os.sched_setaffinity(0, {processes.LOAD_CORE})


def describe(run: scenarios.Run) -> dict:
    """The machine and what was measured on it."""
    cpu = next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").open() if line.startswith("model name"))
    git = ["git", "-C", str(weft.CHECKOUT)]
    commit = subprocess.run([*git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "commit": commit.stdout.strip(),
        "versions": peers.versions(),
        "repetitions": run.repetitions,
        "seconds": run.seconds,
    }


def write_line(raw, line: dict) -> None:
    raw.write(json.dumps(line) + "\n")
    raw.flush()


def progress(line: dict) -> str:
    """A raw line for somebody who waits."""
    who = f"{line['proxy']}{' ' + str(line['size']) if 'size' in line else ''}"
    if "failed" in line:
        return f"{who:12} {line['failed']}"
    hidden = ("scenario", "proxy", "size", "repetition", "p90_us", "p999_us", "max_us", "requests", "bytes", "seconds")
    figures = (f"{name} {value:.4g}" for name, value in line.items() if name not in hidden and value)
    return f"{who:12} {'  '.join(figures)}"


if __name__ == "__main__":
    sys.exit(main())
