//! The binary: reads the command line, runs the library, prints the error, returns the exit code.

use std::process::ExitCode;

use clap::Parser;
use tenantd::cli::Cli;
use tenantd::commands;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return commands::failed(
                &tenantd::error::Error::new(tenantd::error::Kind::Other, "start the runtime").because(error),
            );
        }
    };
    let ended = runtime.block_on(commands::run(cli));
    // A second signal ends at once: what still runs is not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(status) => status,
        Err(error) => commands::failed(&error),
    }
}
