"""The Weft proxy outside of a pod: the documents that the operator would write, and the environment that the injector
would set. Nothing is redirected, so the address of the only Service is the proxy's own listener."""

import json
import os
import subprocess
import sys
from pathlib import Path

from rig.envoy import loopback

CHECKOUT = Path(__file__).resolve().parents[2]
# Namespace and trust domain are those in the certificates of certs.sh; the names of the certificates are ServiceAccounts.
NAMESPACE = "default"
TRUST_DOMAIN = "bench.local"
SERVICE = "backend"

# Outbound roles, with the protocol of the Service's port.
PROTOCOLS = {
    "h1": "http",
    "h2": "http2",
    "tcp": "tcp",
    "config": "http",
    "routes": "http",
    "endpoints": "http",
    "client": "http",
}
# Inbound roles. Connections go to the local application, without ports and routes.
INBOUND = ("policy", "tlsterm", "server")
ROLES = (*PROTOCOLS, *INBOUND)
# The ServiceAccounts of the roles with an identity.
ACCOUNTS = {"client": "a", "server": "b"}

# The folder of the identity, beside the documents.
IDENTITY = "identity"

# What the operator writes for a rule with only `retry: {}` and `timeouts: {request: 15s}`, and limits that are never
# reached.
RETRY = {
    "attempts": 1,
    "codes": [502, 503, 504],
    "methods": ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"],
    "backoffMs": 25,
}
REQUEST_TIMEOUT_MS = 15_000
LIMITS = {"maxConnections": 100_000, "maxRequests": 100_000, "maxPending": 100_000}
# With a limit of connections, no requests share one.
SHARING_LIMITS = {"maxRequests": 100_000}


def binary() -> Path:
    """The binary that WEFT_PROXY names, or else the release build of this checkout, which is built if it is missing."""
    if os.environ.get("WEFT_PROXY"):
        return named("WEFT_PROXY")
    if not _built():
        build = ["cargo", "build", "--quiet", "--locked", "--release", "--package", "weft-proxy"]
        subprocess.run(build, cwd=CHECKOUT, check=True)
    return _built()[-1]


def named(variable: str) -> Path:
    """The program that an environment variable names. Exits with one line if it cannot be started."""
    path = Path(os.environ.get(variable, ""))
    if not path.is_file():
        sys.exit(f"{variable}: {str(path)!r} is not a file: name a binary of weft-proxy")
    if not os.access(path, os.X_OK):
        sys.exit(f"{variable}: {str(path)!r} is not executable: chmod +x {path}")
    return path


def _built() -> list[Path]:
    target = CHECKOUT / os.environ.get("CARGO_TARGET_DIR", "target")
    return sorted(target.glob("*/release/weft-proxy"), key=lambda path: path.stat().st_mtime)


def environment(role: str, listen: int, upstream: int, certs: Path, folder: Path) -> dict[str, str]:
    """The proxy's environment variables. All other settings have their defaults."""
    local = {"outboundPort": listen}
    if role in INBOUND:
        local = {"inboundPort": listen, "application": f"127.0.0.1:{upstream}"}
    if role == "tlsterm":
        local |= {"certificate": str(certs / "b.pem"), "key": str(certs / "b.key")}
    if role == "server":
        # The driver is no proxy of the mesh.
        local["mutualTls"] = True
    identity = {"WEFT_IDENTITY": f"directory:{folder / IDENTITY}"} if role in ACCOUNTS else {}
    return identity | {
        "WEFT_NAMESPACE": NAMESPACE,
        "WEFT_SOURCE": f"directory:{folder}",
        "WEFT_WORKERS": "1",
        "WEFT_LOCAL": json.dumps(local),
        "MIMALLOC_PURGE_DELAY": "10",
    }


