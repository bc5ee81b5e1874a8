//! The wasm-bindgen face of the engine: batches of records in WebAssembly memory, and jobs described in JSON.
//!
//! One crossing moves a whole batch: the host finds completions and requests where [`Engine::layout`] says, calls
//! [`Engine::step`], and finds operations and finished requests there. Nothing but numbers crosses on that way.
#![forbid(unsafe_code)]

mod batch;
mod json;

use vhd::record::{COMPLETION_WORDS, Completion, TD_REQUEST_WORDS, TdRequest};
use wasm_bindgen::JsError;
use wasm_bindgen::prelude::wasm_bindgen;

use crate::batch::{Area, OPERATIONS, REQUESTS};

/// The engine of one virtual disk, with the memory in which its batches travel.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Engine {
    engine: vhd::Engine,
    operations: Area,
    completions: Area,
    td_requests: Area,
    finished: Area,
    requests: Area,
    responses: Area,
    pending: bool,
}

#[wasm_bindgen]
impl Engine {
    /// An engine with no disk, which will keep at most `bitmap_cache_bytes` bytes of sector bitmaps.
    #[wasm_bindgen(constructor)]
    #[must_use]
    pub fn new(bitmap_cache_bytes: u32) -> Self {
        Self {
            engine: vhd::Engine::new(bitmap_cache_bytes as usize),
            operations: Area::new(OPERATIONS, vhd::record::OP_WORDS),
            completions: Area::new(OPERATIONS, COMPLETION_WORDS),
            // A request of a front end has up to MAX_SEGMENTS parts.
            td_requests: Area::new(REQUESTS * vhd::record::MAX_SEGMENTS, TD_REQUEST_WORDS),
            finished: Area::new(OPERATIONS, vhd::record::FINISHED_WORDS),
            requests: Area::new(REQUESTS, vhd::record::FRONT_END_REQUEST_WORDS),
            responses: Area::new(OPERATIONS, vhd::record::RESPONSE_WORDS),
            pending: false,
        }
    }

    /// JSON: for each area its byte offset in WebAssembly memory and its capacity in records, and the staging area. All
    /// of it stays where it is as long as the engine lives.
    #[must_use]
    pub fn layout(&mut self) -> String {
        let staging = self.engine.with_staging(|bytes| json::Staging {
            offset: bytes.as_ptr() as usize,
            length: bytes.len(),
        });
        json::to_string(&json::Layout {
            operations: self.operations.place(),
            completions: self.completions.place(),
            td_requests: self.td_requests.place(),
            finished: self.finished.place(),
            requests: self.requests.place(),
            responses: self.responses.place(),
            staging,
        })
    }

    /// Starts the job that opens a disk, described by JSON: `{"driver":"vhd"|"aio","path","file","size","blockDevice",
    /// "readOnly"}`, size in bytes; `"realPath"` and `"modified"` (Unix time, seconds) if they are known.
    ///
    /// # Errors
    /// What is wrong with the description.
    pub fn open(&mut self, spec: &str) -> Result<(), JsError> {
        self.engine
            .open(json::file_spec(spec).map_err(|error| JsError::new(&error))?);
        Ok(())
    }

    /// Starts a job, described by JSON: `{"job":…}` with its parameters, see [`vhd::JobSpec`].
    ///
    /// # Errors
    /// What is wrong with the description.
    pub fn start(&mut self, spec: &str) -> Result<(), JsError> {
        self.engine
            .start(json::job_spec(spec).map_err(|error| JsError::new(&error))?);
        Ok(())
    }

    /// JSON: how far the job is, `{"phase","done","total"}`.
    #[must_use]
    pub fn progress(&self) -> String {
        json::to_string(&self.engine.progress())
    }

    /// Asks the job to stop as soon as it safely can; it fails with `ECANCELED` then.
    pub fn cancel(&mut self) {
        self.engine.cancel();
    }

    /// JSON: what the running job wants of the host, an object whose one property is named as a [`vhd::Want`], such as
    /// `{"open":{"path","driver","access"}}`; else `null`. Each want is told once, and answered by [`Engine::provide`].
    pub fn want(&mut self) -> String {
        json::to_string(&self.engine.want())
    }

    /// Answers the last want, by JSON: an object whose one property is named as a [`vhd::Answer`], such as
    /// `{"opened":{"file","size","blockDevice","realPath","modified"}}` or `{"done":{}}`; or `{"errno":…}` (positive).
    ///
    /// # Errors
    /// What is wrong with the answer.
    pub fn provide(&mut self, answer: &str) -> Result<(), JsError> {
        let answer = json::answer(answer).map_err(|error| JsError::new(&error))?;
        self.engine.provide(answer);
        Ok(())
    }

    /// Starts the job that closes the disk: waits for the requests in flight, makes everything durable and writes the
    /// footer. New requests fail with `ESHUTDOWN`.
    pub fn close(&mut self) {
        self.engine.close();
    }

    /// Starts the job that makes the open disk `size` bytes large, as far as its BAT has room, while it is in use.
    pub fn grow(&mut self, size: f64) {
        // Sizes are far below 2^53; what is no size becomes one that is refused.
        self.engine.grow(size as u64);
    }

    /// Asks for dirty metadata to be written though nobody waits for it; for when the host is idle.
    pub fn sync_metadata(&mut self) {
        self.engine.sync_metadata();
    }

    /// State of the job that was started last: 0 none, 1 running, 2 done, 3 failed.
    #[must_use]
    pub fn job(&self) -> u32 {
        match self.engine.job() {
            vhd::Job::None => 0,
            vhd::Job::Running => 1,
            vhd::Job::Over(Ok(_)) => 2,
            vhd::Job::Over(Err(_)) => 3,
        }
    }

    /// JSON: what the job yielded, or `{"error":{…}}`; `null` while there is nothing to tell.
    #[must_use]
    pub fn job_result(&self) -> String {
        json::job_result(&self.engine.job())
    }

    /// Takes in `completions` completions and `td_requests` requests from their areas (more than an area holds count as
    /// what it holds) and moves everything on. Returns the number of operations now in the operations area, and that of
    /// finished requests in the finished area shifted left by 15 bits.
    pub fn step(&mut self, completions: u32, td_requests: u32) -> u32 {
        for words in self.completions.records::<COMPLETION_WORDS>(completions) {
            self.engine.complete(Completion::decode(words));
        }
        for words in self.td_requests.records::<TD_REQUEST_WORDS>(td_requests) {
            self.engine.submit(&TdRequest::decode(words));
        }
        self.engine.run();
        let (mut operations, mut finished) = (0, 0);
        while operations < self.operations.capacity()
            && let Some(op) = self.engine.take_op()
        {
            self.operations.put(operations, &op.encode());
            operations += 1;
        }
        while finished < self.finished.capacity()
            && let Some(request) = self.engine.take_finished()
        {
            self.finished.put(finished, &request.encode());
            finished += 1;
        }
        self.pending =
            operations == self.operations.capacity() || finished == self.finished.capacity();
        (operations | finished << 15) as u32
    }

    /// Whether an area was full after the last step, so that more may wait: step again before waiting for anything.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.pending
    }
}

/// JSON: the number of words in each record, for the test that compares them with the TypeScript views.
#[wasm_bindgen]
#[must_use]
pub fn record_words() -> String {
    json::to_string(&json::RecordWords::default())
}
