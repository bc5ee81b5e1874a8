//! What crosses as JSON: descriptions of jobs and their results. Nothing on the way of a request.

use serde::{Deserialize, Serialize};
use vhd::record;
use vhd::{Answer, Driver, FileSpec, ImageInfo, Job, JobSpec, OpenedFile, Outcome};

#[derive(Serialize)]
pub(crate) struct Place {
    pub(crate) offset: usize,
    pub(crate) capacity: usize,
}

#[derive(Serialize)]
pub(crate) struct Staging {
    pub(crate) offset: usize,
    pub(crate) length: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Layout {
    pub(crate) operations: Place,
    pub(crate) completions: Place,
    pub(crate) td_requests: Place,
    pub(crate) finished: Place,
    pub(crate) requests: Place,
    pub(crate) responses: Place,
    pub(crate) staging: Staging,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RecordWords {
    td_request: usize,
    finished: usize,
    op: usize,
    completion: usize,
    front_end_request: usize,
    response: usize,
    max_segments: usize,
}

impl Default for RecordWords {
    fn default() -> Self {
        Self {
            td_request: record::TD_REQUEST_WORDS,
            finished: record::FINISHED_WORDS,
            op: record::OP_WORDS,
            completion: record::COMPLETION_WORDS,
            front_end_request: record::FRONT_END_REQUEST_WORDS,
            response: record::RESPONSE_WORDS,
            max_segments: record::MAX_SEGMENTS,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OpenJob {
    driver: Driver,
    path: String,
    read_only: bool,
    #[serde(flatten)]
    opened: OpenedFile,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum AnswerJson {
    Opened(OpenedFile),
    Done {},
    FreeSpace(u64),
    Errno(i32),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Opened<'a> {
    sectors: u64,
    size_bytes: u64,
    #[serde(rename = "type")]
    disk_type: String,
    block_size: u32,
    uuid: &'a str,
    depth: u32,
    allocated_blocks: u32,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct Failed<'a> {
    error: Failure<'a>,
}

#[derive(Serialize)]
struct Failure<'a> {
    /// The whole error in words, as a person should read it.
    message: String,
    file: Option<&'a str>,
    structure: &'a str,
    offset: Option<u64>,
    found: Option<&'a str>,
    expected: Option<&'a str>,
    errno: i32,
}

/// The JSON of a value: of this module, a want, or how far a job is.
pub(crate) fn to_string(value: &impl Serialize) -> String {
    // Nothing here has maps with other keys than strings or fails to serialise by itself.
    serde_json::to_string(value).unwrap_or_default()
}

/// The file that the description of an open job names.
///
/// # Errors
/// What is wrong with the description.
pub(crate) fn file_spec(json: &str) -> Result<FileSpec, String> {
    let job: OpenJob = serde_json::from_str(json).map_err(|error| error.to_string())?;
    Ok(FileSpec {
        driver: job.driver,
        path: job.path,
        file: job.opened.file,
        size: job.opened.size,
        block_device: job.opened.block_device,
        read_only: job.read_only,
        real_path: job.opened.real_path,
        modified: job.opened.modified,
    })
}

/// The job that JSON describes.
///
/// # Errors
/// What is wrong with the description.
pub(crate) fn job_spec(json: &str) -> Result<JobSpec, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// The answer to a want.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn answer(json: &str) -> Result<Result<Answer, i32>, String> {
    let answer = serde_json::from_str(json).map_err(|error| error.to_string())?;
    Ok(Ok(match answer {
        AnswerJson::Opened(opened) => Answer::Opened(opened),
        AnswerJson::Done {} => Answer::Done,
        AnswerJson::FreeSpace(bytes) => Answer::FreeSpace(bytes),
        AnswerJson::Errno(errno) => return Ok(Err(errno)),
    }))
}

/// What a job yielded so far.
pub(crate) fn job_result(job: &Job) -> String {
    match job {
        Job::None | Job::Running => "null".to_owned(),
        Job::Over(Ok(Outcome::Opened(info))) => to_string(&opened(info)),
        Job::Over(Ok(outcome)) => to_string(outcome),
        Job::Over(Err(error)) => to_string(&Failed {
            error: Failure {
                message: error.to_string(),
                file: error.file.as_deref(),
                structure: error.structure,
                offset: error.offset,
                found: error.found.as_deref(),
                expected: error.expected.as_deref(),
                errno: error.errno,
            },
        }),
    }
}

fn opened(info: &ImageInfo) -> Opened<'_> {
    Opened {
        sectors: info.sectors,
        size_bytes: info.sectors * 512,
        disk_type: info
            .disk_type
            .map_or_else(|| "raw".to_owned(), |disk_type| disk_type.to_string()),
        block_size: info.block_size,
        uuid: &info.uuid,
        depth: info.depth,
        allocated_blocks: info.allocated_blocks,
        warnings: &info.warnings,
    }
}
