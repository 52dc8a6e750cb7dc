#!/usr/bin/env python3
"""Benchmarks Weft, Envoy, nginx and haproxy on this machine. README.md describes the method and the scenarios.

Writes each measurement to results/latest.jsonl, the table to latest.md and the chart to latest.svg. A run of all
scenarios without failures also updates the figures in the README.md of the repository.
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
# More than two descriptors for each connection of the memory scenario.
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
    parser.add_argument("--proxies", type=words, default=("weft", *report.PEERS), help="in the order of measurement")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="duration of each measurement")
    parser.add_argument("--warm-up", type=float, default=1, help="seconds before each measurement")
    parser.add_argument("--results", type=Path, default=RESULTS, help="output folder")
    parser.add_argument("--check", action="store_true", help="fail if a ratio is above its limit")
    arguments = parser.parse_args()
    arguments.scenarios = arguments.scenarios or tuple(scenarios.SCENARIOS)
    for chosen, known in (arguments.scenarios, scenarios.SCENARIOS), (arguments.proxies, peers.STARTERS):
        if unknown := [name for name in chosen if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return arguments


def prepare() -> None:
    """Creates the scratch folder, raises the limit of open files, and pins this process to the load core."""
    peers.SCRATCH.mkdir(parents=True, exist_ok=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most) if most > 0 else FILES, most))
    os.sched_setaffinity(0, {processes.LOAD_CORE})


def describe(run: scenarios.Run) -> dict:
    """The machine, the commit, the versions of the peers, and the settings of the run."""
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
    """A measurement as a line of progress output."""
    name = f"{line['proxy']}{' ' + str(line['size']) if 'size' in line else ''}"
    if "failed" in line:
        return f"{name:12} {line['failed']}"
    hidden = ("scenario", "proxy", "size", "repetition", "p90_us", "p999_us", "max_us", "requests", "bytes", "seconds")
    figures = (f"{measure} {value:.4g}" for measure, value in line.items() if measure not in hidden and value)
    return f"{name:12} {'  '.join(figures)}"


if __name__ == "__main__":
    sys.exit(main())
