#!/usr/bin/env bash
# Tests the cluster scripts: starts a cluster of its own, uses it as the tests do, and removes it.
#
#   test.sh [--name weft-selftest]
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
source "$folder/lib.sh"

main() {
  parse_name --name weft-selftest "$@"
  need_root
  "$here/build.sh"
  trap '"$here/down.sh" --name "$cluster"' EXIT
  "$here/down.sh" --name "$cluster"

  check "up starts a cluster of one node" "$here/up.sh" --name "$cluster"
  check "up again changes nothing and takes less than 3 s" up_is_idle
  check "up --nodes 2 adds a node and restarts nothing" node_is_added
  check "kubeconfig works from the host" kubeconfig_works
  check "an image reaches each node" "$here/load-image.sh" --name "$cluster" "$("$here/build.sh" --print probe.tar)"
  check "a pod with init container and native sidecar is Ready within 10 s" pod_is_ready
  check "servers roll out on both nodes" servers_roll_out
  check "logs" logs_work
  check "exec" exec_works
  check "a pod resolves names of the cluster" names_resolve
  check "an external name fails to resolve at once" outside_name_is_refused
  check "a pod reaches a Service on both nodes" service_reaches client
  check "a pod reaches itself by its Service" service_reaches "$(first_server)"
  check "a pod sees the address of the pod that calls it" source_is_kept
  check "a Job completes" job_completes
  check "a rollout replaces pods" rollout_works
  check "Pod Security is enforced" pod_security_refuses
  check "a ValidatingAdmissionPolicy is enforced" policy_refuses
  check "traffic flows while the API server is stopped" api_server_stops
  check "the API server starts again" api_server_starts
  check "up repairs what is broken" up_repairs
  check "down leaves nothing" down_leaves_nothing
  check "down leaves nothing of a partly started cluster" partly_started_is_removed

  echo "$passed passed, $failed failed"
  ((failed == 0))
}

# === reporting ===

passed=0 failed=0

check() {
  local what=$1 began=$EPOCHREALTIME status output
  shift
  set +e # not `if`, which would disable errexit inside the command
  output=$(
    set -e
    "$@" 2>&1
  )
  status=$?
  set -e
  if ((status == 0)); then
    passed=$((passed + 1))
    printf 'ok    %5.1f s  %s\n' "$(elapsed "$began")" "$what"
  else
    failed=$((failed + 1))
    printf 'FAIL  %5.1f s  %s\n%s\n' "$(elapsed "$began")" "$what" "${output//$'\n'/$'\n'        }"
  fi
}

# errexit ignores a command after `!`, but not a failing function.
fails() { ! "$@"; }

elapsed() { awk -v began="$1" -v now="$EPOCHREALTIME" 'BEGIN { print now - began }'; }

# === up ===

up_is_idle() {
  local before began=$EPOCHREALTIME
  before=$(processes)
  "$here/up.sh" --name "$cluster"
  [[ $(processes) == "$before" ]]
  awk -v took="$(elapsed "$began")" 'BEGIN { exit took >= 3 }'
}

node_is_added() {
  local before
  before=$(pids bin/kube-apiserver)
  "$here/up.sh" --name "$cluster" --nodes 2
  [[ $(pids bin/kube-apiserver) == "$before" ]]
  [[ $(kubectl get nodes -o name | wc -l) == 2 ]]
}

kubeconfig_works() {
  KUBECONFIG=$("$here/kubeconfig.sh" --name "$cluster") "$("$here/build.sh" --print kubectl)" auth can-i '*' '*'
}

# === pods ===

# container NAME PROBE-COMMAND [FIELDS]
container() {
  echo "{name: $1, image: 'localhost/weft/probe:cluster', imagePullPolicy: Never, args: [$2]${3:+, $3}}"
}

pod_is_ready() {
  # Pods are refused until the namespace has its default service account, a moment after the cluster is up.
  wait_for 10 "the default account" kubectl get serviceaccount default
  kubectl apply -f - <<END
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: $cluster-1
  initContainers:
  - $(container first "done")
  - $(container sidecar serve "restartPolicy: Always")
  containers:
  - $(container client "sleep")
END
  kubectl wait --for=condition=Ready pod/client --timeout=10s
}

