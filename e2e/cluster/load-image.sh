#!/usr/bin/env bash
# Imports image archives (OCI or Docker) into each node of a cluster, under the name in the archive.
#
#   load-image.sh [--name weft] ARCHIVE...
#
# Names must be complete (localhost/team/image:tag): an image without a registry is not found. There is no registry to
# pull from, so a pod's imagePullPolicy must be Never or IfNotPresent.
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
source "$folder/lib.sh"
source "$folder/node.sh"

parse_name "$@"
((${#rest[@]})) || refuse "no archive given"
need_root
for archive in "${rest[@]}"; do
  [[ -r $archive ]] || die "cannot read $archive"
done
[[ -e $state/complete ]] || die "cluster $cluster is not up: run up.sh --name $cluster"
for number in $(node_numbers); do
  step "loading images into $cluster-$number" import "$number" "${rest[@]}"
done
