//! The one executable: dispatch only.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use gateway_cli::{Globals, Operator};

/// Links clusters into a federation: each keeps its own root of trust, together they keep one law.
#[derive(Parser)]
#[command(name = "hanse", version, propagate_version = true, arg_required_else_help = true)]
struct Arguments {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    program: Program,
}

#[derive(Subcommand)]
enum Program {
    /// Run the edge gateway of a cluster, with its control plane.
    Gateway(Run),
    /// Run the sidecar of a workload.
    Sidecar(Run),
    /// Start clusters as real processes on loopback and show what they do.
    Demo(gateway_demo::Demo),
    #[command(flatten)]
    Operator(Operator),
}

#[derive(clap::Args)]
struct Run {
    /// Configuration file, TOML or YAML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Read and check the configuration, say what is wrong with it, and exit.
    #[arg(long)]
    check_config: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The one provider of cryptography, for every library that asks for the process's default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let outcome = runtime.block_on(async {
        match arguments.program {
            Program::Gateway(run) => gateway_edge::run(&run.config, run.check_config).await.map(|()| ExitCode::SUCCESS),
            Program::Sidecar(run) => {
                gateway_sidecar::run(&run.config, run.check_config).await.map(|()| ExitCode::SUCCESS)
            }
            Program::Demo(demo) => gateway_demo::run(demo).await,
            Program::Operator(verb) => {
                Ok(ExitCode::from(gateway_cli::run_as(verb, arguments.globals, Arguments::command()).await))
            }
        }
    });
    outcome.unwrap_or_else(|error| failed(&error))
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("hanse: {error:#}");
    ExitCode::from(5)
}
