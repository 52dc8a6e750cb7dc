"""A minimal Envoy bootstrap: the router filter and no other."""

from pathlib import Path

TYPE = "type.googleapis.com/envoy"
HTTP_OPTIONS = f"{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions"
# Weft's values, so that flow control is the same.
HTTP2 = {
    "max_concurrent_streams": 1000,
    "initial_stream_window_size": 1 << 20,
    "initial_connection_window_size": 1 << 24,
}
UNLIMITED = {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000, "max_retries": 1000}


def bootstrap(role: str, listen: int, upstream: int, certs: Path, count: int = 0) -> dict:
    """`count` is the number of additional clusters, each with a virtual host (role config), or of endpoints (role
    endpoints)."""
    protocol = {"http2_protocol_options": HTTP2} if role == "h2" else {"http_protocol_options": {}}
    if role == "tcp":
        protocol = None
    hosts = [loopback(number) for number in range(count)] if role == "endpoints" else ["127.0.0.1"]
    clusters = [_cluster("upstream", [_address(upstream, host) for host in hosts], protocol)]
    if role == "client":
        clusters[0]["transport_socket"] = _tls("Upstream", certs, "a", {"sni": "localhost"}, is_mutual=True)
    hosts = [_virtual_host("all", ["*"], "upstream")]
    for number in range(count if role == "config" else 0):
        name = f"service-{number}"
        clusters.append(_cluster(name, [_address(20000), _address(20001)], protocol))
        hosts.append(_virtual_host(name, [f"{name}.bench", f"{name}.bench.svc.cluster.local"], name))
    chain = {"filters": [_tcp_proxy() if role == "tcp" else _connection_manager(role, hosts)]}
    if role == "tlsterm":
        chain["transport_socket"] = _tls("Downstream", certs, "b", {})
    if role == "server":
        required = {"require_client_certificate": True}
        chain["transport_socket"] = _tls("Downstream", certs, "b", required, is_mutual=True)
    listener = {"name": "listener", "address": _address(listen), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": clusters}}


def loopback(number: int) -> str:
    """A loopback address, different for each number."""
    return f"127.0.{number // 250}.{number % 250 + 1}"


def _address(port: int, host: str = "127.0.0.1") -> dict:
    return {"socket_address": {"address": host, "port_value": port}}


def _cluster(name: str, addresses: list[dict], protocol: dict | None) -> dict:
    endpoints = [{"endpoint": {"address": address}} for address in addresses]
    cluster = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {"thresholds": [UNLIMITED]},
    }
    if protocol:
        options = {"@type": HTTP_OPTIONS, "explicit_http_config": protocol}
        cluster["typed_extension_protocol_options"] = {HTTP_OPTIONS.removeprefix("type.googleapis.com/"): options}
    return cluster


def _virtual_host(name: str, domains: list[str], cluster: str) -> dict:
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "15s"}}
    return {"name": name, "domains": domains, "routes": [route]}


def _connection_manager(role: str, hosts: list[dict]) -> dict:
    router = {"name": "router", "typed_config": {"@type": f"{TYPE}.extensions.filters.http.router.v3.Router"}}
    config = {
        "@type": f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP2" if role == "h2" else "AUTO",
        "route_config": {"name": "routes", "virtual_hosts": hosts},
        "http_filters": [router],
        "http2_protocol_options": HTTP2,
    }
    return {"name": "http", "typed_config": config}


def _tcp_proxy() -> dict:
    kind = f"{TYPE}.extensions.filters.network.tcp_proxy.v3.TcpProxy"
    return {"name": "tcp", "typed_config": {"@type": kind, "stat_prefix": "in", "cluster": "upstream"}}


def _tls(direction: str, certs: Path, account: str, options: dict, is_mutual: bool = False) -> dict:
    """TLS 1.3 with a certificate of certs.sh. Mutual: the peer must have one too."""
    certificate = {
        "certificate_chain": {"filename": str(certs / f"{account}.pem")},
        "private_key": {"filename": str(certs / f"{account}.key")},
    }
    versions = {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
    common = {"tls_certificates": [certificate], "tls_params": versions}
    if is_mutual:
        common["validation_context"] = {"trusted_ca": {"filename": str(certs / "ca.pem")}}
    kind = f"{TYPE}.extensions.transport_sockets.tls.v3.{direction}TlsContext"
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": common} | options}
