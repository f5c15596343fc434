//! A disk that is full. Needs the right to mount a small one; skipped, and said so, where that is missing.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, mpsc},
};

use tempfile::TempDir;
use tokio::sync::{Semaphore, oneshot};

use super::{
    super::{
        open::Session,
        writer::{Request, SharedDamage, What, Writer},
    },
    KEY, filled, key, open,
};
use crate::{Change, Kind, StoreError};

/// A small disk of its own, while it lives; `None` where nothing can be mounted.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs"]).arg(directory.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(directory))
    }

    /// Leaves about `free` bytes.
    fn fill(&self, free: u64) -> PathBuf {
        let stat = nix::sys::statvfs::statvfs(self.0.path()).expect("statvfs");
        let bytes = (stat.blocks_available() * stat.fragment_size()).saturating_sub(free);
        let path = self.0.path().join("ballast");
        fs::write(&path, vec![1; bytes as usize]).expect("ballast");
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

#[tokio::test]
async fn without_room_a_write_is_refused_and_taken_again_when_there_is_room() {
    let Some(disk) = SmallDisk::mount() else {
        assert!(
            std::env::var_os("CI").is_none(),
            "nothing can be mounted here, and in CI a skipped test is a failed one"
        );
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    let path = disk.0.path().join("store");
    filled(&path).await;
    let store = open(&path).await;
    let ballast = disk.fill(256 * 1024);
    let refused = store.apply(vec![Change::put(key("more"), "more")]).await;
    assert!(matches!(refused, Err(StoreError::Full { .. })), "{refused:?}");
    assert_eq!(store.list(Kind::Record, b"").await.expect("reads go on").len(), 11);
    fs::remove_file(ballast).expect("room");
    store.apply(vec![Change::put(key("more"), "more")]).await.expect("room again");
    assert_eq!(store.damaged(), []);
}

#[test]
fn when_the_disk_itself_refuses_nothing_acknowledged_is_lost() {
    let Some(disk) = SmallDisk::mount() else {
        assert!(
            std::env::var_os("CI").is_none(),
            "nothing can be mounted here, and in CI a skipped test is a failed one"
        );
        eprintln!("skipped: nothing can be mounted here");
        return;
    };
    for free in [0, 100_000, 600_000, 1_200_000] {
        let path = disk.0.path().join(free.to_string());
        let mut session = Session::begin(&path, &KEY).expect("session");
        let attached = session.attach().expect("engine");
        let damage = SharedDamage::default();
        let mut writer = Writer::new(session, attached, Arc::clone(&damage));
        writer.room_is_checked = false;
        let (requests, queue) = mpsc::channel();
        let thread = std::thread::spawn(move || writer.run(&queue));
        let places = Arc::new(Semaphore::new(10));
        let apply = |number: u32| {
            let (reply, answer) = oneshot::channel();
            let rows = (0..40).map(|row| Change::put(key(&format!("{number}/{row}")), vec![number as u8; 1000]));
            let _permit = Arc::clone(&places).try_acquire_owned().expect("place");
            requests.send(Request { what: What::Apply(rows.collect(), reply), _permit }).expect("queued");
            answer.blocking_recv().expect("answer")
        };
        let mut acknowledged: Vec<u32> = (0..5).filter(|number| apply(*number).is_ok()).collect();
        assert_eq!(acknowledged.len(), 5);
        let ballast = disk.fill(free);
        let mut refused = 0;
        for number in 5..60 {
            match apply(number) {
                Ok(_) => acknowledged.push(number),
                Err(error) => {
                    assert!(matches!(error.reason(), "unavailable" | "uncertain"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "the disk had room for all");
        fs::remove_file(ballast).expect("room");
        // The engine is tried anew once a second.
        let again = (0..50).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            apply(100).is_ok()
        });
        assert!(again, "it did not recover within 5 s");
        acknowledged.push(100);
        drop(requests);
        thread.join().expect("writer");
        assert_eq!(*damage.lock().expect("damage"), []);

        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        runtime.block_on(async {
            let store = open(&path).await;
            assert_eq!(store.damaged(), []);
            for number in acknowledged {
                let rows = store.list(Kind::Record, format!("{number}/").as_bytes()).await.expect("list");
                assert_eq!(rows.len(), 40, "apply {number} with {free} bytes free");
            }
        });
        fs::remove_dir_all(&path).expect("next");
    }
}
