#!/usr/bin/env bash
# Builds Weft's images FROM scratch as OCI archives in target/images, without a container engine.
#
#   images.sh               builds changed images
#   images.sh --load NAME   also loads the archives into the cluster NAME of e2e/cluster
#   images.sh --release     builds with the release profile: a fifth less CPU per request, some minutes more to build
#
# The tag of operator, injector, proxy and init is a hash of their contents, so that an upgrade replaces running pods
# exactly when an image has changed. The tag is printed, and written to target/images/values.yaml for Helm:
#
#   helm upgrade --install weft charts/weft --namespace weft-system --create-namespace --values target/images/values.yaml
#
# The image of the demo application is always localhost/weft-demo:dev, as in its manifests. To load the archives into
# another cluster:
#
#   kind load image-archive target/images/weft-NAME.tar           kind
#   k3d image import target/images/weft-*.tar                     k3d
#   ctr --namespace k8s.io images import target/images/weft-NAME.tar   containerd, on each node
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/e2e/cluster/lib.sh"

registry=localhost
out=$root/target/images
# Maximum number of bytes in the proxy's image, which every node pulls.
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
      *) refuse "unknown option: $1" ;;
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
  tag=dev-$(for name in "${meshed[@]}"; do digest "$out/context/$name"; done | sha256sum | head -c 12)
  for name in "${meshed[@]}"; do pack "$name" "$tag"; done
  pack demo dev
  printf 'image:\n  registry: %s\n  tag: %s\n' "$registry" "$tag" >"$out/values.yaml"
  table
  [[ -z $load ]] || "$root/e2e/cluster/load-image.sh" --name "$load" "$out"/weft-{operator,injector,proxy,init,demo}.tar
  echo "$tag"
}

# === binaries ===

# Builds the binaries and sets `binary` to their paths by name. Cargo reports the paths, which depend on its
# configuration.
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
    ldd "$path" 2>&1 | grep -Eq 'statically linked|not a dynamic' || die "$path is not statically linked"
  done
}

# === contexts ===

# prepare NAME: creates the context directory of an image.
prepare() {
  local context=$out/context/$1
  rm -rf "$context"
  mkdir -p "$context"
  cp "${binary[weft-$1]}" "$context/"
  cp "$root/${dockerfile[$1]}" "$context/Dockerfile"
  [[ $1 != init ]] || add_iptables "$context/root"
}

# The iptables programs for nf_tables and for legacy ip_tables, under every name that weft-init calls, with their
# shared libraries and the extension modules of matches and targets. /run is for the lock of the legacy programs; nft
# needs none.
add_iptables() {
  local family backend action program library
  mkdir -p "$1/run" "$1/usr/sbin"
  for backend in nft legacy; do
    program=$(command -v "xtables-$backend-multi")
    cp "$program" "$1/usr/sbin/"
    copy_libraries "$1" "$program"
    for family in iptables ip6tables; do
      for action in "" -save -restore; do
        ln -s "xtables-$backend-multi" "$1/usr/sbin/$family-$backend$action"
      done
    done
  done
  library=$(dirname "$(find /usr/lib* -name libxt_comment.so -print -quit)")
  mkdir -p "$1$library"
  cp --recursive "$library/." "$1$library/"
}

# === archives ===

# pack NAME TAG: builds the archive unless it exists with the same content and tag.
pack() {
  local key archive=$out/weft-$1.tar
  key="$2 $(digest "$out/context/$1")"
  [[ -e $archive && -e $archive.key && $(<"$archive.key") == "$key" ]] && return
  rm -f "$archive.key"
  step "packing weft-$1:$2" buildah_pack "$1" "$registry/weft-$1:$2" "$2"
  echo "$key" >"$archive.key"
}

# Builds with a temporary store, of which only the archive is kept.
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
  ((bytes <= proxy_limit)) || die "the proxy's image has $bytes bytes, above the limit of $proxy_limit"
}

unpacked() { du --summarize --apparent-size --bytes --exclude Dockerfile "$out/context/$1" | cut -f1; }

main "$@"
