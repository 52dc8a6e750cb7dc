#!/usr/bin/env bash
# Runs h2spec, the conformance tests of HTTP/2 servers, with the arguments given; builds it first if need be.
#
#   h2spec.sh --host ADDRESS --port PORT
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
h2spec=$("$here/cluster/build.sh" --print h2spec)
exec "$h2spec" "$@"
