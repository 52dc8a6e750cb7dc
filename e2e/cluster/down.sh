#!/usr/bin/env bash
# Removes a cluster, also a partly started one, and everything that belongs to it.
#
#   down.sh [--name weft]
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
source "$folder/lib.sh"
source "$folder/teardown.sh"

parse_name "$@"
((${#rest[@]} == 0)) || refuse "unknown option: ${rest[0]}"
need_root
lock_clusters
step "taking down cluster $cluster" tear_down
