//! What a job wants of its host: whatever concerns files as such (their names, locks and space) and not their bytes.
//!
//! A job asks, the host answers with [`crate::Engine::provide`], one want at a time. What a host creates or removes
//! must be durable when it answers: it syncs the folder.

use std::cell::RefCell;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, errno};
use crate::io::until;
use crate::open::{Driver, FileSpec};

/// What a job will do with a file, and so which other users of it are in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Access {
    /// Read, though others may be writing: for looking at images in use.
    Inspect,
    /// Read what nobody may change meanwhile.
    Read,
    /// Read as a parent: only its owner may write, and only what its children don't see ([`Access::Merge`]).
    Parent,
    /// Write what those who read the file as a parent don't see: merging a child into it, changing its footer.
    Merge,
    /// Read and write, alone.
    Write,
    /// As [`Access::Write`], with a new file: one that exists already is an error.
    Create,
}

/// What a job wants of the host that only the host can do. As JSON: an object with the variant's name as its property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Want {
    /// Open this file. Answered by [`Answer::Opened`].
    Open {
        /// Its path, absolute if the path that the job was given was.
        path: String,
        /// How it will be read.
        driver: Driver,
        /// What for.
        access: Access,
    },
    /// Close this file. Answered by [`Answer::Done`].
    Close {
        /// The host's number of it.
        file: u16,
    },
    /// Remove a file. Answered by [`Answer::Done`].
    Remove {
        /// Its path.
        path: String,
    },
    /// Tell how many bytes can still be written to the file system of a file. Answered by [`Answer::FreeSpace`].
    FreeSpace {
        /// The host's number of the file.
        file: u16,
    },
}

/// A file that the host has opened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenedFile {
    /// The host's number of the file.
    pub file: u16,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it is a block device, which can't grow.
    pub block_device: bool,
    /// Its path without symbolic links: names of parents are relative to the folder there.
    #[serde(default)]
    pub real_path: String,
    /// When it was modified last, Unix time in seconds.
    #[serde(default)]
    pub modified: u64,
}

/// The host's answer to a [`Want`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The file is open.
    Opened(OpenedFile),
    /// It is done.
    Done,
    /// Bytes.
    FreeSpace(u64),
}

/// Where a job and the host exchange wants and answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files(Rc<RefCell<Exchange>>);

#[derive(Debug, Default)]
struct Exchange {
    want: Option<Want>,
    answer: Option<std::result::Result<Answer, i32>>,
}

impl Files {
    /// The host takes the want.
    pub(crate) fn take_want(&self) -> Option<Want> {
        self.0.borrow_mut().want.take()
    }

    /// The host answers, or fails with a (positive) errno value.
    pub(crate) fn answer(&self, answer: std::result::Result<Answer, i32>) {
        self.0.borrow_mut().answer = Some(answer);
    }

    async fn ask(&self, want: Want) -> std::result::Result<Answer, i32> {
        *self.0.borrow_mut() = Exchange {
            want: Some(want),
            answer: None,
        };
        until(|| self.0.borrow().answer.is_some()).await;
        self.0.borrow_mut().answer.take().unwrap_or(Err(errno::EIO))
    }

    /// Opens a file.
    ///
    /// # Errors
    /// The host's errno value.
    pub(crate) async fn open(
        &self,
        path: &str,
        driver: Driver,
        access: Access,
    ) -> std::result::Result<FileSpec, i32> {
        let want = Want::Open {
            path: path.to_owned(),
            driver,
            access,
        };
        match self.ask(want).await? {
            Answer::Opened(opened) => Ok(FileSpec {
                driver,
                path: path.to_owned(),
                file: opened.file,
                size: opened.size,
                block_device: opened.block_device,
                read_only: matches!(access, Access::Inspect | Access::Read | Access::Parent),
                real_path: opened.real_path,
                modified: opened.modified,
            }),
            _ => Err(errno::EIO),
        }
    }

    /// Closes a file. Whatever that comes to, the file is of no more use.
    pub(crate) async fn close(&self, file: u16) {
        let _ = self.ask(Want::Close { file }).await;
    }

    /// Removes a file durably.
    ///
    /// # Errors
    /// An I/O error that names the file.
    pub(crate) async fn remove(&self, path: &str) -> Result<()> {
        let want = Want::Remove {
            path: path.to_owned(),
        };
        match self.ask(want).await {
            Ok(Answer::Done) => Ok(()),
            answer => {
                let errno = answer.err().unwrap_or(errno::EIO);
                Err(Error::file(errno, "can't be removed").in_file(path))
            }
        }
    }

    /// Bytes that can still be written to the file system of a file.
    ///
    /// # Errors
    /// An I/O error.
    pub(crate) async fn free_space(&self, file: u16) -> Result<u64> {
        match self.ask(Want::FreeSpace { file }).await {
            Ok(Answer::FreeSpace(bytes)) => Ok(bytes),
            answer => Err(Error::file(
                answer.err().unwrap_or(errno::EIO),
                "its file system's free space can't be told",
            )),
        }
    }
}
