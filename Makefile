# `make test` and `make demo` are all that one needs on a fresh machine.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build compile images lint unit e2e test demo bench deny clean

# The suites make namespaces, cgroups and containers. Someone who is not root runs the test
# binaries, and nothing else, through sudo.
as_root := $(if $(filter 0,$(shell id -u)),,--config 'target."cfg(unix)".runner=["sudo","-E","env","PATH=$(PATH)"]')

help:
	@echo "make test    all that must pass: format, lints, unit and end-to-end tests, dependencies"
	@echo "make demo    two containers, a rotated secret, a death and an audit log, on one screen"
	@echo "make build   the release binaries; sidecar and shim small and static"
	@echo "make images  container images of them, given to the docker client's engine"
	@echo "make bench   the figures of docs/design.md section 11, kept in target/bench.jsonl"
	@echo "make deny    licences, sources, banned crates, known vulnerabilities of what we use"
	@echo "make clean   remove what was built"

setup:
	@tests/setup

# The examples are what suites run in containers and only kernel/ may say.
build:
	cargo build --release --workspace --bins --example isolation_attack \
		--example keyring_attack --example with_pid --locked
	cargo build --profile small -p mayfly-sidecar -p mayfly-shim --locked

images: build
	@deploy/images/build

lint:
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets --locked -- -D warnings

compile:
	cargo test --release --workspace --locked --no-run

# Always the whole workspace: naming one package would build its dependencies again, with fewer
# features.
unit:
	cargo test --release --workspace --locked $(as_root) -- --skip e2e::

# What waits nearly all of its time for something to expire does so side by side. All else one at a time:
# the suites measure, and they share two container engines.
waiting := e2e::leases::authorities e2e::leases::clocks e2e::resilience::certificates \
	e2e::resilience::tokens
suites := cargo test --release --workspace --test e2e --locked $(as_root) --

e2e: setup build
	$(suites) --test-threads=1 $(addprefix --skip ,$(waiting))
	$(suites) --test-threads=8 $(waiting)

# In this order, so that the cheapest check fails first. The tool for the last one is built of what setup
# and compilers leave of the processors, and not while tests run; if that fails, the check tries again.
test:
	@set -m; chrt --idle 0 tests/deny tool & tool=$$!; trap 'kill -- -$$tool 2>/dev/null || :' EXIT; \
	for step in setup lint build compile; do $(MAKE) --no-print-directory $$step; done; \
	wait $$tool || :
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory e2e
	@tests/deny rules
	@echo "test: ok"

demo: build
	@deploy/demo/run

# BENCH="--quick --only sessions", for example; docs/benchmarks.md says what there is.
bench: setup build
	$(if $(filter 0,$(shell id -u)),,sudo) target/$(shell rustc --print host-tuple)/release/bench $(BENCH)

deny:
	@tests/deny

clean:
	cargo clean
