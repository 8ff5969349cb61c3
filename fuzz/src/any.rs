//! The target that `ATOMIC_RS_FUZZ` names, in libFuzzer.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../tests/support/targets.rs"]
mod targets;

static RUN: OnceLock<fn(&[u8])> = OnceLock::new();

fuzz_target!(|bytes: &[u8]| {
    let run = RUN.get_or_init(|| {
        let wanted = std::env::var("ATOMIC_RS_FUZZ").unwrap_or_default();
        let target = targets::TARGETS.iter().find(|target| target.name == wanted);
        target.unwrap_or_else(|| panic!("ATOMIC_RS_FUZZ names no target: \"{wanted}\"")).run
    });
    run(bytes);
});
