//! What can go wrong, in words a person can act on, and the exit code it becomes.
//!
//! A message names the object and, where there is one, the remedy. It is lower case and has no
//! full stop, except for the texts that scripts written for `atomic` search for.

use std::fmt;

/// The result of everything in this library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The class of an error: what a caller may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The words of the call are wrong (exit code 2).
    Usage,
    /// A person said no (exit code 2).
    Refused,
    /// Something that was named does not exist.
    NotFound,
    /// Something is in the way.
    Exists,
    /// Data is malformed, or is not what its digest says.
    Invalid,
    /// A registry, an archive or skopeo answered with an error.
    Transport,
    /// The signature policy of the host forbids the image.
    Policy,
    /// systemd or D-Bus.
    Systemd,
    /// A unit did not start, or did not stay.
    Unit,
    /// Not allowed for this user.
    Permission,
    /// ^C (exit code 130) or SIGTERM (143): the number is that of the signal.
    Interrupted(u8),
    /// Nobody reads our output any more: nothing is said, as with SIGPIPE (exit code 141).
    Closed,
    /// A child process ended with this status, which becomes ours.
    Child(u8),
    /// Anything else: mostly the operating system.
    Failed,
}

/// An error: a kind and one message for people.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The class of this error.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The exit code of the program when this error ends it.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage | Kind::Refused => 2,
            Kind::Interrupted(signal) => 128 + signal,
            Kind::Closed => 141,
            Kind::Child(status) => status,
            _ => 1,
        }
    }

    /// The same error with `prefix: ` in front.
    #[must_use]
    pub fn within(self, prefix: impl fmt::Display) -> Self {
        Self {
            kind: self.kind,
            message: format!("{prefix}: {}", self.message),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Says which object a low-level error is about.
pub trait Context<T> {
    /// Turn the error into one of [`Kind::Failed`] that reads `what: cause`.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
    /// The same with a kind.
    fn kind(self, kind: Kind, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.kind(Kind::Failed, what)
    }

    fn kind(self, kind: Kind, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::new(kind, format!("{}: {cause}", what())))
    }
}

/// `fail!(Kind::Invalid, "…{x}")`: return early with an error.
#[macro_export]
macro_rules! fail {
    ($kind:expr, $($message:tt)+) => {
        return Err($crate::error::Error::new($kind, format!($($message)+)))
    };
}
