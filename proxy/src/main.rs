//! The binary `heddle`.

use std::process::ExitCode;

/// Much of a request's cost is memory: this allocator measured fastest, and gives back what idle connections held.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    heddle::cli::main()
}
