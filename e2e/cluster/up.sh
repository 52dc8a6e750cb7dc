#!/usr/bin/env bash
# Starts a Kubernetes cluster on this machine; does nothing if it is up.
#
#   up.sh [--name weft] [--nodes 1]
#
# Clusters of different names run side by side. A cluster with fewer nodes than requested gets the missing ones; an
# unhealthy or partly started cluster is removed and started again.
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
source "$folder/lib.sh"
source "$folder/control-plane.sh"
source "$folder/node.sh"
source "$folder/teardown.sh"

main() {
  parse_name "$@"
  parse_nodes "${rest[@]}"
  need_root
  if healthy && enough_nodes; then
    say "cluster $cluster is up already"
    return
  fi
  lock_clusters
  "$here/build.sh"
  trap 'explain_failure $?' EXIT
  if ! healthy; then
    [[ ! -e $state ]] || say "cluster $cluster is not healthy: starting it again"
    step "clearing away what is left of cluster $cluster" tear_down
    say "starting cluster $cluster"
    step "starting the API server" start_api
  fi
  local missing number
  mapfile -t missing < <(comm -23 <(seq "$nodes") <(node_numbers))
  for number in "${missing[@]}"; do
    step "preparing node $cluster-$number" prepare_node "$number"
  done
  step "starting controllers and DNS" start_rest
  for number in "${missing[@]}"; do
    step "starting node $cluster-$number" start_node "$number"
  done
  step "waiting for nodes, DNS and Services" wait_usable
  touch "$state/complete"
  say "cluster $cluster is up after $SECONDS s: export KUBECONFIG=$state/admin.kubeconfig"
}

parse_nodes() {
  nodes=1
  while (($#)); do
    case $1 in
      --nodes) nodes=${2-}; shift $(($# > 1 ? 2 : 1)) ;;
      --nodes=*) nodes=${1#*=}; shift ;;
      *) refuse "unknown option: $1" ;;
    esac
  done
  [[ $nodes =~ ^[1-9]$ ]] || die "--nodes takes a number from 1 to $max_nodes, not '$nodes'"
}

explain_failure() { (($1 == 0)) || say "logs are in $state/log; down.sh removes the cluster"; }

# === is it up? ===

healthy() { [[ -e $state/complete ]] && [[ -z $(ended_programs) ]] && usable >/dev/null 2>&1; }

enough_nodes() { (($(node_numbers | wc -l) >= nodes)); }

# Prints each program that should be running and is not.
ended_programs() {
  local number expected=(bin/{etcd,kube-apiserver,kube-controller-manager,kube-scheduler,forward})
  for number in $(node_numbers); do
    expected+=("node-$number"/bin/{containerd,kubelet,kube-proxy})
  done
  comm -23 <(printf '%s\n' "${expected[@]}" | sort) <(processes | cut -d' ' -f2 | sort -u)
}

usable() { nodes_ready && dns_ready && services_reachable; }

wait_usable() {
  local began=$SECONDS ended
  until usable >/dev/null 2>&1; do
    ended=$(ended_programs)
    [[ -z $ended ]] || die "programs have exited, see their logs: ${ended//$'\n'/ }"
    ((SECONDS - began < 60)) || die "timed out after 60 s"
    sleep 0.2
  done
}

# === starting ===
# Nodes are prepared while the API server starts, which takes some seconds.

start_api() {
  mkdir -p "$state"
  chmod 700 "$state"
  # No upstream DNS server: the networks have no route to the outside.
  echo "# none" >"$state/resolv.conf"
  link_programs
  make_certificates
  make_fabric
  make_node_network 1
  start_etcd
  start_apiserver
  start_forward
  wait_for 5 "the forwarder" test -e "$state/port"
  write_kubeconfigs
}

link_programs() {
  local program
  for program in etcd forward; do
    link_program "bin/$program" "$("$here/build.sh" --print "$program")"
  done
  for program in kube-apiserver kube-controller-manager kube-scheduler kubectl; do
    link_program "bin/$program" "$("$here/build.sh" --print kubernetes)"
  done
}

write_kubeconfigs() {
  local user
  for user in kube-controller-manager kube-scheduler kube-proxy; do
    kubeconfig "$user" "https://$api_address:6443" >"$state/$user.kubeconfig"
  done
  kubeconfig admin "https://127.0.0.1:$(<"$state/port")" >"$state/admin.kubeconfig"
}

start_rest() {
  wait_for 60 "the API server" api_serves
  gone bin/kube-scheduler || return 0
  start_controllers
  kubectl apply --server-side -f "$here/manifests/coredns.yaml"
}

prepare_node() {
  local program
  mkdir -p "$state/node-$1"
  for program in kubelet kube-proxy; do
    link_program "node-$1/bin/$program" "$("$here/build.sh" --print kubernetes)"
  done
  [[ $1 == 1 ]] || make_node_network "$1"
  make_cgroup "$1"
  start_containerd "$1"
  wait_for 20 "containerd" containerd_serves "$1"
  import "$1" "$("$here/build.sh" --print pause.tar)" "$("$here/build.sh" --print coredns.tar)"
}

start_node() {
  start_kubelet "$1"
  start_kube_proxy "$1"
}

main "$@"
