//! What the macros accept and refuse, and in which words.
//!
//! Each `ui/fail/*.rs` has beside it what the compiler says; after a change of words,
//! `TRYBUILD=overwrite cargo test -p task-retry-tests --test compile_fail` writes that anew, to be read
//! before it is committed.

use std::process::Command;

/// The compiler in whose words `ui/fail/*.stderr` are written.
const COMPILER: &str = "rustc 1.95.";

#[test]
fn what_the_macros_accept_and_refuse() {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().expect("rustc runs").stdout;
    let version = String::from_utf8_lossy(&version);
    let cases = trybuild::TestCases::new();
    cases.pass("ui/pass/*.rs");
    if version.starts_with(COMPILER) {
        cases.compile_fail("ui/fail/*.rs");
    } else {
        eprintln!("skipped ui/fail: this is {version}, and other compilers use other words");
    }
}
