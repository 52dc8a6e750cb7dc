#!/usr/bin/env bash
# Generates src/types.rs from the Gateway API's definitions, in the version of its conformance suite; installs kopium below
# target/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../e2e/cluster/lib.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

kopium=kopium@0.24.1

need_commands python3:python3
crds=$(e2e/cluster/build.sh --print conformance.crds)
step "installing $kopium" cargo install --quiet --locked --root target/kopium "$kopium"
step "generating crds/gateway/src/types.rs" crds/gateway/generate.py target/kopium/bin/kopium "$crds"
