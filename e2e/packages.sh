#!/usr/bin/env bash
# Installs what the tests without a cluster call, where it is missing: network namespaces, iptables and a browser.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/cluster/lib.sh"

need_commands ip:iproute2 iptables-nft-restore:iptables unshare:util-linux gcc:gcc chromium:chromium
