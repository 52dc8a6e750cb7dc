#!/usr/bin/env bash
# Installs missing packages for the tests without a cluster: network namespaces, iptables, a browser, C and C++
# compilers, Python, and the HTTP clients and servers that the proxy is tested with; builds those that are programs of
# the tests.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster/lib.sh"

need_commands ip:iproute2 iptables-nft-restore:iptables unshare:util-linux gcc:gcc g++:g++ chromium:chromium python3:python3 \
  node:nodejs javac:openjdk-17-jdk-headless nginx:nginx curl:curl openssl:openssl
python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
"$here/../../proxy/tests/peers/setup.sh" all
