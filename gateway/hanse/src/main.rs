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
    /// The part of a gateway that serves; `gateway` starts it.
    #[command(hide = true)]
    Edge(Part),
    /// The part of a gateway that holds the cluster's keys; `gateway` starts it.
    #[command(hide = true)]
    Signer(Part),
    /// Backups of this cluster: a sealed copy of its store, and back.
    #[command(subcommand)]
    Backup(BackupVerb),
    /// Start clusters as real processes on loopback and show what they do.
    Demo(gateway_demo::Demo),
    #[command(flatten)]
    Operator(Operator),
}

/// `hanse backup …`
#[derive(Subcommand)]
enum BackupVerb {
    /// Take a copy of the running gateway's store as of this moment. Only the cluster's key file opens it.
    Create(gateway_cli::CreateBackup),
    /// Check that a backup is whole and say what it is.
    Show {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The gateway's configuration, whose key file opens the backup. Left out: only what stands in the clear.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        output: gateway_cli::Output,
    },
    /// Make the store of a gateway that does not run from a backup. Nothing may be in its place.
    Restore {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The gateway's configuration.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
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

#[derive(clap::Args)]
struct Part {
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Process id of the gateway that starts it.
    #[arg(long, value_name = "PID")]
    parent: u32,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The one provider of cryptography, for every library that asks for the process's default.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let outcome = match arguments.program {
        // Confined while they have one thread, so they come without a runtime.
        Program::Edge(part) => gateway_edge::run_edge(&part.config, part.parent).map(|()| ExitCode::SUCCESS),
        Program::Signer(part) => gateway_edge::run_signer(&part.config, part.parent).map(|()| ExitCode::SUCCESS),
        Program::Gateway(run) => on_runtime(gateway_edge::run(&run.config, run.check_config)),
        Program::Sidecar(run) => {
            on_runtime(async { gateway_sidecar::run(&run.config, run.check_config).await.map(|()| ExitCode::SUCCESS) })
        }
        Program::Backup(BackupVerb::Create(verb)) => {
            on_runtime(async { Ok(ExitCode::from(gateway_cli::create_backup(verb, arguments.globals).await)) })
        }
        Program::Backup(BackupVerb::Show { file, config, output }) => on_runtime(async {
            let shown = gateway_edge::backup::show(&file, config.as_deref()).await?;
            Ok(ExitCode::from(gateway_cli::answer(output.format, &shown).await))
        }),
        Program::Backup(BackupVerb::Restore { file, config }) => on_runtime(async {
            eprint!("{}", gateway_edge::backup::restore(&config, &file).await?);
            Ok(ExitCode::SUCCESS)
        }),
        Program::Demo(demo) => on_runtime(gateway_demo::run(demo)),
        Program::Operator(verb) => on_runtime(async {
            Ok(ExitCode::from(gateway_cli::run_as(verb, arguments.globals, Arguments::command()).await))
        }),
    };
    outcome.unwrap_or_else(|error| failed(&error))
}

fn on_runtime(program: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Runtime::new()?.block_on(program)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("hanse: {error:#}");
    ExitCode::from(5)
}
