//! `hanse demo`: clusters as real processes on loopback, linked by tokens, and every claim checked.
//!
//! In: nothing but this executable. Out: a story on standard error, claims on standard output.
//! Never: reaches into a gateway: it starts processes and uses the operator's client, as a person would.

mod app;
mod browse;
mod child;
mod claims;
mod sockets;
mod story;
mod world;

use std::{net::SocketAddr, process::ExitCode};

pub use claims::Claim;

/// Arguments of `hanse demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Demo {
    /// Check every claim once, print them and exit 0 if all held, else 1.
    #[arg(long)]
    once: bool,
    /// How many clusters: the three of the story, and further ones that join with a token each.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=16))]
    clusters: u8,
    /// How to print the claims.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Break what this claim stands on, to see that its check can fail.
    #[arg(long, value_name = "CLAIM", hide = true)]
    sabotage: Option<String>,
    /// Serve HTTP here: what the demo's applications are.
    #[arg(long, value_name = "ADDRESS", hide = true)]
    serve_http: Option<SocketAddr>,
    #[arg(long, value_name = "NAME", hide = true, requires = "serve_http")]
    serve_name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Runs the demo.
///
/// # Errors
/// Something outside the claims failed: no free port, no temporary folder.
pub async fn run(demo: Demo) -> anyhow::Result<ExitCode> {
    if let Some(listen) = demo.serve_http {
        app::serve(demo.serve_name.unwrap_or_else(|| "app".into()), listen).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(claim) = &demo.sabotage
        && !story::CLAIMS.contains(&claim.as_str())
    {
        anyhow::bail!("no claim is called {claim:?}; there are {}", story::CLAIMS.join(", "));
    }
    let claims = story::tell(demo.once, demo.output == Format::Json, demo.clusters, demo.sabotage.as_deref()).await?;
    match demo.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&claims)?),
        Format::Table => claims::print_table(&claims),
    }
    // Who interrupts the demo does not make it fail; with `--once` every claim has to be there.
    let complete = !demo.once || claims.len() == story::CLAIMS.len();
    let all = complete && claims.iter().all(|claim| claim.ok);
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
