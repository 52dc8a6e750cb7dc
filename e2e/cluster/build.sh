#!/usr/bin/env bash
# Builds the programs and images of a cluster, or uses the cached ones.
#
#   build.sh                builds everything
#   build.sh --print NAME   builds one part if necessary and prints its path; NAME is one of
#                           etcd coredns helm kubernetes kubectl forward probe pause.tar coredns.tar probe.tar,
#                           or of those that only tests of Weft need: h2spec (HTTP/2); conformance, conformance.crds
#                           and echo.tar (the Gateway API's conformance suite, the folder of its CRDs, and its image);
#                           interop.tar (server and client of gRPC's interoperability tests); databases.tar (PostgreSQL,
#                           MariaDB and Redis); argocd, kustomize-controller and git-server (GitOps); helm3
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
  local image
  case $1 in
    kubernetes) build_go kubernetes "$(kubernetes_stamps)" "about 8 minutes when nothing is cached" . ;;
    helm) build_go helm "" "about 3 minutes when nothing is cached" helm.sh/helm/v4/cmd/helm ;;
    helm3) build_go helm3 "" "about 3 minutes when nothing is cached" helm.sh/helm/v3/cmd/helm ;;
    h2spec) build_go h2spec "" "" github.com/summerwind/h2spec/cmd/h2spec ;;
    conformance) build_go conformance "" "about 4 minutes when nothing is cached" . ;;
    conformance.crds) build_crds ;;
    echo) build_go echo "" "about 2 minutes when nothing is cached" istio.io/istio/pkg/test/echo/cmd/{server,client} ;;
    interop) build_go interop "" "about a minute when nothing is cached" google.golang.org/grpc/interop/{server,client} ;;
    argocd)
      build_go argocd "$(argocd_stamps)" "about 6 minutes when nothing is cached" github.com/argoproj/argo-cd/v3/cmd
      ;;
    kustomize-controller)
      build_go kustomize-controller "" "about 3 minutes when nothing is cached" github.com/fluxcd/kustomize-controller
      ;;
    etcd | coredns | forward | probe | git-server) build_go "$1" "" "" . ;;
    pause) build_pause ;;
    databases) build_databases ;;
    pause.tar | coredns.tar | probe.tar | interop.tar | databases.tar) build_image "${1%.tar}" "localhost/weft/${1%.tar}:cluster" ;;
    echo.tar) image=$(echo_image); build_image echo "$image" ;;
    *) die "unknown part: $1" ;;
  esac
}

# build_go NAME LINK-FLAGS NOTE PACKAGE...: with several packages, the part is a folder of their programs.
build_go() {
  local name=$1 flags="-s -w$2" note=$3
  # The module's `go` line may select another toolchain, but always the same one for the same sources.
  place "$name" "$flags $(go env GOVERSION)"
  [[ -e $built ]] || step "building $name${note:+ ($note)}" go_build "$name" "$flags" "${@:4}"
}

go_build() {
  local name=$1 flags=$2 packages=("${@:3}") verb=(build)
  begin
  [[ $name != conformance ]] || verb=(test -c) # the suite is a Go test
  ((${#packages[@]} == 1)) || mkdir "$making/$name"
  cd "$here/components/$name"
  go "${verb[@]}" -trimpath -ldflags "$flags" -o "$making/$name" "${packages[@]}"
  case $name in
    kubernetes) ln -s kubernetes "$making/kubectl" ;;
    # A certificate and its key, which the suite's manifests name.
    echo) cp "$(module_folder echo istio.io/istio)"/tests/testdata/certs/dns/{cert-chain,key}.pem "$making/echo/" ;;
    argocd) copy_argocd ;;
    kustomize-controller) copy_flux ;;
  esac
  keep
}

# Beside argocd: its manifests, and a script that the repo-server runs.
copy_argocd() {
  local folder
  folder=$(module_folder argocd github.com/argoproj/argo-cd/v3)
  cp "$folder/manifests/install.yaml" "$folder/hack/git-verify-wrapper.sh" "$making/"
}

