//! The one thread that owns the engine: takes requests, puts waiting applies into one flush, and answers.
//!
//! When the engine fails, it is closed, opened anew and checked; then it is known whether the changes were made.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::{Change, Damage, Key, Kind, Revision, Row, StoreError, metrics as names};

use super::{
    engine::{Engine, EngineError},
    open::{Attached, HeadState, Session},
    table::{RowError, Staged, Table},
};

/// Most requests that are taken at once, and so most applies that share one flush.
const SHARED_REQUESTS_MAX: usize = 512;
/// Bytes of values after which no further apply joins a flush.
const SHARED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// How long the thread waits for work before it syncs the head.
const IDLE: Duration = Duration::from_millis(20);
/// Flushes after which the head is synced even if there is always work.
const HEAD_FLUSHES_MAX: u32 = 256;
/// Shortest time between two attempts to open a failed engine.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);
/// Room that writes leave free for the rest of the system, at most; on small disks a twentieth.
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// What a row takes beyond its name and value: headers of ours and of the engine's.
const ROW_OVERHEAD_BYTES: usize = 128;
/// What the engine may take beyond the rows: two segments.
const OVERHEAD_BYTES: u64 = 1024 * 1024;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;
type Apply = (Vec<Change>, Reply<Revision>);

/// A request and its place in the queue.
pub(super) struct Request {
    pub(super) what: What,
    pub(super) _permit: OwnedSemaphorePermit,
}

pub(super) enum What {
    Get(Key, Reply<Option<Row>>),
    List(Kind, Vec<u8>, Reply<Vec<Row>>),
    All(Reply<(Revision, Vec<Row>)>),
    Apply(Vec<Change>, Reply<Revision>),
}

/// Damage as the thread found it and as [`crate::Store::damaged`] tells it.
pub(super) type SharedDamage = Arc<Mutex<Vec<Damage>>>;

pub(super) struct Writer {
    session: Session,
    state: State,
    damage: SharedDamage,
    /// Since the head was last synced.
    flushes: u32,
    /// Whether free space is looked at before each flush: only tests go on until the disk itself refuses.
    pub(super) room_is_checked: bool,
}

enum State {
    Open { engine: Box<Engine>, table: Box<Table> },
    Failed { detail: String, at: Instant },
}

impl Writer {
    pub(super) fn new(session: Session, attached: Attached, damage: SharedDamage) -> Self {
        let failed = State::Failed { detail: String::new(), at: Instant::now() };
        let mut writer = Self { session, state: failed, damage, flushes: 0, room_is_checked: true };
        writer.take(attached);
        writer
    }

