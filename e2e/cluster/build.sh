#!/usr/bin/env bash
# Builds the programs and images of a cluster, or uses the cached ones.
#
#   build.sh                builds everything
#   build.sh --print NAME   builds one part if necessary and prints its path; NAME is one of
#                           etcd coredns helm kubernetes kubectl forward probe pause.tar coredns.tar probe.tar,
#                           or of those that only tests of Weft need: h2spec (HTTP/2), argocd, kustomize-controller
#                           and git-server (GitOps)
#
# Parts are cached outside the checkout, in $WEFT_CACHE (~/.cache/weft), each under a hash of its sources. The
# directory may be deleted while no cluster is running.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

cache=${WEFT_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/weft}

# GOTOOLCHAIN=auto, also where the environment says `local`: a module may need a newer Go than the installed one.
export CGO_ENABLED=0 GOWORK=off GOFLAGS= GOTOOLCHAIN=auto

# The version that Kubernetes' own build scripts would set: without it the server reports v0.0.0-master+$Format:%H$,
# which kubectl cannot parse.
kubernetes_version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$here/components/kubernetes/go.mod")
kubernetes_stamps() {
  local numbers
  IFS=. read -ra numbers <<<"${kubernetes_version#v}"
  local name stamps=""
  for name in "gitVersion=$kubernetes_version" "gitMajor=${numbers[0]}" "gitMinor=${numbers[1]}" gitTreeState=clean; do
    stamps+=" -X k8s.io/component-base/version.$name"
  done
  echo "$stamps"
}

# Otherwise it calls itself v99.99.99.
argocd_stamps() {
  local version
  version=$(awk '$1 == "github.com/argoproj/argo-cd/v3" { print $2 }' "$here/components/argocd/go.mod")
  echo " -X github.com/argoproj/argo-cd/v3/common.version=${version#v}"
}

main() {
  command -v go >/dev/null || die "Go is not installed: see https://go.dev/dl"
  case ${1-} in
    "") need_packages; build_all ;;
    --print) (($# == 2)) || refuse "--print takes the name of one part"; print_part "$2" ;;
    -h | --help) usage ;;
    *) refuse "unknown option: $1" ;;
  esac
}

# Quick builds first, so that their errors show before Kubernetes is built.
build_all() {
  local part
  for part in pause.tar forward etcd coredns.tar probe.tar helm kubernetes; do
    build_part "$part"
  done
}

print_part() {
  case $1 in
    kubectl) build_part kubernetes; echo "$(dirname "$built")/kubectl" ;;
    *.tar) need_packages; build_part "$1"; echo "$built" ;;
    *) build_part "$1"; echo "$built" ;;
  esac
}

# Builds a part unless it is cached, and sets `built` to its path.
build_part() {
  case $1 in
    kubernetes) build_go kubernetes . "$(kubernetes_stamps)" "about 8 minutes when nothing is cached" ;;
    helm) build_go helm helm.sh/helm/v4/cmd/helm "" "about 3 minutes when nothing is cached" ;;
    h2spec) build_go h2spec github.com/summerwind/h2spec/cmd/h2spec "" "" ;;
    argocd) build_go argocd github.com/argoproj/argo-cd/v3/cmd "$(argocd_stamps)" "about 6 minutes when nothing is cached" ;;
    kustomize-controller)
      build_go kustomize-controller github.com/fluxcd/kustomize-controller "" "about 3 minutes when nothing is cached"
      ;;
    etcd | coredns | forward | probe | git-server) build_go "$1" . "" "" ;;
    pause) build_pause ;;
    pause.tar | coredns.tar | probe.tar) build_image "${1%.tar}" ;;
    *) die "unknown part: $1" ;;
  esac
}

# build_go NAME PACKAGE LINK-FLAGS NOTE
build_go() {
  local name=$1 package=$2 flags="-s -w$3" note=$4
  # The module's `go` line may select another toolchain, but always the same one for the same sources.
  place "$name" "$flags $(go env GOVERSION)"
  [[ -e $built ]] || step "building $name${note:+ ($note)}" go_build "$name" "$package" "$flags"
}

go_build() {
  begin
  (cd "$here/components/$1" && go build -trimpath -ldflags "$3" -o "$making/$1" "$2")
  [[ $1 != kubernetes ]] || ln -s kubernetes "$making/kubectl"
  keep
}

build_pause() {
  place pause "-Os -static"
  [[ -e $built ]] || step "building pause" gcc_build
}

gcc_build() {
  begin
  gcc -Os -static -o "$making/pause" "$here/components/pause/pause.c"
  keep
}

# An image FROM scratch with one program, as an archive that containerd imports.
build_image() {
  local program
  build_part "$1"
  program=$built
  place "$1.tar" "$program"
  [[ -e $built ]] || step "packing the image of $1" pack_image "$1" "$program" "localhost/weft/$1:cluster"
}

# buildah's store is in the temporary directory: only the archive is kept.
pack_image() {
  begin
  local context=$making/context
  mkdir "$context"
  cp "$2" "$context/$1"
  printf 'FROM scratch\nCOPY %s /\nENTRYPOINT ["/%s"]\n' "$1" "$1" >"$context/Dockerfile"
  local buildah=(buildah --storage-driver vfs --root "$making/store" --runroot "$making/run")
  "${buildah[@]}" bud --isolation chroot -t "$3" "$context"
  "${buildah[@]}" push "$3" "oci-archive:$making/$1.tar:$3"
  rm -rf "$context" "$making/store" "$making/run"
  keep
}

# place NAME INPUTS: sets `built` to the path of a part, which depends on its source directory and on INPUTS.
place() {
  local sources=$here/components/${1%.tar} key=""
  key=$({
    echo "$2"
    [[ $1 == *.tar ]] || (cd "$sources" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
  } | sha256sum)
  built=$cache/$1-${key:0:12}/$1
}

# A part is built in `making`, beside its final path, and moved there when it is complete, so that an interrupted
# build leaves no partial result. Both run inside a step, which is a subshell: exit ends the step and releases the
# lock.
begin() {
  mkdir -p "$cache"
  exec 8>>"$cache/lock"
  flock 8
  [[ ! -e $built ]] || exit 0 # another build has built it in the meantime
  making=$(mktemp -d "$cache/making.XXXXXX")
  trap 'rm -rf "$making"' EXIT
}

keep() {
  chmod 755 "$making"
  mv -T "$making" "$(dirname "$built")"
}

need_packages() {
  local missing=()
  need_commands containerd:containerd runc:runc iptables:iptables nft:nftables conntrack:conntrack buildah:buildah \
    gcc:gcc openssl:openssl ip:iproute2 sysctl:procps umount:mount
  [[ -e /usr/lib/cni/ptp || -e /opt/cni/bin/ptp ]] || missing+=(containernetworking-plugins)
  [[ -e /etc/containers/policy.json ]] || missing+=(golang-github-containers-common)
  echo 'int main(void) { return 0; }' | gcc -static -x c -o /dev/null - 2>/dev/null || missing+=(libc6-dev)
  install_packages "${missing[@]}"
}

main "$@"
