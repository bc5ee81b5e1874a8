//! Why something failed, in words for who started it.

/// The words.
#[derive(Debug)]
pub struct Failure(pub String);

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// The outcome of a job.
pub type Result<T> = std::result::Result<T, Failure>;

/// Turns an I/O error into a failure that says what was being done.
///
/// # Errors
/// That failure.
pub fn during<T>(what: &str, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| Failure(format!("{what}: {error}")))
}

/// Fails with a message.
#[macro_export]
macro_rules! fail {
    ($($message:tt)*) => { return Err($crate::Failure(format!($($message)*))) };
}
