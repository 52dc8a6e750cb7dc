#!/usr/bin/env bash
# Prints the path of a cluster's administrator kubeconfig for use on the host.
#
#   kubeconfig.sh [--name weft]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

parse_name "$@"
((${#rest[@]} == 0)) || refuse "unknown option: ${rest[0]}"
[[ -e $state/complete ]] || die "cluster $cluster is not up: run up.sh --name $cluster"
echo "$state/admin.kubeconfig"