def write_files(role: str, listen: int, upstream: int, certs: Path, folder: Path, count: int = 0) -> None:
    """Writes the documents of the proxy, and its identity if the role has one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in documents(role, listen, upstream, count).items():
        (folder / f"{name}.json").write_text(json.dumps(body))
    if role in ACCOUNTS:
        _write_identity(ACCOUNTS[role], certs, folder / IDENTITY)


def _write_identity(account: str, certs: Path, folder: Path) -> None:
    """The files that a proxy reads its identity from, made of those of certs.sh."""
    folder.mkdir(exist_ok=True)
    texts = {"tls.crt": f"{account}.pem", "tls.key": f"{account}.key", "bundle.json": "ca.pem"}
    for name, source in texts.items():
        try:
            text = (certs / source).read_text()
        except OSError as error:
            sys.exit(f"cannot read {certs / source}: {error.strerror}: bench/certs.sh {certs} creates it")
        is_bundle = name == "bundle.json"
        (folder / name).write_text(json.dumps({"domains": {TRUST_DOMAIN: [text]}}) if is_bundle else text)


def documents(role: str, listen: int, upstream: int, count: int = 0) -> dict[str, dict]:
    """The exported and the private document of the namespace.

    `count` is the number of additional Services (role config), of additional routes of the port (routes), or of
    endpoints (endpoints).
    """
    if role == "policy":
        deny = {"action": "deny", "paths": [{"prefix": "/private"}]}
        policies = [{"name": "private", "target": "namespace", "rules": [deny]}]
        return {f"x.{NAMESPACE}": {}, f"i.{NAMESPACE}": {"policies": policies}}
    if role in INBOUND:
        return {f"x.{NAMESPACE}": {}, f"i.{NAMESPACE}": {}}
    addresses = [f"{loopback(number)}:{upstream}" for number in range(count if role == "endpoints" else 1)]
    peer = {"hasProxy": True, "serviceAccount": ACCOUNTS["server"]} if role == "client" else {}
    endpoints = [{"address": address} | peer for address in addresses]
    routes = _routes(SERVICE, listen, count if role == "routes" else 0)
    limits = SHARING_LIMITS if role == "client" else LIMITS
    service = _service(SERVICE, ["127.0.0.1"], listen, PROTOCOLS[role], routes, endpoints, limits)
    further = [_further_service(number) for number in range(count if role == "config" else 0)]
    return {f"x.{NAMESPACE}": {"services": [service, *further]}, f"i.{NAMESPACE}": {}}


def path_of_last_route(count: int) -> str:
    """A request path that matches the last of the additional routes."""
    return f"/routes/{count - 1}/item"


def _service(
    name: str,
    addresses: list[str],
    port: int,
    protocol: str,
    routes: dict,
    endpoints: list[dict],
    limits: dict = LIMITS,
) -> dict:
    spoken = {"port": port, "protocol": protocol, "endpoints": endpoints}
    if protocol != "tcp":
        spoken["routes"] = routes
    return {"name": name, "addresses": addresses, "settings": {"limits": limits}, "ports": [spoken]}


def _further_service(number: int) -> dict:
    name, port = f"service-{number}", 80
    address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    endpoints = [{"address": "127.0.0.1:20000"}, {"address": "127.0.0.1:20001"}]
    return _service(name, [address], port, "http", _routes(name, port, 0), endpoints)


def _routes(service: str, port: int, further: int) -> dict:
    """A rule for all requests, after `further` rules with a prefix each."""
    prefixes = [f"/routes/{number}" for number in range(further)] + ["/"]
    matches = [{"rule": rule, "path": {"prefix": prefix}} for rule, prefix in enumerate(prefixes)]
    return {"matches": matches, "rules": [_rule(service, port, number) for number in range(len(prefixes))]}


def _rule(service: str, port: int, number: int) -> dict:
    cluster = {"namespace": NAMESPACE, "service": service, "port": port}
    return {
        "route": {"namespace": NAMESPACE, "name": service},
        "name": str(number),
        "requestTimeoutMs": REQUEST_TIMEOUT_MS,
        "retry": RETRY,
        "action": {"forward": {"backends": [{"weight": 1, "target": {"cluster": cluster}}]}},
    }

