# What can be done here. `make help` lists it; what a target does stands in the script or test that it calls.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo demo-down test check unit fuzz e2e e2e-installed e2e-groups soak bench gen golden deny images install cluster-up cluster-down kubeconfig

NAME ?= weft
# Two, so that tests see what Services say of nodes.
NODES ?= 2
# All scenarios if none is named; bench/README.md has what else BENCH_ARGS may hold.
BENCH_SCENARIOS ?=
BENCH_REPS ?= 5
BENCH_SECS ?= 4
BENCH_ARGS ?=
FUZZ_SECS ?= 60
RUNS ?= 20
# End-to-end tests at once.
THREADS ?= 4

# A kubeconfig is used when it is given to make, `make demo KUBECONFIG=...`: never one that happens to be in the
# environment, because tests create, break and delete what they find.
ifeq ($(origin KUBECONFIG),command line)
cluster :=
load :=
else
unexport KUBECONFIG
cluster := cluster-up
load := --load $(NAME)
endif

# Everything is built once, in the profile that the images of tests and demo are built with.
cargo := cargo --quiet
profile := --profile ci

help: ## list these targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo; echo "  KUBECONFIG=PATH    after make: use that cluster instead of one of our own"

demo: $(cluster) images ## the main job: a cluster, Weft, a shop, its routes changed one by one, and a page that shows it
	@$(cargo) run $(profile) --package weft-e2e --bin weft-e2e-demo

demo-down: ## take everything away that demo made
ifeq ($(origin KUBECONFIG),command line)
	@$(cargo) run $(profile) --package weft-e2e --bin weft-e2e-demo -- --remove
else
	@e2e/cluster/down.sh --name $(NAME)
endif

test: check unit e2e ## everything, the end-to-end tests on a real cluster too
	@echo "make test: all passed"

check: ## formatting, lints, the shape of the tree
	@cargo fmt --check
	@cargo fmt --check --manifest-path bench/Cargo.toml
	@$(cargo) clippy $(profile) --workspace --all-targets --locked -- --deny warnings
	@$(cargo) test $(profile) --package weft-e2e --test tidy --locked

unit: ## tests that need no cluster
	@e2e/packages.sh
	@cargo test $(profile) --locked --workspace --exclude weft-e2e
	@cargo test $(profile) --locked --package weft-e2e --lib --test page
	@python3 -m unittest discover --quiet --start-directory bench
	@proxy/fuzz/run.sh 5

fuzz: ## feed what the proxy reads from strangers with what libFuzzer comes up with (FUZZ_SECS=60 for each target)
	@proxy/fuzz/run.sh $(FUZZ_SECS)

e2e: $(cluster) images install e2e-installed ## tests on a real cluster

soak: $(cluster) images install ## its groups again and again beside busy loops, and which tests failed (RUNS=20)
	@e2e/soak.sh $(RUNS)

e2e-installed: e2e-groups
	@cargo test $(profile) --locked --package weft-e2e --test latency --test demo -- --test-threads 1 --nocapture
	@cargo test $(profile) --locked --package weft-e2e --test disruption -- --test-threads 1 --nocapture

e2e-groups:
	@cargo test $(profile) --locked --package weft-e2e --test charts --test inject --test routing --test filters --test streams \
	  --test policy --test resilience --test balance --test services --test bad_input -- --test-threads $(THREADS) --show-output

bench: ## measure Weft beside Envoy, nginx and haproxy (BENCH_SCENARIOS="h1_sat mem" BENCH_REPS=5 BENCH_SECS=4)
	@bench/setup.sh
	@bench/bench.py --scenarios "$(BENCH_SCENARIOS)" --repetitions $(BENCH_REPS) --seconds $(BENCH_SECS) $(BENCH_ARGS)

gen: ## write the CRDs from their types
	@$(cargo) run $(profile) --package weft-crds --bin crdgen -- crds charts/weft-crds/templates

golden: ## take what golden tests see as what they expect; review the diff as code
	@WEFT_BLESS=1 $(cargo) test $(profile) --package weft-operator --package weft-injector --package weft-init

deny: ## licences, bans, sources and advisories of the dependencies
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	@cargo deny check

images: ## build the images as OCI archives (target/images), and load them into our cluster
	@e2e/images.sh $(load)

install: $(cluster) images ## install or upgrade Weft on the cluster with its charts
	@$(cargo) run $(profile) --package weft-e2e --bin weft-e2e-install

cluster-up: ## start a real Kubernetes on this machine (NODES=3, NAME=other)
	@e2e/cluster/up.sh --name $(NAME) --nodes $(NODES)

cluster-down: ## remove every trace of it
	@e2e/cluster/down.sh --name $(NAME)

kubeconfig: ## print the path of its kubeconfig
	@e2e/cluster/kubeconfig.sh --name $(NAME)
