# make test: everything a change must pass.    make demo: tenantd at work, on a server of its own.
# make bench: how fast it is, beside yardsticks (BENCH.md).    make bench-quick: the same in three minutes.
# All install what the machine lacks; see .ci/install-needs.

# Where rustup puts cargo, for shells that have not read its settings yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: test demo bench bench-quick needs

test: needs
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked
	cargo test --locked

demo: needs
	cargo build --release --locked --bin tenantd --example demo
	cargo run --quiet --release --locked --example demo

bench: needs
	cargo bench --quiet --locked --bench fleet

bench-quick: needs
	cargo bench --quiet --locked --bench fleet -- --quick

needs:
	@.ci/install-needs
