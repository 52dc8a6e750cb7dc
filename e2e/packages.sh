#!/usr/bin/env bash
# Installs what the tests without a cluster call, where it is missing: network namespaces, iptables, a browser, compilers for
# probes and for libFuzzer, and the Python that the benchmarks are written in.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster/lib.sh"

need_commands ip:iproute2 iptables-nft-restore:iptables unshare:util-linux gcc:gcc g++:g++ chromium:chromium python3:python3
