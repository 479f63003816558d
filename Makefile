# make test: everything a change must pass.    make test-schemas: the part of it where tenants have schemas.    make demo: tenantd at work, on a server of its own.
# make bench: how fast it is, beside yardsticks (BENCH.md).    make bench-quick: the same in three minutes.
# make test-long: each fault as often as docs/faults.md says.    make chaos MINUTES=10 SEED=1: all of them at once.
# All install what the machine lacks; see .ci/install-needs.

# Where rustup puts cargo, for shells that have not read its settings yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Most tests wait for a server or a daemon most of their time: more of them at once than there are cores.
export RUST_TEST_THREADS ?= 4

# Where there is room for them the tests' servers keep their data in memory: a quarter of the time goes into files that nobody needs a minute later.
IN_MEMORY := $(shell [ "$$(df -k --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 10000000 ] 2>/dev/null && echo /dev/shm)
test test-schemas test-matrix: export TMPDIR := $(or $(TMPDIR),$(IN_MEMORY),/tmp)

# ISOLATION=schema: tenants that have a schema each instead of a database; elsewhere: in a database that they share, beside the main one.
ISOLATION ?= database

.PHONY: test test-schemas test-long test-matrix chaos demo bench bench-quick needs

test: needs
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
	TENANTD_CHAOS_MINUTES=2 TENANTD_CHAOS_SEED=1 cargo test --locked
	.ci/test-schemas

# The tests of tests/it once more, where each tenant has a schema instead of a database.
test-schemas: needs
	.ci/test-schemas

test-long: needs
	TENANTD_TEST_LONG=1 cargo test --locked --test it

# Random faults for so many minutes, the same ones again from the same seed; without one, others each time. ISOLATION as for demo.
MINUTES ?= 10
SEED ?=
chaos: needs
	TENANTD_TEST_ISOLATION=$(ISOLATION) TENANTD_CHAOS_MINUTES=$(MINUTES) TENANTD_CHAOS_SEED=$(SEED) cargo test --locked --test chaos

# The tests on a server of each major version; see .ci/test-matrix for how to choose.
test-matrix: needs
	.ci/test-matrix

demo: needs
	cargo build --release --locked --bin tenantd --example demo
	TENANTD_TEST_ISOLATION=$(ISOLATION) cargo run --quiet --release --locked --example demo

bench: needs
	cargo bench --quiet --locked --bench fleet

bench-quick: needs
	cargo bench --quiet --locked --bench fleet -- --quick

needs:
	@.ci/install-needs
