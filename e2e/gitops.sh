#!/usr/bin/env bash
# Runs the GitOps test on a cluster of its own, which it removes at the end: Argo CD installs Weft and a shop from a Git
# repository and keeps them in sync, and Flux's kustomize-controller another shop (e2e/tests/gitops.rs). The table of
# docs/gitops.md is then in target/gitops/results.md.
#
# Not at the same time as tests on another cluster from the same checkout: both install the images of target/images, and
# a build for one cluster gives them a tag that the other has not loaded.
#
#   gitops.sh [--watch SECONDS]     how long nothing may go out of sync; default 600
#   gitops.sh --keep                leaves the cluster running
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$root/e2e/cluster/lib.sh"

cluster=weft-gitops
out=$root/target/gitops
image=localhost/weft/gitops:test

main() {
  local watch=600 keep="" program programs=()
  while (($#)); do
    case $1 in
      --watch) watch=${2-}; [[ $watch =~ ^[0-9]+$ ]] || refuse "--watch takes a number of seconds"; shift 2 ;;
      --keep) keep=yes; shift ;;
      -h | --help) usage; exit 0 ;;
      *) refuse "unknown option: $1" ;;
    esac
  done
  need_root
  need_commands buildah:buildah git:git redis-server:redis-server
  "$here/build.sh"
  for program in argocd git-server helm kustomize-controller; do
    programs+=("$("$here/build.sh" --print "$program")")
  done
  mkdir -p "$out"
  manifests
  step "packing the image of Argo CD, git and Redis" pack
  [[ -n $keep ]] || trap '"$here/down.sh" --name "$cluster"' EXIT
  "$here/down.sh" --name "$cluster" # one that was kept
  "$here/up.sh" --name "$cluster"
  "$here/load-image.sh" --name "$cluster" "$out/gitops.tar"
  "$root/e2e/images.sh" --load "$cluster" >/dev/null
  WEFT_CLUSTER=$cluster WEFT_WATCH_SECONDS=$watch env --unset KUBECONFIG \
    cargo test --profile ci --locked --manifest-path "$root/Cargo.toml" --package weft-e2e --test gitops -- --nocapture
}

# Manifests of Argo CD and Flux, from the modules that their programs were built from.
manifests() {
  local argocd flux
  argocd=$(dirname "$("$here/build.sh" --print argocd)")
  flux=$(dirname "$("$here/build.sh" --print kustomize-controller)")
  rm -rf "$out"/{argocd,flux}
  cp --recursive "$root"/e2e/gitops/{argocd,flux} "$out/"
  cp "$argocd/install.yaml" "$out/argocd/"
  cp --recursive "$flux"/{config,sources} "$out/flux/"
}

# One image for all: Argo CD's manifests start its program under several names, and a shell that copies it.
pack() {
  local context=$out/context store=$out/store program key
  rm -rf "$context" "$store"
  mkdir -p "$context"/root/{etc,home/argocd,bin,usr/bin,usr/local/bin}
  cp "$root/e2e/gitops/Dockerfile" "$context/"
  printf 'root:x:0:0::/root:/bin/sh\nargocd:x:999:999::/home/argocd:/bin/sh\n' >"$context/root/etc/passwd"
  cp "${programs[@]}" "$context/root/usr/local/bin/"
  install "$(dirname "${programs[0]}")/git-verify-wrapper.sh" "$context/root/usr/local/bin/"
  for program in server repo-server application-controller cmp-server k8s-auth; do
    ln -s argocd "$context/root/usr/local/bin/argocd-$program"
  done
  add /usr/bin/{git,redis-server} /bin/{sh,cp,ln} /usr/lib/git-core/git-{remote-http,http-backend}
  key=$(digest "$context")
  [[ ! -e $out/gitops.tar || $(cat "$out/gitops.key") != "$key" ]] || return 0
  local buildah=(buildah --storage-driver vfs --root "$store/root" --runroot "$store/run")
  "${buildah[@]}" bud --isolation chroot --timestamp 0 --tag "$image" "$context"
  rm -f "$out/gitops.tar"
  "${buildah[@]}" push "$image" "oci-archive:$out/gitops.tar:$image"
  echo "$key" >"$out/gitops.key"
  rm -rf "$context" "$store"
}

# Adds programs with their shared libraries, at the same paths.
add() {
  local program
  for program; do
    mkdir -p "$context/root$(dirname "$program")"
    cp --dereference "$program" "$context/root$program"
    copy_libraries "$context/root" "$program"
  done
}

main "$@"
