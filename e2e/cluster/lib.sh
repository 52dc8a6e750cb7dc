# shellcheck shell=bash disable=SC2034 # others use them
# Common functions of the scripts in this directory: options, progress, waiting, names and processes of a cluster.
# Sourced after `set -euo pipefail`. The configuration of the components is in control-plane.sh and node.sh.

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Cron jobs and minimal shells of root often lack these in PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin

# === options ===

# Parses --name; sets `cluster`, `state`, and `rest` to the other arguments.
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
    die "invalid cluster name '$cluster': use 1 to 30 lower-case letters, digits and dashes"
  state=/var/lib/weft-cluster/$cluster
}

# Prints the comment at the top of the script.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }

refuse() { die "$1"$'\n\n'"$(usage)"; }

need_root() { ((EUID == 0)) || die "run this as root: it creates namespaces, mounts and cgroups"; }

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

# Debian starts the servers that it installs unless policy-rc.d forbids it. (This runs in a step, which is a subshell.)
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

# copy_libraries ROOT PROGRAM: copies the shared libraries of a program to the same paths below ROOT, for an image: the
# paths that ldd prints, not the targets of links, because the loader looks for those paths.
copy_libraries() {
  local library
  while read -r library; do
    mkdir -p "$1$(dirname "$library")"
    cp --dereference "$library" "$1$library"
  done < <(ldd "$2" | grep --only-matching '/[^ ]*')
}

# Prints a hash of a folder's content: names, modes, links and bytes.
digest() {
  (cd "$1" && {
    find . -printf '%p %m %l\n' | sort
    find . -type f -print0 | sort --zero-terminated | xargs --null sha256sum
  }) | sha256sum
}

# === progress ===
# Messages go to stderr; stdout is for the output of a script.

say() { printf '%s\n' "$*" >&2; }

die() {
  say "$(basename "$0"): $*"
  exit 1
}

# step WHAT COMMAND...: runs the command without showing its output; prints the duration if it took a second or more,
# and the output if it fails.
step() {
  local what=$1 began=$SECONDS log ticker status
  shift
  log=$(mktemp)
  tick "$what" 9>&- & # without fd 9, because its sleep would keep the lock
  ticker=$!
  set +e # not `|| status=$?`, which would disable errexit inside the command
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

# Shows that a step is still running: a line that is rewritten on a terminal, a new line every 30 s in a log.
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
    ((SECONDS - began < limit)) || die "timed out after $limit s waiting for $what"
    sleep 0.1
  done
}

# === names ===

# The fabric and each node have their own network namespace; interface names are local to it, so only these names must
# be unique per cluster.
netns() { echo "$cluster-$1"; }
node_address() { echo "198.18.0.$(($1 + 1))"; }
node_pods() { echo "198.18.$((127 + $1)).0/24"; }
# A cluster's name has no dots, so no cluster's cgroup is a prefix of another's.
cgroup() { echo "weft-cluster.$cluster.$1"; }

api_address=198.18.0.2
service_range=198.19.0.0/16
api_service=198.19.0.1
dns_service=198.19.0.10
pod_range=198.18.128.0/18
max_nodes=9

# Prints the number of each node, also of partly started ones.
node_numbers() {
  local dir
  for dir in "$state"/node-*; do
    [[ ! -d $dir ]] || echo "${dir##*-}"
  done
}

# === processes ===
# A cluster's programs are started through links in its state directory, so argv[0] identifies the cluster of a
# process. There are no pid files: they can be stale, or missing after a failed start.

# link_program LINK PROGRAM
link_program() {
  mkdir -p "$(dirname "$state/$1")"
  ln -sfn "$(command -v "$2")" "$state/$1"
}

# spawn NETNS LINK ARGUMENTS...: starts a program that outlives this script; NETNS `-` is the host's namespace.
spawn() {
  local netns=$1 link=$2 log enter=()
  shift 2
  log=${link//bin\//}
  [[ $netns == - ]] || enter=(nsenter --net="/run/netns/$netns" --)
  mkdir -p "$state/log"
  # setsid, env and nsenter each exec the next. The program must not inherit the lock (fd 9), this script's pipes, or
  # its environment: with http_proxy set it would send requests for the cluster's addresses to that proxy.
  setsid env -i PATH="$PATH" "${enter[@]}" "$state/$link" "$@" </dev/null >>"$state/log/${log//\//-}.log" 2>&1 9>&- &
}

# Prints "PID LINK" for each process of the cluster; containerd's shims are identified by the socket in their arguments.
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

# pids LINK: prints the PIDs of the processes started through that link.
pids() { processes | awk -v link="$1" '$2 == link { print $1 }'; }

gone() { [[ -z $(pids "$1") ]]; }

# signal SIGNAL PID...: sends a signal; processes that have ended in the meantime are ignored.
signal() {
  local name=$1 pid
  shift
  for pid; do kill -s "$name" "$pid" 2>/dev/null || true; done
}

# === locks ===

# One script at a time may change clusters. The lock is on /run, because it exists without any cluster: a lock file
# would be left behind.
lock_clusters() {
  exec 9</run
  flock --nonblock 9 || { say "waiting for another cluster script to finish"; flock 9; }
}

# === the cluster's own kubectl ===

kubectl() { "$state/bin/kubectl" --kubeconfig "$state/admin.kubeconfig" "$@"; }