# Beside kustomize-controller: its manifests, and the CRDs of the sources that it watches. The module requires
# only the types of source-controller, which have the same version.
copy_flux() {
  local version sources
  version=$(awk '$1 == "github.com/fluxcd/source-controller/api" { print $2 }' go.mod)
  sources=$(go mod download -json "github.com/fluxcd/source-controller@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
  cp --recursive "$(module_folder kustomize-controller github.com/fluxcd/kustomize-controller)/config" "$making/config"
  cp --recursive "$sources/config/crd/bases" "$making/sources"
  chmod --recursive u+w "$making"
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

build_databases() {
  place databases "$("$here/components/databases/root.sh" --packages)"
  [[ -e $built ]] || step "making the root of an image with databases" make_databases
}

make_databases() {
  begin
  "$here/components/databases/root.sh" "$making/databases"
  keep
}

build_crds() {
  place conformance.crds ""
  [[ -e $built ]] || step "fetching the CRDs of the Gateway API" copy_crds
}

# The standard channel. The policy that comes with it is left out, because it refuses an older version later on.
copy_crds() {
  begin
  local folder
  folder=$(module_folder conformance sigs.k8s.io/gateway-api)/config/crd/standard
  mkdir "$making/conformance.crds"
  find "$folder" -name '*.yaml' ! -name '*_vap_*' -exec cp {} "$making/conformance.crds/" \;
  keep
}

# The name of the image in the suite's manifests for a mesh.
echo_image() {
  local folder images
  folder=$(module_folder conformance sigs.k8s.io/gateway-api/conformance)
  mapfile -t images < <(awk '$1 == "image:" { print $2 }' "$folder/mesh/manifests.yaml" | sort -u)
  ((${#images[@]} == 1)) || die "mesh/manifests.yaml of the suite should name one image, not ${#images[@]}: ${images[*]}"
  echo "${images[0]}"
}

# module_folder COMPONENT MODULE: prints where the sources of a module of the component are.
module_folder() {
  cd "$here/components/$1" && go mod download "$2" && go list -m -f '{{.Dir}}' "$2"
}

# build_image NAME IMAGE: an image with the part NAME, as an archive that containerd imports. Without a Dockerfile
# beside its sources it is FROM scratch with one program.
build_image() {
  local part
  build_part "$1"
  part=$built
  place "$1.tar" "$part $2"
  [[ -e $built ]] || step "packing the image of $1" pack_image "$1" "$part" "$2"
}

# buildah's store is in the temporary directory: only the archive is kept.
pack_image() {
  begin
  local context=$making/context dockerfile=$here/components/$1/Dockerfile
  mkdir "$context"
  cp --recursive "$2" "$context/$1"
  if [[ -e $dockerfile ]]; then
    cp "$dockerfile" "$context/"
  else
    printf 'FROM scratch\nCOPY %s /\nENTRYPOINT ["/%s"]\n' "$1" "$1" >"$context/Dockerfile"
  fi
  local buildah=(buildah --storage-driver vfs --root "$making/store" --runroot "$making/run")
  "${buildah[@]}" bud --isolation chroot -t "$3" "$context"
  "${buildah[@]}" push "$3" "oci-archive:$making/$1.tar:$3"
  rm -rf "$context" "$making/store" "$making/run"
  keep
}

# place NAME INPUTS: sets `built` to the path of a part, which depends on its source directory and on INPUTS.
place() {
  local sources=$here/components/${1%%.*} key=""
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
    gcc:gcc openssl:openssl ip:iproute2 sysctl:procps umount:mount tcpdump:tcpdump
  [[ -e /usr/lib/cni/ptp || -e /opt/cni/bin/ptp ]] || missing+=(containernetworking-plugins)
  [[ -e /etc/containers/policy.json ]] || missing+=(golang-github-containers-common)
  echo 'int main(void) { return 0; }' | gcc -static -x c -o /dev/null - 2>/dev/null || missing+=(libc6-dev)
  install_packages "${missing[@]}"
}

main "$@"
