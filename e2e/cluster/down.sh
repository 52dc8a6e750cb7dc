#!/usr/bin/env bash
# Takes a cluster down, whole or half started, and leaves no trace of it.
#
#   down.sh [--name weft]
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
source "$folder/lib.sh"
source "$folder/teardown.sh"

parse_name "$@"
((${#rest[@]} == 0)) || refuse "no such option: ${rest[0]}"
need_root
lock_clusters
step "taking down cluster $cluster" tear_down
