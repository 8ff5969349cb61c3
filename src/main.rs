//! The program: parse, set up logging, call one verb, turn its error into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    atomic_rs::cli::main(std::env::args_os())
}
