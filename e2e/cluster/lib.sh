# shellcheck shell=bash disable=SC2034 # others use them
# What the scripts of this folder share: options, progress, waiting, and the names and processes of one cluster.
# Sourced after `set -euo pipefail`. It knows nothing of how the parts of a cluster are configured
# (control-plane.sh and node.sh do).

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The scripts are run from cron jobs and bare shells too, where root often lacks these.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin

# === options ===

# Takes --name out of the arguments and leaves the others in `rest`; sets `cluster` and `state`.
parse_name() {
  cluster=weft rest=()
  while (($#)); do
    case $1 in
      --name) cluster=${2-}; shift $(($# > 1 ? 2 : 1)) ;;
      --name=*) cluster=${1#*=}; shift ;;
      -h | --help) usage; exit 0 ;;
      *) rest+=("$1"); shift ;;
    esac
  done
  [[ $cluster =~ ^[a-z]([a-z0-9-]{0,28}[a-z0-9])?$ ]] ||
    die "a cluster's name is 1 to 30 lower-case letters, digits and dashes, not '$cluster'"
  state=/var/lib/weft-cluster/$cluster
}

# The usage of a script is the comment at its top.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

refuse() { die "$1"$'\n\n'"$(usage)"; }

need_root() { ((EUID == 0)) || die "a cluster needs root: namespaces, mounts and cgroups are made for it"; }

# === packages ===

# need_commands COMMAND:PACKAGE...: installs the Debian package of each command that is missing.
need_commands() {
  local missing=() pair
  for pair in "$@"; do command -v "${pair%:*}" >/dev/null || missing+=("${pair#*:}"); done
  install_packages "${missing[@]}"
}

install_packages() {
  (($#)) || return 0
  ((EUID == 0)) && command -v apt-get >/dev/null || die "missing: the package(s) $*; install them, or run this as root on Debian"
  step "installing $*" apt_install "$@"
}

# Debian starts the servers that it installs, unless a policy forbids it. (This runs in a step, a shell of its own.)
apt_install() {
  export DEBIAN_FRONTEND=noninteractive
  local policy=/usr/sbin/policy-rc.d
  if [[ ! -e $policy ]]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  fi
  apt-get update
  apt-get install --yes --no-install-recommends "$@"
}

# === progress ===
# Everything that is said goes to stderr: stdout is for what a script was asked to print.

say() { printf '%s\n' "$*" >&2; }

die() {
  say "$(basename "$0"): $*"
  exit 1
}

# step WHAT COMMAND...: runs the command with its output kept back, says how long it took when that is worth saying,
# and shows the output when it fails.
step() {
  local what=$1 began=$SECONDS log ticker status
  shift
  log=$(mktemp)
  tick "$what" 9>&- & # without the lock, which its sleep would hold on to
  ticker=$!
  set +e # and not `|| status=$?`, which would switch errexit off inside the command
  (
    set -e
    "$@"
  ) >"$log" 2>&1
  status=$?
  set -e
  kill "$ticker" 2>/dev/null || true
  wait "$ticker" 2>/dev/null || true
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
  if ((status)); then
    tail -n 40 "$log" >&2
    rm -f "$log"
    die "failed: $what"
  fi
  rm -f "$log"
  ((SECONDS - began < 1)) || say "  $what: $((SECONDS - began)) s"
}

# Says that a step still runs: a line that rewrites itself on a terminal, a line each half minute in a log.
tick() {
  local what=$1 began=$SECONDS lines=0 elapsed
  while sleep 1 && kill -0 $$ 2>/dev/null; do
    elapsed=$((SECONDS - began))
    if [[ -t 2 ]]; then
      printf '\r\033[K  %s ... %d s' "$what" "$elapsed" >&2
    elif ((elapsed >= lines * 30)); then
      say "  $what ... $elapsed s"
      lines=$((lines + 1))
    fi
  done
}

# wait_for SECONDS WHAT COMMAND...: repeats a command until it succeeds.
wait_for() {
  local limit=$1 what=$2 began=$SECONDS
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS - began < limit)) || die "waited $limit s in vain for $what"
    sleep 0.1
  done
}

# === names ===

# The fabric and each node have a network namespace of their own, and interfaces are named inside them, so that names
# only have to differ between clusters here.
netns() { echo "$cluster-$1"; }
node_address() { echo "198.18.0.$(($1 + 1))"; }
node_pods() { echo "198.18.$((127 + $1)).0/24"; }
# Dots cannot be in a cluster's name: no cluster's names begin like another's.
cgroup() { echo "weft-cluster.$cluster.$1"; }

api_address=198.18.0.2
service_range=198.19.0.0/16
api_service=198.19.0.1
dns_service=198.19.0.10
pod_range=198.18.128.0/18
max_nodes=9

# Prints the number of each node that was begun.
node_numbers() {
  local dir
  for dir in "$state"/node-*; do
    [[ ! -d $dir ]] || echo "${dir##*-}"
  done
}

# === processes ===
# A cluster's programs are started by links in its state folder, so argv[0] says whose a process is. There are no pid
# files: they go stale, and are missing for what was started just before something broke.

# link_program LINK PROGRAM
link_program() {
  mkdir -p "$(dirname "$state/$1")"
  ln -sfn "$(command -v "$2")" "$state/$1"
}

# spawn NETNS LINK ARGUMENTS...: starts a program that outlives this script; `-` stays in the host's namespace.
spawn() {
  local netns=$1 link=$2 log enter=()
  shift 2
  log=${link//bin\//}
  [[ $netns == - ]] || enter=(nsenter --net="/run/netns/$netns" --)
  mkdir -p "$state/log"
  # setsid, env and nsenter each become the next. The lock (9) must not go with them, nor this script's pipes, nor its
  # environment: an HTTP proxy that is set there would be asked for the cluster's own addresses.
  setsid env -i PATH="$PATH" "${enter[@]}" "$state/$link" "$@" </dev/null >>"$state/log/${log//\//-}.log" 2>&1 9>&- &
}

# Prints "PID LINK" for each process of the cluster; containerd's shims are those that name its socket.
processes() {
  local dir argv
  for dir in /proc/[0-9]*; do
    argv=()
    mapfile -d '' -t argv 2>/dev/null <"$dir/cmdline" || continue
    case ${argv[0]-} in
      "$state"/*) echo "${dir#/proc/} ${argv[0]#"$state/"}" ;;
      *containerd-shim*) [[ ${argv[*]} != *" $state/"* ]] || echo "${dir#/proc/} shim" ;;
    esac
  done
}

# pids LINK: of the processes started by that link.
pids() { processes | awk -v link="$1" '$2 == link { print $1 }'; }

gone() { [[ -z $(pids "$1") ]]; }

# signal SIGNAL PID...: to processes some of which may just have ended.
signal() {
  local name=$1 pid
  shift
  for pid; do kill -s "$name" "$pid" 2>/dev/null || true; done
}

# === locks ===

# One script at a time may change clusters, for as long as it runs. /run is locked because it is there before the first
# cluster and after the last: a lock file of our own would be a trace.
lock_clusters() {
  exec 9</run
  flock --nonblock 9 || { say "waiting for another cluster script"; flock 9; }
}

# === the cluster's own kubectl ===

kubectl() { "$state/bin/kubectl" --kubeconfig "$state/admin.kubeconfig" "$@"; }
