//! The store on disk.
//!
//! In: the directory and a key. Out: a [`Store`] whose applies are on the disk when they return. Never: a row that
//! was not written here and now, a partial list, a panic of the engine's.
//!
//! ```text
//! <path>/            0700, ours, no link
//!   lock             held while a process has the store open; holds its pid
//!   head             the newest revision, written after each flush, outside the engine  (head.rs)
//!   rows/            sled's directory                                                   (engine.rs)
//!     rows: MAC over key, revision and value  (seal.rs);  index and manifest            (table.rs)
//!   rows.new/        a store being made; removed at the next start
//! <path>.restoring/  a store being made from rows of elsewhere, renamed when it is whole  (fresh.rs)
//! ```
//!
//! The engine (sled) can lose rows without an error when its file is damaged, and falls back to an earlier state when
//! its file was cut. So each row carries a MAC, the manifest (changed in the same batch as the rows) says how many
//! rows there are and binds their sum, and the head says which manifest is the newest. All three are checked at every
//! start. One thread owns the engine; waiting applies share one flush (writer.rs).

mod directory;
mod engine;
mod fresh;
mod handle;
mod head;
mod open;
mod seal;
mod table;
mod writer;

pub use fresh::NewStore;
pub use handle::open_sled;
#[cfg(feature = "fuzzing")]
pub(crate) use table::fuzzing;

#[cfg(test)]
mod tests;
