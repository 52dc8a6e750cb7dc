#!/usr/bin/env bash
# Generates src/types.rs: gets the Gateway API's definitions as a Go module, and installs kopium below target/.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../../e2e/cluster/lib.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

gateway_api=sigs.k8s.io/gateway-api@v1.7.0
kopium=kopium@0.24.1

need_commands go:golang python3:python3
# The module requires this Go.
export GOTOOLCHAIN=go1.27.3
crds=$(go mod download -json "$gateway_api" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])')/config/crd/standard
step "installing $kopium" cargo install --quiet --locked --root target/kopium "$kopium"
step "generating crds/gateway/src/types.rs" crds/gateway/generate.py target/kopium/bin/kopium "$crds"
