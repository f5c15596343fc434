//! The handle that other rooms hold: sends requests to the thread that owns the engine, and waits.

use std::{
    path::Path,
    sync::{Arc, PoisonError, mpsc},
    thread::{self, JoinHandle},
};

use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};

use crate::{
    BoxFuture, Change, Damage, Key, Kind, OpenError, Revision, Row, Store, StoreError, metrics as names,
    store::{check, check_name},
};

use super::{
    open::{Session, failed},
    writer::{Request, SharedDamage, What, Writer},
};

/// Most requests that may wait; more wait for a place.
const WAITING_MAX: usize = 1024;

/// Opens the store in the directory `path`, or makes one there, and checks every row in it.
///
/// `mac_key` binds all rows; without it nothing can be read or forged. The directory is held until the last handle is
/// dropped. A store that opens may still be damaged: see [`Store::damaged`].
///
/// # Errors
/// In use by another process, reachable by other users, on a network filesystem, written under another key, or so
/// damaged that nothing in it can be read.
pub async fn open_sled(path: impl AsRef<Path>, mac_key: [u8; 32]) -> Result<Arc<dyn Store>, OpenError> {
    let path = path.as_ref().to_owned();
    let gone = OpenError::Io { path: path.clone(), detail: "the store's thread ended".to_owned() };
    let (requests, queue) = mpsc::channel();
    let (opened, outcome) = oneshot::channel();
    let damage = SharedDamage::default();
    let shared = Arc::clone(&damage);
    let thread = thread::Builder::new().name("store".to_owned()).spawn(move || {
        let attached = Session::begin(&path, &mac_key).and_then(|mut session| match session.attach() {
            Ok(attached) => Ok((session, attached)),
            Err(error) => Err(failed(&session.directory, &error)),
        });
        match attached {
            Ok((session, attached)) => {
                let writer = Writer::new(session, attached, shared);
                // Nobody waits any more: the loop ends at once, since nobody holds the other end of the queue either.
                _ = opened.send(Ok(()));
                writer.run(&queue);
            }
            Err(error) => _ = opened.send(Err(error)),
        }
    });
    let Ok(thread) = thread else { return Err(gone) };
    let store = Embedded {
        requests: Some(requests),
        places: Arc::new(Semaphore::new(WAITING_MAX)),
        damage,
        thread: Some(thread),
    };
    outcome.await.unwrap_or(Err(gone))?;
    Ok(Arc::new(store))
}

/// A store on disk.
struct Embedded {
    /// `None` only while being dropped.
    requests: Option<mpsc::Sender<Request>>,
    places: Arc<Semaphore>,
    damage: SharedDamage,
    thread: Option<JoinHandle<()>>,
}

impl Embedded {
    async fn ask<T>(&self, what: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> What) -> Result<T, StoreError> {
        let _permit = Arc::clone(&self.places).acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let request = Request { what: what(reply), _permit };
        self.requests.as_ref().ok_or(StoreError::Closed)?.send(request).map_err(|_| StoreError::Closed)?;
        answer.await.unwrap_or(Err(StoreError::Closed))
    }
}

impl Store for Embedded {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Row>, StoreError>> {
        Box::pin(async move {
            check_name(&key.name)?;
            self.ask(|reply| What::Get(key.clone(), reply)).await
        })
    }

    fn list<'a>(&'a self, kind: Kind, prefix: &'a [u8]) -> BoxFuture<'a, Result<Vec<Row>, StoreError>> {
        Box::pin(self.ask(move |reply| What::List(kind, prefix.to_vec(), reply)))
    }

    fn all(&self) -> BoxFuture<'_, Result<(Revision, Vec<Row>), StoreError>> {
        Box::pin(self.ask(What::All))
    }

    fn apply(&self, changes: Vec<Change>) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            check(&changes)?;
            let begun = Instant::now();
            let outcome = self.ask(|reply| What::Apply(changes, reply)).await;
            metrics::histogram!(names::APPLY_SECONDS).record(begun.elapsed().as_secs_f64());
            let word = outcome.as_ref().map_or_else(StoreError::reason, |_| "done");
            metrics::counter!(names::APPLIES_TOTAL, "outcome" => word).increment(1);
            outcome
        })
    }

    fn damaged(&self) -> Vec<Damage> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Embedded {
    /// Waits for what is being written, so that the directory is free when the last handle is gone.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been told on stderr already, and the rows are as the last flush left them.
            _ = thread.join();
        }
    }
}
