//! Why the broker says no. The reason decides a protocol's code and reach; the text is RabbitMQ's, since people search for it
//! and clients match on it (facts: AMQP error table).

/// What kind of refusal; each protocol maps it to its own code in one exhaustive match.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    NotFound,
    AccessRefused,
    /// Somebody else's exclusive queue.
    Locked,
    PreconditionFailed,
    /// Vhost missing or closed to this user, a limit reached, a name reused: the connection cannot go on.
    NotAllowed,
    NotImplemented,
    /// Storage full or failing.
    ResourceError,
}

/// A refusal: nothing of the request was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    pub reason: Reason,
    /// Without the protocol's code name in front.
    pub text: String,
}

impl Error {
    pub fn new(reason: Reason, text: impl Into<String>) -> Error {
        Error { reason, text: text.into() }
    }

    pub fn not_found(text: impl Into<String>) -> Error {
        Error::new(Reason::NotFound, text)
    }

    pub fn access_refused(text: impl Into<String>) -> Error {
        Error::new(Reason::AccessRefused, text)
    }

    pub fn precondition(text: impl Into<String>) -> Error {
        Error::new(Reason::PreconditionFailed, text)
    }
}

pub type Result<T> = std::result::Result<T, Error>;
