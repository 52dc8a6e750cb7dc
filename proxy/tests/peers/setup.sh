#!/usr/bin/env bash
# Builds the peers and codecs that the proxy is tested with, or finds them built already, and prints the path of one.
#
#   setup.sh python    an interpreter that has h11, hyper-h2 and hpack
#   setup.sh go        the Go peer: net/http, grpc-go, and Go's HPACK
#   setup.sh java      the folder of the classes of Java's peers
#   setup.sh all       builds all three, prints nothing
#
# They are kept in $WEFT_CACHE (~/.cache/weft), each under a hash of its sources, as the parts of a cluster are. What they
# need of Debian is installed by e2e/packages.sh.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$folder/../../../e2e/cluster/lib.sh"

cache=${WEFT_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/weft}

main() {
  case ${1-} in
    python) build python python3 "$(python3 --version)" requirements.txt; echo "$built/bin/python" ;;
    go) build go go "$(go env GOVERSION)" go; echo "$built/peer" ;;
    java) build java javac "$(javac -version 2>&1)" java; echo "$built" ;;
    all) for part in python go java; do main "$part" >/dev/null; done ;;
    -h | --help) usage ;;
    *) refuse "no such part: ${1-}" ;;
  esac
}

# build NAME COMMAND VERSION SOURCE: leaves the part's folder in `built`.
build() {
  command -v "$2" >/dev/null || die "$2 is missing: run e2e/packages.sh"
  local key
  key=$({
    echo "$3"
    cd "$folder" && find "$4" -type f -print0 | sort -z | xargs -0 sha256sum
  } | sha256sum)
  built=$cache/peers-$1-${key:0:12}
  [[ -e $built ]] || step "building the $1 peers" make_part "$1"
}

# A part is made beside its place and moved there when it is whole: an interrupted build leaves nothing that looks built.
make_part() {
  mkdir -p "$cache"
  exec 8>>"$built.lock"
  flock 8
  [[ ! -e $built ]] || exit 0 # by another build, meanwhile
  making=$(mktemp -d "$cache/making.XXXXXX")
  trap 'rm -rf "$making"' EXIT
  "make_$1"
  chmod 755 "$making"
  mv -T "$making" "$built"
}

make_python() {
  python3 -m venv "$making"
  "$making/bin/pip" install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement "$folder/requirements.txt"
}

make_go() {
  (cd "$folder/go" && CGO_ENABLED=0 GOWORK=off GOFLAGS='' go build -trimpath -ldflags '-s -w' -o "$making/peer" .)
}

make_java() { javac -d "$making" "$folder"/java/*.java; }

main "$@"
