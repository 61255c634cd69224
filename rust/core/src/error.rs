//! One error type: a small matchable kind, a context (what, which file, where) and a source.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure this is; the Python exceptions mirror these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system failed; [`Error::os_error`] has its number.
    Io,
    /// The file is not an image of that format, or its header makes no sense.
    InvalidImage,
    /// The image's metadata contradicts itself.
    Corrupt,
    /// The image needs a feature that is not there; the message names it.
    Unsupported,
    /// The gate refused an implicit reference (backing file, data file).
    ImplicitOpenDenied,
    /// The image is encrypted, and the secret is missing or wrong.
    WrongSecret,
    /// Another process holds a lock on the image.
    Locked,
    /// The caller's argument is wrong: range past the end, bad option, bad combination.
    InvalidInput,
    /// A write to something that was opened read-only.
    ReadOnly,
    /// The image was closed.
    Closed,
    /// An earlier metadata write failed; nothing more is written to this storage.
    Latched,
}

/// What failed, where, and why.
///
/// Cheap to clone, so that every waiter of one failed load or flush gets the same error.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    path: Option<PathBuf>,
    offset: Option<u64>,
    source: Option<Arc<io::Error>>,
}

impl Error {
    /// An error of this kind; `message` says what is wrong and, where it helps, what to do.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Arc::new(Inner { kind, message: message.into(), path: None, offset: None, source: None }))
    }

    /// Shorthand for [`ErrorKind::InvalidImage`].
    pub fn invalid_image(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidImage, message)
    }

    /// Shorthand for [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }

    /// Shorthand for [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// Shorthand for [`ErrorKind::InvalidInput`].
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidInput, message)
    }

    /// A failure of the operating system while doing `what` (a verb phrase: "read", "open").
    pub fn io(what: impl Into<String>, source: io::Error) -> Self {
        Error(Arc::new(Inner {
            kind: ErrorKind::Io,
            message: what.into(),
            path: None,
            offset: None,
            source: Some(Arc::new(source)),
        }))
    }

    /// The same error with the file it happened in, unless one is known already.
    #[must_use]
    pub fn in_file(mut self, path: impl AsRef<Path>) -> Self {
        if self.0.path.is_none() {
            Arc::make_mut(&mut self.0).path = Some(path.as_ref().to_owned());
        }
        self
    }

    /// The same error with the offset in the file (bytes) it happened at, unless one is known already.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        if self.0.offset.is_none() {
            Arc::make_mut(&mut self.0).offset = Some(offset);
        }
        self
    }

    /// The same error, told as part of something larger (a noun phrase: "backing file ... of ...").
    #[must_use]
    pub fn within(mut self, context: &str) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.message = format!("{context}: {}", inner.message);
        self
    }

    /// The same error with what follows from it (a sentence without its stop).
    #[must_use]
    pub(crate) fn followed_by(mut self, consequence: &str) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        inner.message = format!("{}; {consequence}", inner.message);
        self
    }

    /// The same error, told of `path`: the file that the caller asked for, in whose place another one was used.
    #[must_use]
    pub fn about(mut self, path: impl AsRef<Path>) -> Self {
        Arc::make_mut(&mut self.0).path = Some(path.as_ref().to_owned());
        self
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What went wrong, without file, offset and source.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The file it happened in, where one is known.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// The offset in that file, in bytes.
    pub fn offset(&self) -> Option<u64> {
        self.0.offset
    }

    /// `errno` of the operating system's failure behind this error.
    pub fn os_error(&self) -> Option<i32> {
        self.0.source.as_ref().and_then(|e| e.raw_os_error())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.0.path {
            write!(f, "{}: ", path.display().to_string().escape_debug())?;
        }
        f.write_str(&self.0.message)?;
        if let Some(offset) = self.0.offset {
            write!(f, " (at offset {offset:#x})")?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|e| e as _)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::Io => match error.os_error() {
                Some(code) => io::Error::from_raw_os_error(code).kind(),
                None => io::ErrorKind::Other,
            },
            ErrorKind::InvalidImage | ErrorKind::Corrupt => io::ErrorKind::InvalidData,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::ImplicitOpenDenied | ErrorKind::ReadOnly | ErrorKind::WrongSecret => {
                io::ErrorKind::PermissionDenied
            }
            ErrorKind::Locked => io::ErrorKind::WouldBlock,
            ErrorKind::InvalidInput => io::ErrorKind::InvalidInput,
            ErrorKind::Closed | ErrorKind::Latched => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
