# shellcheck shell=bash disable=SC2154 # lib.sh sets them
# One node: its network namespace, containerd, kubelet and kube-proxy, all below $state/node-N.
# Sourced after lib.sh and control-plane.sh.

# === network ===
#
#   fabric namespace: bridge `fabric` 198.18.0.1/24 -- veth node1 ... nodeN
#   node namespace N: eth0 198.18.0.(N+1), a route to each other node's pods, and a veth for each pod

make_fabric() {
  local name
  name=$(netns fabric)
  [[ ! -e /run/netns/$name ]] || return 0
  ip netns add "$name"
  ip -n "$name" link set lo up
  ip -n "$name" link add fabric type bridge
  ip -n "$name" address add 198.18.0.1/24 dev fabric
  ip -n "$name" link set fabric up
  # The fabric forwards but has no default route, so connections to other networks fail at once instead of timing out.
  nsenter --net="/run/netns/$name" sysctl -qw net.ipv4.ip_forward=1
}

# make_node_network N
make_node_network() {
  local name other
  name=$(netns "$1")
  ip netns add "$name"
  ip -n "$name" link set lo up
  ip link add eth0 netns "$name" type veth peer name "node$1" netns "$(netns fabric)"
  ip -n "$(netns fabric)" link set "node$1" master fabric up
  ip -n "$name" address add "$(node_address "$1")/24" dev eth0
  ip -n "$name" link set eth0 up
  # Service addresses need a route before they are translated.
  ip -n "$name" route add default via 198.18.0.1
  nsenter --net="/run/netns/$name" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 \
    net.ipv4.conf.default.send_redirects=0
  ip -n "$(netns fabric)" route add "$(node_pods "$1")" via "$(node_address "$1")"
  for other in $(node_numbers); do
    [[ $other != "$1" ]] || continue
    ip -n "$name" route replace "$(node_pods "$other")" via "$(node_address "$other")"
    ip -n "$(netns "$other")" route replace "$(node_pods "$1")" via "$(node_address "$1")"
  done
}

# ptp instead of bridge: packets between pods are routed through the node, so that Services work between pods of one
# node also without br_netfilter in the kernel. No masquerading: peers see a pod's own address.
cni_config() {
  cat <<END
{
  "cniVersion": "1.0.0",
  "name": "weft-cluster.$cluster.$1",
  "plugins": [
    {
      "type": "ptp",
      "ipam": {
        "type": "host-local",
        "dataDir": "$state/node-$1/addresses",
        "ranges": [[{"subnet": "$(node_pods "$1")"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
END
}

# === cgroups ===

# Each node's pods are below their own cgroup. In cgroup v1 it is created in every hierarchy, and its cpuset must be
# filled; in v2 the controllers must be delegated to it.
make_cgroup() {
  local root=/sys/fs/cgroup name controller hierarchy file
  name=$(cgroup "$1")
  if [[ -e $root/cgroup.controllers ]]; then
    mkdir -p "$root/$name"
    for controller in $(<"$root/cgroup.controllers"); do
      echo "+$controller" >"$root/cgroup.subtree_control" || true # some may be in use in v1
    done
    return
  fi
  for hierarchy in "$root"/*/; do
    [[ -e $hierarchy/tasks ]] || continue # an empty v2 hierarchy, which some machines mount too
    mkdir -p "$hierarchy/$name"
    for file in cpuset.cpus cpuset.mems; do
      [[ ! -e $hierarchy/$file ]] || cat "$hierarchy/$file" >"$hierarchy/$name/$file"
    done
  done
}

# === containerd ===

# restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower the score, and would fail.
# netns_mounts_under_state_dir and Root: otherwise pods' namespaces and runc's state would be in the machine's
# directories.
containerd_config() {
  local node=$state/node-$1 cni=/usr/lib/cni
  [[ -e $cni/ptp ]] || cni=/opt/cni/bin
  cat <<END
version = 2
root = "$node/containerd"
state = "$node/run"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "$(containerd_socket "$1")"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/weft/pause:cluster"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
disable_apparmor = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "$cni"
conf_dir = "$node/cni"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "$node/runc"
END
}

# Unix socket paths have at most 107 bytes: keep it short.
containerd_socket() { echo "$state/node-$1/containerd.sock"; }

start_containerd() {
  local node=$state/node-$1
  mkdir -p "$node/cni"
  cni_config "$1" >"$node/cni/weft.conflist"
  containerd_config "$1" >"$node/containerd.toml"
  link_program "node-$1/bin/containerd" containerd
  spawn "$(netns "$1")" "node-$1/bin/containerd" --config "$node/containerd.toml"
}

containerd_serves() { ctr --address "$(containerd_socket "$1")" version; }

# import N ARCHIVE...: returns when containerd's CRI plugin, which the kubelet uses, has the image and has labelled it.
import() {
  local socket archive
  socket=$(containerd_socket "$1")
  shift
  for archive; do
    ctr --address "$socket" --namespace k8s.io images import "$archive"
  done
  wait_for 10 "imported images" images_managed "$socket"
}

images_managed() {
  [[ -z $(ctr --address "$1" --namespace k8s.io images ls | awk 'NR > 1 && !/io.cri-containerd.image=managed/') ]]
}

# === kubelet and kube-proxy ===

# Images cannot be pulled again, so image garbage collection is off; so is eviction by disk usage.
kubelet_config() {
  local node=$state/node-$1
  cat <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $(node_address "$1")
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $state/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $state/pki/node-$1.crt
tlsPrivateKeyFile: $state/pki/node-$1.key
clusterDNS: [$dns_service]
clusterDomain: cluster.local
resolvConf: $state/resolv.conf
containerRuntimeEndpoint: unix://$(containerd_socket "$1")
podLogsDir: $node/pod-logs
volumePluginDir: $node/volume-plugins
cgroupDriver: cgroupfs
cgroupRoot: /$(cgroup "$1")
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
oomScoreAdj: 0
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
maxPods: 200
serializeImagePulls: false
kubeAPIQPS: 100
kubeAPIBurst: 200
END
}

start_kubelet() {
  local node=$state/node-$1
  issue "node-$1" "/O=system:nodes/CN=system:node:$cluster-$1" "IP:$(node_address "$1"), DNS:$cluster-$1"
  kubeconfig "node-$1" "https://$api_address:6443" >"$node/kubeconfig"
  kubelet_config "$1" >"$node/kubelet.yaml"
  spawn "$(netns "$1")" "node-$1/bin/kubelet" --config "$node/kubelet.yaml" --kubeconfig "$node/kubeconfig" \
    --root-dir "$node/kubelet" --cert-dir "$state/pki" \
    --hostname-override "$cluster-$1" --node-ip "$(node_address "$1")" \
    --node-labels "topology.kubernetes.io/region=$cluster,topology.kubernetes.io/zone=zone-$1"
}

kube_proxy_config() {
  cat <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: $cluster-$1
clientConnection: {kubeconfig: $state/kube-proxy.kubeconfig}
clusterCIDR: $pod_range
conntrack: {maxPerCore: 0}
nftables: {minSyncPeriod: 100ms}
oomScoreAdj: 0
END
}

start_kube_proxy() {
  kube_proxy_config "$1" >"$state/node-$1/kube-proxy.yaml"
  spawn "$(netns "$1")" "node-$1/bin/kube-proxy" --config "$state/node-$1/kube-proxy.yaml"
}
