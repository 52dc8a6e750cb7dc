"""Starts each proxy in a role: writes its configuration, and returns its command line and environment."""

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from rig import envoy, weft

BENCH = Path(__file__).resolve().parents[1]
CONFIGS = BENCH / "configs"
CERTS = BENCH / "certs"
SCRATCH = weft.CHECKOUT / "target" / "bench"


@dataclass(frozen=True)
class Command:
    """A command line and its environment."""

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def command(proxy: str, role: str, listen: int, upstream: int, count: int = 0) -> Command | None:
    """Prepares a proxy for a role. None: the proxy does not support the role."""
    starter = STARTERS[proxy]
    return starter(role, listen, upstream, count)


def versions() -> dict[str, str]:
    """Name and version of each peer, from its own output."""
    commands = {"Envoy": [str(envoy_binary()), "--version"], "nginx": ["nginx", "-v"], "haproxy": ["haproxy", "-v"]}
    found = {}
    for name, argv in commands.items():
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
        version = re.search(r"\d+\.\d+\.\d+", result.stdout + result.stderr)
        found[name] = f"{name} {version[0] if version else '?'}"
    return found


def envoy_binary() -> Path:
    """As installed by setup.sh."""
    return next(iter(BENCH.glob(".venv/lib/python3*/site-packages/envoy/_bin/envoy")), Path("envoy"))


def _weft(role: str, listen: int, upstream: int, count: int) -> Command | None:
    return _weft_binary(weft.binary(), role, listen, upstream, count)


def _before(role: str, listen: int, upstream: int, count: int) -> Command | None:
    return _weft_binary(weft.named("WEFT_PROXY_BEFORE"), role, listen, upstream, count)


def _weft_binary(binary: Path, role: str, listen: int, upstream: int, count: int) -> Command | None:
    if role not in weft.ROLES:
        return None
    folder = SCRATCH / f"weft-{listen}"
    weft.write_files(role, listen, upstream, CERTS, folder, count)
    return Command([str(binary)], weft.environment(role, listen, upstream, CERTS, folder))


def _envoy(role: str, listen: int, upstream: int, count: int) -> Command | None:
    if role not in ("h1", "h2", "tcp", "tlsterm", "config", "endpoints", "client", "server"):
        return None
    config = SCRATCH / f"envoy-{listen}.json"
    config.write_text(json.dumps(envoy.bootstrap(role, listen, upstream, CERTS, count)))
    quiet = ["--log-level", "critical", "--base-id", str(listen)]
    return Command([str(envoy_binary()), "--config-path", str(config), "--concurrency", "1", *quiet])


def _nginx(role: str, listen: int, upstream: int, _count: int) -> Command | None:
    templates = {"h1": "nginx.conf", "tlsterm": "nginx.conf", "tcp": "nginx-stream.conf"}
    if role not in templates:
        return None
    ssl = {"SSL": "", "CERTIFICATE": ""}
    if role == "tlsterm":
        certificate = f"ssl_certificate {CERTS}/b.pem; ssl_certificate_key {CERTS}/b.key;"
        ssl = {"SSL": "ssl", "CERTIFICATE": f"{certificate} include {CONFIGS}/nginx-tls.conf;"}
    config = _fill(templates[role], f"nginx-{listen}.conf", PORT=listen, UPSTREAM=upstream, SCRATCH=SCRATCH, **ssl)
    return Command(["nginx", "-c", str(config)])


def _haproxy(role: str, listen: int, upstream: int, _count: int) -> Command | None:
    options = {
        "h1": {"MODE": "http", "BIND": "", "SERVER": "", "REUSE": "http-reuse always"},
        "h2": {"MODE": "http", "BIND": "proto h2", "SERVER": "proto h2", "REUSE": "http-reuse always"},
        "tcp": {"MODE": "tcp", "BIND": "", "SERVER": "", "REUSE": ""},
        "tlsterm": {"MODE": "http", "BIND": _haproxy_tls(), "SERVER": "", "REUSE": "http-reuse always"},
    }
    if role not in options:
        return None
    config = _fill("haproxy.cfg", f"haproxy-{listen}.cfg", PORT=listen, UPSTREAM=upstream, **options[role])
    return Command(["haproxy", "-db", "-f", str(config)])


def _haproxy_tls() -> str:
    """haproxy reads certificate and key from one file."""
    both = SCRATCH / "haproxy.pem"
    both.write_text((CERTS / "b.pem").read_text() + (CERTS / "b.key").read_text())
    return f"ssl crt {both} no-tls-tickets ssl-min-ver TLSv1.3"


def _fill(template: str, name: str, **values: object) -> Path:
    """Writes a configuration from a template, with its @PLACEHOLDERS@ replaced."""
    text = (CONFIGS / template).read_text()
    for key, value in values.items():
        text = text.replace(f"@{key}@", str(value))
    path = SCRATCH / name
    path.write_text(text)
    return path


STARTERS = {"weft": _weft, "envoy": _envoy, "nginx": _nginx, "haproxy": _haproxy, "before": _before}