servers_roll_out() {
  kubectl apply -f - <<END
apiVersion: apps/v1
kind: Deployment
metadata: {name: server}
spec:
  replicas: 2
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - topologyKey: kubernetes.io/hostname
        maxSkew: 1
        whenUnsatisfiable: DoNotSchedule
        labelSelector: {matchLabels: {app: server}}
        matchLabelKeys: [pod-template-hash]
      containers:
      - $(container server serve "readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}")
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports: [{port: 80, targetPort: 8080}]
END
  kubectl rollout status deployment/server --timeout=20s
  [[ $(kubectl get pods -l app=server -o jsonpath='{range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort -u | wc -l) == 2 ]]
}

first_server() { kubectl get pods -l app=server -o jsonpath='{.items[0].metadata.name}'; }

logs_work() { [[ $(kubectl logs client -c sidecar) == "serving as client" ]]; }

exec_works() { [[ $(probe get http://127.0.0.1:8080) == *"server client"* ]]; }

probe() { kubectl exec client -c client -- /probe "$@"; }

names_resolve() {
  [[ $(probe lookup kubernetes.default) == 198.19.0.1 ]]
  [[ $(probe lookup server) == $(kubectl get service server -o jsonpath='{.spec.clusterIP}') ]]
}

outside_name_is_refused() {
  local began=$SECONDS
  fails probe lookup outside.example.
  ((SECONDS - began < 3))
}

# === Services ===

# service_reaches POD: sends requests until every server has answered.
service_reaches() {
  local servers
  servers=$(kubectl get pods -l app=server -o name | wc -l)
  [[ $(kubectl exec "$1" -- /probe get http://server 20 | awk '{ print $2 }' | sort -u | wc -l) == "$servers" ]]
}

source_is_kept() {
  local address
  address=$(kubectl get pod client -o jsonpath='{.status.podIP}')
  [[ $(probe get http://server 20 | awk '{ print $4 }' | sort -u) == "$address" ]]
}

# === controllers and admission ===

job_completes() {
  kubectl apply -f - <<END
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  template:
    spec: {restartPolicy: Never, containers: [$(container job "done")]}
END
  kubectl wait --for=condition=Complete job/job --timeout=20s
}

rollout_works() {
  local before
  mapfile -t before < <(kubectl get pods -l app=server -o name)
  kubectl rollout restart deployment/server
  kubectl rollout status deployment/server --timeout=30s
  kubectl wait --for=delete "${before[@]}" --timeout=20s
}

pod_security_refuses() {
  local output
  kubectl create namespace strict
  kubectl label namespace strict pod-security.kubernetes.io/enforce=restricted
  output=$(fails kubectl -n strict run pod --image localhost/weft/probe:cluster 2>&1)
  [[ $output == *PodSecurity* ]]
  kubectl delete namespace strict --timeout=20s
}

policy_refuses() {
  kubectl apply -f - <<'END'
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-secrets-named-x}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [secrets]}]
  validations: [{expression: "object.metadata.name != 'x'", message: "not this name"}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-secrets-named-x}
spec: {policyName: no-secrets-named-x, validationActions: [Deny]}
END
  wait_for 20 "the policy to take effect" secret_is_refused
}

secret_is_refused() { [[ $(kubectl create secret generic x --dry-run=server 2>&1) == *"not this name"* ]]; }

# === the API server ===

# The client runs in the node's network namespace instead of a pod, because exec needs the API server.
api_server_stops() {
  local server
  server=$(kubectl get service server -o jsonpath='{.spec.clusterIP}')
  "$here/apiserver.sh" --name "$cluster" stop
  fails kubectl get --raw /readyz
  nsenter --net="/run/netns/$(netns 1)" "$("$here/build.sh" --print probe)" get "http://$server"
}

api_server_starts() {
  local before
  before=$(processes | grep -v kubectl)
  "$here/apiserver.sh" --name "$cluster" start
  [[ -z $(comm -23 <(sort <<<"$before") <(processes | sort)) ]] # the other processes are still running
  kubectl run after --image localhost/weft/probe:cluster --image-pull-policy Never -- sleep
  kubectl wait --for=condition=Ready pod/after --timeout=20s
}

up_repairs() {
  local broken
  mapfile -t broken < <(pids bin/kube-scheduler)
  signal KILL "${broken[@]}"
  "$here/up.sh" --name "$cluster"
  [[ $(kubectl get nodes -o name | wc -l) == 1 ]]
}

# === down ===

down_leaves_nothing() {
  local sockets socket
  mapfile -t sockets < <(cat "$state"/node-*/run/io.containerd.runtime.v2.task/k8s.io/*/address | sed 's,^unix://,,')
  ((${#sockets[@]}))
  "$here/down.sh" --name "$cluster"
  no_traces
  for socket in "${sockets[@]}"; do [[ ! -e $socket ]]; done
}

partly_started_is_removed() {
  local up
  "$here/up.sh" --name "$cluster" &
  up=$!
  wait_for 20 "the first node" test -e "$state/node-1/containerd.sock"
  signal KILL "$up"
  "$here/down.sh" --name "$cluster"
  no_traces
}

# Searched by the cluster's name, without the functions that remove them.
no_traces() {
  local traces
  traces=$(
    set +e
    grep -l --text "${state%?}[${state: -1}]/" /proc/[0-9]*/cmdline 2>/dev/null # which does not match grep's own
    grep -e "$state/" -e "/netns/$cluster-" /proc/self/mountinfo
    grep -lr "$state/" /var/lib/cni
    find /sys/fs/cgroup /run/netns /var/lib/{cni,kubelet,weft-cluster} /var/log/{containers,pods} -maxdepth 2 \
      \( -name "*$cluster*" -o -lname "$state/*" \) 2>/dev/null
    true
  )
  echo "$traces"
  [[ -z $traces ]]
}

main "$@"
