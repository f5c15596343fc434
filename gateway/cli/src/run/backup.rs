//! `hanse backup create`: takes a backup from the gateway into a file.
//!
//! In: the pieces as they come. Out: a file of this user's own, read back once it is whole; words on the way. Never:
//! overwrites a file, leaves one that is not whole, or sees what is in it: the gateway sealed it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use federation_identity::backup::verify_whole;
use proto::manage::{BackupPiece, BackupSummary};
use tokio::time::Instant;
use tonic::Streaming;

use super::Failure;
use crate::{Client, ClientError, Globals, Terminal, exit, format};

/// How often progress is said.
const PROGRESS: Duration = Duration::from_secs(2);

/// `hanse backup create`
#[derive(Debug, Clone, Args)]
pub struct CreateBackup {
    /// File that is made, mode 0600; one that is there is not overwritten.
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub file: PathBuf,
}

/// Runs `hanse backup create` on the process's own streams. Returns its exit code (see [`exit`]).
pub async fn create_backup(verb: CreateBackup, globals: Globals) -> u8 {
    Terminal::real(async |terminal| create_backup_on(verb, globals, terminal).await).await
}

/// [`create_backup`] on any streams.
pub async fn create_backup_on(verb: CreateBackup, globals: Globals, terminal: &mut Terminal<'_>) -> u8 {
    let outcome = create(&verb.file, &globals.socket, terminal).await;
    super::told(outcome, terminal)
}

async fn create(path: &Path, socket: &Path, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let client = Client::connect(socket).await?;
    let wrong = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::Other(format!("{} is there already and is not overwritten: name another file", path.display()))
        }
        _ => Failure::Other(format!("cannot write {}: {error}", path.display())),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(wrong)?;
    let taken = take(&client, &mut file, terminal).await;
    let taken = taken.and_then(|summary| {
        file.sync_all().map_err(wrong)?;
        check(path, &summary)?;
        Ok(summary)
    });
    let summary = match taken {
        Ok(summary) => summary,
        Err(failure) => {
            // It is this one's, and not whole.
            let _ = fs::remove_file(path);
            return Err(failure);
        }
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(wrong)?;
    terminal.say(&format!(
        "Backup of {} as of {}: {} rows, {} bytes, read back. It opens with the cluster's key file alone: keep that apart.",
        format::clean(&summary.cluster),
        format::moment(summary.created_at_ms, terminal.now),
        summary.rows,
        summary.bytes
    ));
    Ok(exit::DONE)
}

async fn take(client: &Client, file: &mut File, terminal: &mut Terminal<'_>) -> Result<BackupSummary, Failure> {
    let mut pieces = client.create_backup().await?;
    let first = next(&mut pieces).await?;
    let summary = first.and_then(|piece| piece.summary);
    let summary = summary.ok_or_else(|| Failure::Other("the gateway's answer does not begin like a backup".into()))?;
    let (mut bytes, mut said) = (0, Instant::now());
    while let Some(piece) = next(&mut pieces).await? {
        file.write_all(&piece.data).map_err(|error| Failure::Other(format!("cannot write the backup: {error}")))?;
        bytes += piece.data.len() as u64;
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            terminal.say(&format!("{bytes} of {} bytes", summary.bytes));
        }
    }
    if bytes != summary.bytes {
        let message = format!("the gateway gave {bytes} bytes of {}: the backup is not whole", summary.bytes);
        return Err(Failure::Other(message));
    }
    Ok(summary)
}

async fn next(pieces: &mut Streaming<BackupPiece>) -> Result<Option<BackupPiece>, Failure> {
    pieces.message().await.map_err(|status| Failure::Client(ClientError::from(status)))
}

/// What lies on the disk is whole, and that cluster's.
fn check(path: &Path, summary: &BackupSummary) -> Result<(), Failure> {
    let wrong = |error: String| Failure::Other(format!("{} was read back: {error}", path.display()));
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let head = verify_whole(BufReader::new(file)).map_err(|error| wrong(error.to_string()))?;
    match head.cluster.to_string() == summary.cluster_id {
        true => Ok(()),
        false => Err(wrong(format!("it is signed by cluster {}", head.cluster))),
    }
}
