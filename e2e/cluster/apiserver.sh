#!/usr/bin/env bash
# Stops a cluster's API server, or starts it again, for tests of outages.
#
#   apiserver.sh [--name weft] stop|start
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
source "$folder/lib.sh"
source "$folder/control-plane.sh"

main() {
  parse_name "$@"
  need_root
  [[ -e $state/complete ]] || die "cluster $cluster is not up: run up.sh --name $cluster"
  case ${rest[*]} in
    stop) stop ;;
    start) start ;;
    *) refuse "the argument must be stop or start" ;;
  esac
}

# SIGKILL, as in a crash: after SIGTERM it would keep watches open for ten seconds or more.
stop() {
  local pids
  mapfile -t pids < <(pids bin/kube-apiserver)
  signal KILL "${pids[@]}"
  wait_for 5 "the API server to end" gone bin/kube-apiserver
}

start() {
  ! gone bin/kube-apiserver || start_apiserver
  wait_for 60 "the API server" api_serves
}

main "$@"
