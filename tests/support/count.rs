//! How often a test does what it is about: seldom where a change is tested, as often as docs/faults.md says in a long run.

/// `small`, or `long` under `make test-long` (the variable `TENANTD_TEST_LONG`).
#[must_use]
pub fn times(small: usize, long: usize) -> usize {
    if is_long() { long } else { small }
}

/// Whether this is a long run.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os("TENANTD_TEST_LONG").is_some_and(|value| value == "1")
}
