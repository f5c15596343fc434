//! How long a cold member takes to everything: a join, and a restart, by the number of records.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::member::Member;

const SIZES: [u32; 3] = [1_000, 10_000, 100_000];

/// Seconds from the redeeming of a token until the joiner decides by every intention of a federation with so many, its
/// own copy on its disk.
pub(crate) async fn measure() -> Result<Value> {
    let mut figures = json!({});
    let issuer = Member::open("east", Duration::ZERO).await?;
    for size in SIZES {
        let held = u32::try_from(issuer.intentions())?;
        issuer.legislate(held, size.saturating_sub(held)).await?;
        let joiner = Member::open(&format!("joiner-{size}"), Duration::ZERO).await?;
        let started = Instant::now();
        joiner.join(&issuer).await?;
        joiner.until("every intention", |held| held.authorizer.len() >= size as usize).await?;
        let took = started.elapsed();
        ensure!(joiner.intentions() == issuer.intentions(), "the two do not hold the same");
        figures[size.to_string()] = ((took.as_secs_f64() * 1e3).round() / 1e3).into();
        joiner.link.shutdown().await;
    }
    Ok(figures)
}
