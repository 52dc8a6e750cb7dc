#!/usr/bin/env bash
# Prints the path of a kubeconfig of a cluster's administrator, which works from the host.
#
#   kubeconfig.sh [--name weft]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse_name "$@"
((${#rest[@]} == 0)) || refuse "no such option: ${rest[0]}"
[[ -e $state/complete ]] || die "cluster $cluster is not up: run up.sh --name $cluster"
echo "$state/admin.kubeconfig"