    /// Serves until nobody can ask any more, then closes.
    pub(super) fn run(mut self, requests: &mpsc::Receiver<Request>) {
        loop {
            let first = if self.flushes == 0 {
                requests.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
            } else {
                requests.recv_timeout(IDLE)
            };
            match first {
                Ok(first) => self.serve(first, requests),
                Err(mpsc::RecvTimeoutError::Timeout) => self.sync_head(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            if self.flushes >= HEAD_FLUSHES_MAX {
                self.sync_head();
            }
        }
        self.sync_head();
        if let State::Open { engine, .. } = self.state {
            engine.close();
        }
    }

    /// Answers what waits: first the applies, in one flush, then the reads, which so see them.
    fn serve(&mut self, first: Request, requests: &mpsc::Receiver<Request>) {
        let (mut applies, mut reads, mut permits) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(Request { what, _permit }) = next {
            permits.push(_permit);
            match what {
                What::Apply(changes, reply) => {
                    bytes += changes.iter().map(Change::value_bytes).sum::<usize>();
                    applies.push((changes, reply));
                }
                read => reads.push(read),
            }
            let more = permits.len() < SHARED_REQUESTS_MAX && bytes < SHARED_BYTES_MAX;
            next = if more { requests.try_recv().ok() } else { None };
        }
        if !applies.is_empty() {
            self.apply(applies);
        }
        for read in reads {
            // Whoever asked may have gone: then nobody misses the answer.
            match read {
                What::Get(key, reply) => {
                    _ = reply.send(self.read(Some(key.kind), |table, engine| table.row(engine, &key)))
                }
                What::List(kind, prefix, reply) => {
                    _ = reply.send(self.read(Some(kind), |table, engine| table.rows(engine, kind, &prefix)));
                }
                What::All(reply) => _ = reply.send(self.read(None, everything)),
                What::Apply(..) => {}
            }
        }
    }

    /// Reads rows of `kind`, or of every kind.
    fn read<T>(
        &mut self,
        kind: Option<Kind>,
        read: impl FnOnce(&Table, &Engine) -> Result<T, RowError>,
    ) -> Result<T, StoreError> {
        self.ready()?;
        if let Some(damage) = self.damage().iter().find(|damage| kind.is_none_or(|kind| damage.concerns(kind))) {
            return Err(StoreError::Damaged(damage.clone()));
        }
        let State::Open { engine, table } = &self.state else { return Err(StoreError::Closed) };
        match read(table, engine) {
            Ok(found) => Ok(found),
            Err(RowError::Damaged(damage)) => {
                tracing::error!(%damage, "store is damaged: it takes no more changes");
                self.note_damage(vec![damage.clone()]);
                Err(StoreError::Damaged(damage))
            }
            Err(RowError::Engine(error)) => {
                let detail = error.to_string();
                self.fail(&error);
                Err(StoreError::Unavailable { detail })
            }
        }
    }

    fn apply(&mut self, applies: Vec<Apply>) {
        let refusal = self.ready().and_then(|()| self.writable(&applies)).err();
        let State::Open { table, .. } = &self.state else {
            return answer_all(applies, &refusal.unwrap_or(StoreError::Closed));
        };
        if let Some(error) = refusal {
            return answer_all(applies, &error);
        }
        let mut staged = table.stage();
        let mut answers = Vec::with_capacity(applies.len());
        for (changes, reply) in applies {
            answers.push((stage(table, &mut staged, changes), reply));
        }
        // Answers wait for the flush, conflicts too: what they conflict with may be in the same flush.
        let failure = if staged.revision() == table.revision() { None } else { self.flush(staged).err() };
        for (outcome, reply) in answers {
            _ = reply.send(match &failure {
                Some(error) => Err(error.clone()),
                None => outcome,
            });
        }
    }

    /// Writes what was staged. An error means that nothing was changed, or says that it is uncertain.
    fn flush(&mut self, mut staged: Staged) -> Result<(), StoreError> {
        let State::Open { engine, table } = &mut self.state else { return Err(StoreError::Closed) };
        let revision = staged.revision();
        let error = match engine.write(table.writes(&mut staged)) {
            Ok(()) => {
                table.commit(staged);
                self.written(revision);
                return Ok(());
            }
            Err(error) => error,
        };
        let detail = error.to_string();
        self.fail(&error);
        // Ask the disk. Only an engine that can be opened and checked can tell.
        self.reopen();
        match &self.state {
            State::Open { table, .. } if self.damage().is_empty() => {
                if table.revision() >= revision {
                    Ok(())
                } else {
                    Err(StoreError::Unavailable { detail })
                }
            }
            _ => Err(StoreError::Uncertain { detail }),
        }
    }

    fn written(&mut self, revision: Revision) {
        if let HeadState::Sound(head) = &mut self.session.head
            && let Err(error) = head.write(revision, &self.session.sealer)
        {
            // The rows are safe; only the proof that they are the newest is older than they are.
            tracing::error!(%error, "head of the store cannot be written");
        }
        self.flushes += 1;
        metrics::counter!(names::FLUSHES_TOTAL).increment(1);
        self.gauge();
    }

    fn sync_head(&mut self) {
        self.flushes = 0;
        if let HeadState::Sound(head) = &mut self.session.head
            && let Err(error) = head.sync()
        {
            tracing::error!(%error, "head of the store cannot be synced");
        }
    }

    fn writable(&self, applies: &[Apply]) -> Result<(), StoreError> {
        if let Some(damage) = self.damage().first() {
            return Err(StoreError::Damaged(damage.clone()));
        }
        if !self.room_is_checked {
            return Ok(());
        }
        let path = self.session.directory.path();
        let Ok(stat) = statvfs(path) else { return Ok(()) };
        #[allow(clippy::unnecessary_cast, reason = "the widths differ between platforms")]
        let (free, total) = (
            stat.blocks_available() as u64 * stat.fragment_size() as u64,
            stat.blocks() as u64 * stat.fragment_size() as u64,
        );
        let cost = |change: &Change| change.value_bytes() + change.key().name.len() + ROW_OVERHEAD_BYTES;
        let bytes: usize = applies.iter().flat_map(|(changes, _)| changes).map(cost).sum();
        // The engine writes a row once as a change and once more when it rewrites its node.
        let needed = RESERVE_BYTES.min(total / 20) + OVERHEAD_BYTES + 2 * bytes as u64;
        if free < needed {
            return Err(StoreError::Full { path: path.to_owned(), free, needed });
        }
        Ok(())
    }

    /// The engine is open, or is opened now.
    fn ready(&mut self) -> Result<(), StoreError> {
        if let State::Failed { at, .. } = &self.state
            && at.elapsed() >= REOPEN_INTERVAL
        {
            self.reopen();
        }
        match &self.state {
            State::Open { .. } => Ok(()),
            State::Failed { detail, .. } => Err(StoreError::Unavailable { detail: detail.clone() }),
        }
    }

    /// Closes the engine: after an error or a panic of its own nothing it says can be relied on.
    fn fail(&mut self, error: &EngineError) {
        tracing::error!(%error, "engine of the store failed");
        let failed = State::Failed { detail: error.to_string(), at: Instant::now() };
        if let State::Open { engine, .. } = std::mem::replace(&mut self.state, failed) {
            engine.close();
        }
    }

    fn reopen(&mut self) {
        metrics::counter!(names::REOPENS_TOTAL).increment(1);
        match self.session.attach() {
            Ok(attached) => {
                tracing::info!(revision = %attached.table.revision(), "engine of the store was opened anew");
                self.take(attached);
            }
            Err(error) => {
                tracing::error!(%error, "engine of the store cannot be opened");
                self.state = State::Failed { detail: error.to_string(), at: Instant::now() };
            }
        }
    }

    fn take(&mut self, Attached { engine, table, damage }: Attached) {
        for damage in damage.iter().take(20) {
            tracing::error!(%damage, "store is damaged: it takes no changes");
        }
        self.state = State::Open { engine: Box::new(engine), table: Box::new(table) };
        self.note_damage(damage);
        self.gauge();
    }

    /// Damage stays known until the process ends, even if the engine shows a better face when opened anew.
    fn note_damage(&self, found: Vec<Damage>) {
        let mut damage = self.damage();
        damage.extend(found);
        metrics::gauge!(names::DAMAGE).set(damage.len() as f64);
    }

    fn damage(&self) -> std::sync::MutexGuard<'_, Vec<Damage>> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self) {
        let State::Open { engine, table } = &self.state else { return };
        for kind in Kind::ALL {
            metrics::gauge!(names::ROWS, "kind" => kind.name()).set(table.count(kind) as f64);
        }
        metrics::gauge!(names::BYTES).set(engine.bytes() as f64);
    }
}

/// Every row, kind after kind.
fn everything(table: &Table, engine: &Engine) -> Result<(Revision, Vec<Row>), RowError> {
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        rows.append(&mut table.rows(engine, kind, b"")?);
    }
    Ok((table.revision(), rows))
}

/// Stages the changes of one apply, all or none.
fn stage(table: &Table, staged: &mut Staged, changes: Vec<Change>) -> Result<Revision, StoreError> {
    for change in &changes {
        let (key, expected) = (change.key(), change.expected());
        let found = table.found(staged, key);
        if !expected.holds(found) {
            return Err(StoreError::Conflict { key: key.clone(), expected, found });
        }
    }
    if changes.is_empty() {
        return Ok(staged.revision());
    }
    let revision = staged.next();
    for (position, change) in changes.into_iter().enumerate() {
        let (key, value) = match change {
            Change::Put { key, value, .. } => (key, Some(value)),
            Change::Delete { key, .. } => (key, None),
        };
        table.change(staged, key, value, position as u32);
    }
    Ok(revision)
}

fn answer_all(applies: Vec<Apply>, error: &StoreError) {
    for (_, reply) in applies {
        _ = reply.send(Err(error.clone()));
    }
}
