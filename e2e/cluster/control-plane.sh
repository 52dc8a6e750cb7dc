# shellcheck shell=bash disable=SC2154 # lib.sh sets them
# The control plane: certificates, etcd, API server, controller manager, scheduler, and a forwarder from the host. All
# of it runs in the first node's network namespace, so that the API server reaches webhooks through their Services.
# Sourced after lib.sh.

# === certificates ===

# Creates missing certificates; a second run changes nothing.
make_certificates() {
  local pki=$state/pki
  mkdir -p "$pki"
  [[ -e $pki/service-accounts.key ]] || openssl ecparam -name prime256v1 -genkey -noout -out "$pki/service-accounts.key"
  [[ -e $pki/service-accounts.pub ]] || openssl ec -in "$pki/service-accounts.key" -pubout -out "$pki/service-accounts.pub"
  [[ -e $pki/ca.crt ]] ||
    openssl req -x509 -config <(openssl_config "basicConstraints = critical, CA:TRUE") -extensions extensions -days 3650 \
      -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=weft-cluster-$cluster" \
      -keyout "$pki/ca.key" -out "$pki/ca.crt"
  # 127.0.0.1 is the forwarder's address on the host.
  issue apiserver /CN=kube-apiserver "IP:127.0.0.1, IP:$api_address, IP:$api_service, DNS:localhost, DNS:kubernetes,
    DNS:kubernetes.default, DNS:kubernetes.default.svc, DNS:kubernetes.default.svc.cluster.local"
  issue apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
  issue admin /O=system:masters/CN=admin
  issue kube-controller-manager /CN=system:kube-controller-manager
  issue kube-scheduler /CN=system:kube-scheduler
  issue kube-proxy /CN=system:kube-proxy
}

# issue NAME SUBJECT [ALTERNATIVE-NAMES]
issue() {
  local pki=$state/pki
  [[ ! -e $pki/$1.crt ]] || return 0
  local extensions="basicConstraints = critical, CA:FALSE
extendedKeyUsage = clientAuth, serverAuth${3:+
subjectAltName = ${3//$'\n'/}}"
  openssl req -x509 -config <(openssl_config "$extensions") -extensions extensions -days 3650 \
    -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" \
    -keyout "$pki/$1.key" -out "$pki/$1.crt.new"
  mv "$pki/$1.crt.new" "$pki/$1.crt"
}

# A complete configuration: the machine's default one would add extensions.
openssl_config() { printf '[req]\ndistinguished_name = subject\n[subject]\n[extensions]\n%s\n' "$1"; }

# kubeconfig USER SERVER: prints a kubeconfig with embedded certificates, which can be copied.
kubeconfig() {
  local pki=$state/pki
  cat <<END
apiVersion: v1
kind: Config
current-context: $cluster
contexts: [{name: $cluster, context: {cluster: $cluster, user: $1}}]
clusters:
- name: $cluster
  cluster: {server: "$2", certificate-authority-data: $(base64 -w0 "$pki/ca.crt")}
users:
- name: $1
  user: {client-certificate-data: $(base64 -w0 "$pki/$1.crt"), client-key-data: $(base64 -w0 "$pki/$1.key")}
END
}

# === programs ===

# Without fsync: a test cluster needs no durability across a crash of the machine.
start_etcd() {
  spawn "$(netns 1)" bin/etcd --name weft --data-dir "$state/etcd" --unsafe-no-fsync \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster weft=http://127.0.0.1:2380
}

# InternalIP: otherwise logs and exec would resolve the node's name.
start_apiserver() {
  local pki=$state/pki
  spawn "$(netns 1)" bin/kube-apiserver \
    --etcd-servers http://127.0.0.1:2379 \
    --bind-address "$api_address" --advertise-address "$api_address" --secure-port 6443 \
    --service-cluster-ip-range "$service_range" \
    --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" --client-ca-file "$pki/ca.crt" \
    --kubelet-client-certificate "$pki/apiserver-kubelet-client.crt" \
    --kubelet-client-key "$pki/apiserver-kubelet-client.key" \
    --kubelet-certificate-authority "$pki/ca.crt" \
    --kubelet-preferred-address-types InternalIP \
    --service-account-issuer https://kubernetes.default.svc.cluster.local \
    --service-account-signing-key-file "$pki/service-accounts.key" \
    --service-account-key-file "$pki/service-accounts.pub" \
    --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction \
    --allow-privileged
}

# Without leader election: there is one of each, and with election they would exit when they cannot renew their lease in
# tests that stop the API server.
start_controllers() {
  local pki=$state/pki
  spawn "$(netns 1)" bin/kube-controller-manager \
    --kubeconfig "$state/kube-controller-manager.kubeconfig" --bind-address 127.0.0.1 --leader-elect=false \
    --controllers '*,-node-ipam-controller' --use-service-account-credentials \
    --root-ca-file "$pki/ca.crt" --service-account-private-key-file "$pki/service-accounts.key" \
    --cluster-signing-cert-file "$pki/ca.crt" --cluster-signing-key-file "$pki/ca.key" \
    --flex-volume-plugin-dir "$state/volume-plugins" --kube-api-qps 100 --kube-api-burst 200
  spawn "$(netns 1)" bin/kube-scheduler \
    --kubeconfig "$state/kube-scheduler.kubeconfig" --bind-address 127.0.0.1 --leader-elect=false
}

start_forward() { spawn - bin/forward "$state/port" "/run/netns/$(netns 1)" "$api_address:6443"; }

# === readiness ===

api_serves() { kubectl get --raw /readyz; }

nodes_ready() {
  local count
  count=$(kubectl get nodes -o jsonpath='{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' |
    grep -c True)
  ((count == $(node_numbers | wc -l)))
}

dns_ready() { [[ $(kubectl -n kube-system get deployment coredns -o jsonpath='{.status.readyReplicas}') == 1 ]]; }

# The API server's Service is reachable on each node, which pods and webhooks need.
services_reachable() {
  local number
  for number in $(node_numbers); do
    reaches "$(netns "$number")" "$api_service" 443
    reaches "$(netns "$number")" "$dns_service" 53
  done
}

# reaches NETNS ADDRESS PORT
reaches() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  timeout 1 nsenter --net="/run/netns/$1" bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$2" "$3"
}
