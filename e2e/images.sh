#!/usr/bin/env bash
# Builds Weft's images, FROM scratch and without an engine, as OCI archives in target/images.
#
#   images.sh               builds what has changed
#   images.sh --load NAME   and loads the archives into the cluster NAME of e2e/cluster
#   images.sh --release     with what a release is built with: a fifth less CPU for a request, and some minutes more to build
#
# The tag of operator, injector, proxy and init is a hash of what is in them, so that an upgrade replaces running pods
# exactly when something has changed. It is printed, and stands in target/images/values.yaml for Helm:
#
#   helm upgrade --install weft charts/weft --namespace weft-system --create-namespace --values target/images/values.yaml
#
# The demo application is always localhost/weft-demo:dev, as its manifests say. Into a cluster of your own:
#
#   kind load image-archive target/images/weft-NAME.tar           kind
#   k3d image import target/images/weft-*.tar                     k3d
#   ctr --namespace k8s.io images import target/images/weft-NAME.tar   containerd, on each node
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/e2e/cluster/lib.sh"

registry=localhost
out=$root/target/images
# A sidecar is pulled to every node and started beside every pod.
proxy_limit=$((20 * 1000 * 1000))

declare -A dockerfile=(
  [operator]=operator/Dockerfile
  [injector]=injector/Dockerfile
  [proxy]=proxy/Dockerfile
  [init]=proxy/init/Dockerfile
  [demo]=e2e/demo/Dockerfile
)
meshed=(operator injector proxy init)
all=("${meshed[@]}" demo)

main() {
  local load="" profile=ci
  while (($#)); do
    case $1 in
      --load) load=${2-}; [[ -n $load ]] || refuse "--load takes the name of a cluster"; shift 2 ;;
      --release) profile=release; shift ;;
      -h | --help) usage; exit 0 ;;
      *) refuse "no such option: $1" ;;
    esac
  done
  need_commands buildah:buildah xtables-nft-multi:iptables
  [[ -e /etc/containers/policy.json ]] || install_packages golang-github-containers-common
  mkdir -p "$out"
  exec 9<"$out"
  flock 9
  build_binaries "$profile"
  local name tag
  for name in "${all[@]}"; do prepare "$name"; done
  tag=dev-$(for name in "${meshed[@]}"; do digest "$name"; done | sha256sum | head -c 12)
  for name in "${meshed[@]}"; do pack "$name" "$tag"; done
  pack demo dev
  printf 'image:\n  registry: %s\n  tag: %s\n' "$registry" "$tag" >"$out/values.yaml"
  table
  [[ -z $load ]] || "$root/e2e/cluster/load-image.sh" --name "$load" "$out"/weft-{operator,injector,proxy,init,demo}.tar
  echo "$tag"
}

# === binaries ===

# Cargo says where it puts a binary, which depends on target and configuration; `binary` keeps it, by name.
build_binaries() {
  local profile=$1 name path packages=()
  for name in "${all[@]}"; do packages+=(--package "weft-$name"); done
  declare -gA binary=()
  while read -r path; do
    binary[$(basename "$path")]=$path
  done < <(cd "$root" && cargo build --locked --profile "$profile" "${packages[@]}" --message-format json-render-diagnostics |
    grep --only-matching '"executable":"[^"]*"' | cut -d'"' -f4)
  for name in "${all[@]}"; do
    path=${binary[weft-$name]-}
    [[ -n $path ]] || die "cargo built no weft-$name"
    ldd "$path" 2>&1 | grep -Eq 'statically linked|not a dynamic' || die "$path is not static: nothing else is in its image"
  done
}

# === contexts ===

# Makes the folder that an image is built from.
prepare() {
  local context=$out/context/$1
  rm -rf "$context"
  mkdir -p "$context"
  cp "${binary[weft-$1]}" "$context/"
  cp "$root/${dockerfile[$1]}" "$context/Dockerfile"
  [[ $1 != init ]] || add_iptables "$context/root"
}

# The programs that speak to nf_tables and to the older ip_tables, under every name that weft-init calls, with what they
# load: shared libraries, and a module for each match and target. The nft ones need no lock; /run is for the others'.
add_iptables() {
  local family backend action program library
  mkdir -p "$1/run" "$1/usr/sbin"
  for backend in nft legacy; do
    program=$(command -v "xtables-$backend-multi")
    cp "$program" "$1/usr/sbin/"
    for family in iptables ip6tables; do
      for action in "" -save -restore; do
        ln -s "xtables-$backend-multi" "$1/usr/sbin/$family-$backend$action"
      done
    done
    # The path that is asked for, not where it leads: that is where the loader looks.
    while read -r library; do
      mkdir -p "$1$(dirname "$library")"
      cp --dereference "$library" "$1$library"
    done < <(ldd "$program" | grep --only-matching '/[^ ]*')
  done
  library=$(dirname "$(find /usr/lib* -name libxt_comment.so -print -quit)")
  mkdir -p "$1$library"
  cp --recursive "$library/." "$1$library/"
}

# Prints what identifies the content of a context: names, modes, links and bytes.
digest() {
  (cd "$out/context/$1" && {
    find . -printf '%p %m %l\n' | sort
    find . -type f -print0 | sort --zero-terminated | xargs --null sha256sum
  }) | sha256sum
}

# === archives ===

# pack NAME TAG: makes the archive, unless there is one of the same content and tag.
pack() {
  local key archive=$out/weft-$1.tar
  key="$2 $(digest "$1")"
  [[ -e $archive && -e $archive.key && $(<"$archive.key") == "$key" ]] && return
  rm -f "$archive.key"
  step "packing weft-$1:$2" buildah_pack "$1" "$registry/weft-$1:$2" "$2"
  echo "$key" >"$archive.key"
}

# buildah's stores go away again: nothing but the archive is wanted of them.
buildah_pack() {
  local store=$out/store
  rm -rf "$store"
  local buildah=(buildah --storage-driver vfs --root "$store/root" --runroot "$store/run")
  "${buildah[@]}" bud --isolation chroot --timestamp 0 --build-arg "VERSION=$3" --tag "$2" "$out/context/$1"
  rm -f "$out/weft-$1.tar"
  "${buildah[@]}" push "$2" "oci-archive:$out/weft-$1.tar:$2"
  rm -rf "$store"
}

table() {
  local name bytes
  {
    printf '%-16s %12s %12s\n' image unpacked archive
    for name in "${all[@]}"; do
      bytes=$(stat --format %s "$out/weft-$name.tar")
      printf '%-16s %9s kB %9s kB\n' "weft-$name" $(($(unpacked "$name") / 1000)) $((bytes / 1000))
    done
  } >&2
  bytes=$(unpacked proxy)
  ((bytes <= proxy_limit)) || die "the proxy's image is $bytes bytes; $proxy_limit is the limit"
}

unpacked() { du --summarize --apparent-size --bytes --exclude Dockerfile "$out/context/$1" | cut -f1; }

main "$@"
