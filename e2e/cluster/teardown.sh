# shellcheck shell=bash disable=SC2154 # lib.sh sets them
# Removes a cluster, also a partly started one. Sourced after lib.sh.

tear_down() {
  wait_for 20 "the cluster's processes to end" end_processes
  wait_for 20 "the containers to end" end_containers
  wait_for 10 "the mounts to go" unmount_all
  remove_namespaces
  wait_for 10 "the cgroups to go" remove_cgroups
  remove_files
}

# SIGKILL: after SIGTERM they would save state that is deleted next. Repeated until no process is left, because
# containerd may have been starting a shim.
end_processes() {
  local pids
  mapfile -t pids < <(processes | cut -d' ' -f1)
  signal KILL "${pids[@]}"
  ((${#pids[@]} == 0))
}

# Containers outlive their shims; they are identified by the cluster's cgroups.
end_containers() {
  local pids
  mapfile -t pids < <(cgroup_folders | while read -r folder; do cat "$folder/cgroup.procs" 2>/dev/null || true; done |
    sort -u)
  signal KILL "${pids[@]}"
  ((${#pids[@]} == 0))
}

# Deepest first. In cgroup v2 the directory is at the root, in v1 in each hierarchy.
cgroup_folders() {
  local root
  for root in /sys/fs/cgroup/{,*/}"$(cgroup "")"*; do
    [[ ! -d $root ]] || find "$root" -depth -type d
  done
}

remove_cgroups() {
  local folder
  for folder in $(cgroup_folders); do rmdir "$folder" || true; done
  [[ -z $(cgroup_folders) ]]
}

unmount_all() {
  local mounts
  mapfile -t mounts < <(awk -v below="$state/" 'index($5, below) == 1 { print $5 }' /proc/self/mountinfo | sort -r)
  ((${#mounts[@]})) || return 0
  umount "${mounts[@]}"
}

remove_namespaces() {
  local path
  for path in "/run/netns/$cluster-fabric" "/run/netns/$cluster"-[1-9]; do
    [[ ! -e $path ]] || ip netns delete "$(basename "$path")"
  done
}

# Files that containerd, CNI and the kubelet always write outside the state directory.
remove_files() {
  local address
  for address in "$state"/node-*/run/io.containerd.runtime.v2.task/k8s.io/*/address; do
    [[ ! -e $address ]] || rm -f "$(sed 's,^unix://,,' "$address")"
  done
  [[ ! -d /var/lib/cni/results ]] || find /var/lib/cni/results -type f -exec grep -q "$state/" {} \; -delete
  [[ ! -d /var/log/containers ]] || find /var/log/containers -lname "$state/*" -delete
  rm -rf "$state"
  # The last cluster removes what all kubelets share.
  ! rmdir /var/lib/weft-cluster || rm -f /var/lib/kubelet/device-plugins/kubelet.sock
  rmdir /run/containerd/s /run/containerd /var/lib/cni/results /var/lib/cni /var/log/containers \
    /var/lib/kubelet/device-plugins /var/lib/kubelet || true # only empty directories
}
