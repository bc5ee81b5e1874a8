//! The VHD engine: everything that decides what is on a virtual disk and what happens to its file.
//!
//! It is sans-I/O: it opens nothing, reads no clock and draws no random number. Requests and completions go in, file
//! operations and finished requests come out, as the flat records of [`record`]; whoever holds the files carries them out.
//! So one engine serves `tapdisk`, the tools and the browser, and its tests can be the disk.
#![forbid(unsafe_code)]

mod areas;
mod batmap_state;
mod below;
mod bitmaps;
mod cache;
mod chain;
mod commit;
mod core;
mod discard;
mod engine;
pub mod error;
mod extend;
pub mod format;
mod grow;
mod image;
mod io;
pub mod jobs;
mod map;
mod metadata;
mod open;
mod open_blocks;
mod orphans;
mod parent_link;
#[cfg(not(feature = "planted-bugs"))]
mod planted;
#[cfg(feature = "planted-bugs")]
pub mod planted;
mod read;
pub mod record;
mod request;
mod search;
mod sector_bitmap;
mod staging;
mod status;
mod target;
mod wants;

pub use engine::{Engine, Job};
pub use image::MAX_DYNAMIC_SIZE;
pub use jobs::{JobSpec, Outcome, Progress};
pub use open::{Driver, FileSpec, ImageInfo};
pub use wants::{Access, Answer, OpenedFile, Want};
