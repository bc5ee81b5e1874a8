//! What crosses as JSON: descriptions of jobs and their results. Nothing on the way of a request.

use serde::{Deserialize, Serialize};
use vhd::record;
use vhd::{Driver, FileSpec, ImageInfo, Job, Want};

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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OpenJob {
    driver: DriverName,
    path: String,
    file: u16,
    size: u64,
    block_device: bool,
    read_only: bool,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum DriverName {
    Vhd,
    Aio,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum WantJson {
    Open { path: String, driver: DriverName },
    Close { file: u16 },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    #[serde(rename_all = "camelCase")]
    Opened {
        file: u16,
        size: u64,
        block_device: bool,
    },
    Failed {
        errno: i32,
    },
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

/// The JSON of a value of this module.
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
        driver: match job.driver {
            DriverName::Vhd => Driver::Vhd,
            DriverName::Aio => Driver::Aio,
        },
        path: job.path,
        file: job.file,
        size: job.size,
        block_device: job.block_device,
        read_only: job.read_only,
    })
}

/// The JSON of a want, `null` if there is none.
pub(crate) fn want(want: Option<Want>) -> String {
    to_string(&want.map(|want| match want {
        Want::Open { path, driver } => WantJson::Open {
            path,
            driver: match driver {
                Driver::Vhd => DriverName::Vhd,
                Driver::Aio => DriverName::Aio,
            },
        },
        Want::Close { file } => WantJson::Close { file },
    }))
}

/// The answer to a want.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn answer(json: &str) -> Result<Result<FileSpec, i32>, String> {
    Ok(
        match serde_json::from_str(json).map_err(|error| error.to_string())? {
            Answer::Opened {
                file,
                size,
                block_device,
            } => Ok(FileSpec {
                driver: Driver::Vhd,
                path: String::new(),
                file,
                size,
                block_device,
                read_only: true,
            }),
            Answer::Failed { errno } => Err(errno),
        },
    )
}

/// What a job yielded so far.
pub(crate) fn job_result(job: &Job) -> String {
    match job {
        Job::None | Job::Running | Job::Over(Ok(None)) => "null".to_owned(),
        Job::Over(Ok(Some(info))) => to_string(&opened(info)),
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
