#!/usr/bin/env bash
# Runs h2spec, the conformance test suite for HTTP/2 servers, with the given arguments; builds it first if necessary.
#
#   h2spec.sh --host ADDRESS --port PORT
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
h2spec=$("$here/cluster/build.sh" --print h2spec)
exec "$h2spec" "$@"
