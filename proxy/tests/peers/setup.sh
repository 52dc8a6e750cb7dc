#!/usr/bin/env bash
# Builds the peers and codecs that the proxy is tested with, unless they are built already, and prints the path of one.
#
#   setup.sh python    a Python interpreter with h11, hyper-h2 and hpack
#   setup.sh go        the Go peer: net/http, grpc-go, and Go's HPACK
#   setup.sh java      the folder of the Java peers' classes
#   setup.sh all       builds all three, prints nothing
#
# They are cached in $WEFT_CACHE (~/.cache/weft), each under a hash of its sources. e2e/packages.sh installs the Debian packages that
# they need.
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

# build NAME COMMAND VERSION SOURCE: sets `built` to the part's folder.
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

# Builds a part in a temporary folder and then moves it: an interrupted build leaves nothing that looks complete.
make_part() {
  mkdir -p "$cache"
  exec 8>>"$built.lock"
  flock 8
  [[ ! -e $built ]] || exit 0 # built meanwhile by another process
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
