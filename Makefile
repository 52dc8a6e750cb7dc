# `make help` lists the targets. Each calls a script or test, which documents what it does.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-down test check unit unit-crates fuzz e2e e2e-installed e2e-groups conformance conformance-installed \
  conformance-report gitops soak soak-identity bench gen gen-gateway golden deny images install cluster-up cluster-down \
  kubeconfig

NAME ?= weft
# Two nodes, for the tests of topology-aware Services.
NODES ?= 2
# Empty for all scenarios; bench/README.md documents BENCH_ARGS.
BENCH_SCENARIOS ?=
BENCH_REPS ?= 5
BENCH_SECS ?= 4
BENCH_ARGS ?=
FUZZ_SECS ?= 60
WATCH_SECS ?= 600
RUNS ?= 20
MINUTES ?= 60
# Number of end-to-end tests that run in parallel.
THREADS ?= 4

# A kubeconfig is used only if it is given to make, as in `make demo KUBECONFIG=...`, never from the environment:
# tests create, break and delete objects.
ifeq ($(origin KUBECONFIG),command line)
cluster :=
load :=
else
unexport KUBECONFIG
cluster := cluster-up
load := --load $(NAME)
endif

# One profile for everything, so that crates are built once for images, tests and demo.
cargo := cargo --quiet
profile := --profile ci

help: ## list these targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'
	@echo; echo "  KUBECONFIG=PATH        as an argument of make: use that cluster instead of a local one"

demo: $(cluster) images ## a cluster, Weft, a shop with traffic, routes applied one by one, and a result page
	@$(cargo) run $(profile) --package weft-e2e --bin weft-e2e-demo

demo-down: ## remove everything that demo created
ifeq ($(origin KUBECONFIG),command line)
	@$(cargo) run $(profile) --package weft-e2e --bin weft-e2e-demo -- --remove
else
	@e2e/cluster/down.sh --name $(NAME)
endif

test: check unit e2e ## all checks and tests, including the end-to-end tests on a real cluster
	@echo "make test: all passed"

check: ## formatting, lints, the shape of the tree (order of modules, dependencies), links and names in pages
	@cargo fmt --check
	@cargo fmt --check --manifest-path bench/Cargo.toml
	@$(cargo) clippy $(profile) --workspace --all-targets --locked -- --deny warnings
	@$(cargo) test $(profile) --package weft-e2e --test tidy --test docs --locked

unit: ## tests without a cluster
	@e2e/packages.sh
	@cargo test $(profile) --locked --workspace --exclude weft-e2e --no-run
	@# Beside each other: the soak waits most of its five minutes.
	@$(MAKE) --no-print-directory --jobs 2 unit-crates soak-identity MINUTES=5

unit-crates:
	@cargo test $(profile) --locked --workspace --exclude weft-e2e
	@cargo test $(profile) --locked --package weft-e2e --lib --test page --test values --test rbac
	@python3 -m unittest discover --quiet --start-directory bench
	@proxy/fuzz/run.sh 5

fuzz: ## fuzz the proxy's parsers with libFuzzer (FUZZ_SECS=60 per target), and the ports of operator and injector
	@proxy/fuzz/run.sh $(FUZZ_SECS)
	@WEFT_HOSTILE_MIB=1024 cargo test $(profile) --locked --package weft-operator --package weft-injector --test ports -- --nocapture

e2e: $(cluster) images install e2e-installed ## end-to-end tests on a real cluster

gitops: ## Argo CD and Flux keep Weft and a shop in sync, on a cluster of its own (WATCH_SECS=600)
	@e2e/gitops.sh --watch $(WATCH_SECS)

soak: $(cluster) images install ## the e2e-groups repeatedly on busy CPUs; lists the tests that failed (RUNS=20)
	@e2e/soak.sh $(RUNS)
	@WEFT_DENIED_REQUESTS=1000000 cargo test $(profile) --locked --package weft-e2e --test enforcement -- --test-threads 1 --nocapture

soak-identity: ## certificates that live for a minute are renewed, while traffic goes between two proxies (MINUTES=60)
	@WEFT_SOAK_MINUTES=$(MINUTES) cargo test $(profile) --locked --workspace --exclude weft-e2e --test mtls -- \
	  --ignored --nocapture renewal::soak

conformance: $(cluster) images install conformance-installed ## the Gateway API's conformance suite and gRPC's interoperability tests, on the cluster

conformance-report: $(cluster) images install ## run the Gateway API's conformance suite, and write its report to docs/conformance
	@WEFT_BLESS=1 cargo test $(profile) --locked --package weft-e2e --test conformance -- --nocapture

conformance-installed:
	@cargo test $(profile) --locked --package weft-e2e --test conformance --test interop -- --test-threads 1 --nocapture

# The others measure time, or replace what all tests use: they run by themselves, and not in the soak.
e2e-installed: e2e-groups conformance-installed
	@cargo test $(profile) --locked --package weft-e2e --test mistakes -- --test-threads 2 --show-output
	@cargo test $(profile) --locked --package weft-e2e --test latency --test demo -- --test-threads 1 --nocapture
	@cargo test $(profile) --locked --package weft-e2e --test disruption --test enforcement --test authority --test helm -- --test-threads 1 --nocapture

e2e-groups:
	@cargo test $(profile) --locked --package weft-e2e --test charts --test inject --test routing --test filters --test streams \
	  --test policy --test identity --test resilience --test balance --test services --test bad_input --test apply \
	  --test gateway_api -- --test-threads $(THREADS) --show-output

bench: ## benchmark Weft against Envoy, nginx and haproxy (BENCH_SCENARIOS="h1_sat mem" BENCH_REPS=5 BENCH_SECS=4)
	@bench/setup.sh
	@bench/bench.py --scenarios "$(BENCH_SCENARIOS)" --repetitions $(BENCH_REPS) --seconds $(BENCH_SECS) $(BENCH_ARGS)

gen: ## generate the CRDs from their Rust types
	@$(cargo) run $(profile) --package weft-crds --bin crdgen -- charts/weft-crds/templates

gen-gateway: ## generate the types of the Gateway API's routes from its definitions, with kopium
	@crds/gateway/generate.sh

golden: ## update the expected files of golden tests and the generated references; review the diff as code
	@WEFT_BLESS=1 $(cargo) test $(profile) --package weft-operator --package weft-injector --package weft-init
	@WEFT_BLESS=1 $(cargo) test $(profile) --package weft-e2e --lib --test values --test rbac --test docs
	@WEFT_BLESS=1 $(cargo) test $(profile) --package weft-runtime --package weft-proxy --lib page_of_

deny: ## check licences, bans and sources of dependencies, and advisories if their database can be reached
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	@cargo deny check bans licenses sources
	@if cargo deny fetch db 2>/dev/null; then cargo deny check --disable-fetch advisories; \
	  else echo "make deny: advisories are NOT checked: their database cannot be reached"; fi

images: ## build the images as OCI archives (target/images) and load them into the local cluster
	@e2e/images.sh $(load)

install: $(cluster) images ## install or upgrade Weft on the cluster with Helm
	@$(cargo) run $(profile) --package weft-e2e --bin weft-e2e-install

cluster-up: ## start a local Kubernetes cluster (NODES=3, NAME=other)
	@e2e/cluster/up.sh --name $(NAME) --nodes $(NODES)

cluster-down: ## remove the local cluster
	@e2e/cluster/down.sh --name $(NAME)

kubeconfig: ## print the path of the local cluster's kubeconfig
	@e2e/cluster/kubeconfig.sh --name $(NAME)
