//! What goes wrong, in AMQP's numbers: reply codes, how far each reaches, and RabbitMQ's words for what the protocol finds itself.

use crate::reader::{Malformed, cut};
use broker::Reason;
use std::fmt::Write;

/// Reply codes of AMQP 0-9-1 §1.2, those that a server sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    NoRoute = 312,
    ConnectionForced = 320,
    AccessRefused = 403,
    NotFound = 404,
    ResourceLocked = 405,
    PreconditionFailed = 406,
    FrameError = 501,
    SyntaxError = 502,
    CommandInvalid = 503,
    ChannelError = 504,
    UnexpectedFrame = 505,
    ResourceError = 506,
    NotAllowed = 530,
    NotImplemented = 540,
    InternalError = 541,
}

/// How much ends with an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    Channel,
    Connection,
}

impl Code {
    /// The code for a refusal of the broker.
    pub fn of(reason: Reason) -> Code {
        match reason {
            Reason::NotFound => Code::NotFound,
            Reason::AccessRefused => Code::AccessRefused,
            Reason::Locked => Code::ResourceLocked,
            Reason::PreconditionFailed => Code::PreconditionFailed,
            Reason::NotAllowed => Code::NotAllowed,
            Reason::NotImplemented => Code::NotImplemented,
            Reason::ResourceError => Code::ResourceError,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Code::NoRoute => "NO_ROUTE",
            Code::ConnectionForced => "CONNECTION_FORCED",
            Code::AccessRefused => "ACCESS_REFUSED",
            Code::NotFound => "NOT_FOUND",
            Code::ResourceLocked => "RESOURCE_LOCKED",
            Code::PreconditionFailed => "PRECONDITION_FAILED",
            Code::FrameError => "FRAME_ERROR",
            Code::SyntaxError => "SYNTAX_ERROR",
            Code::CommandInvalid => "COMMAND_INVALID",
            Code::ChannelError => "CHANNEL_ERROR",
            Code::UnexpectedFrame => "UNEXPECTED_FRAME",
            Code::ResourceError => "RESOURCE_ERROR",
            Code::NotAllowed => "NOT_ALLOWED",
            Code::NotImplemented => "NOT_IMPLEMENTED",
            Code::InternalError => "INTERNAL_ERROR",
        }
    }

    /// Soft errors (§4.10.2) end the channel, hard ones the connection, wherever they arise.
    pub fn reach(self) -> Reach {
        match self {
            Code::NoRoute | Code::AccessRefused | Code::NotFound | Code::ResourceLocked | Code::PreconditionFailed => {
                Reach::Channel
            }
            _ => Reach::Connection,
        }
    }
}

/// A close, not yet sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub code: Code,
    /// Without the code's name in front.
    pub text: String,
    /// Class and method that failed; (0, 0) where none is to blame.
    pub method: (u16, u16),
}

impl Refusal {
    pub fn new(code: Code, text: impl Into<String>) -> Refusal {
        Refusal { code, text: text.into(), method: (0, 0) }
    }

    pub fn of(error: &broker::Error) -> Refusal {
        Refusal::new(Code::of(error.reason), error.text.as_str())
    }

    pub fn precondition(text: impl Into<String>) -> Refusal {
        Refusal::new(Code::PreconditionFailed, text)
    }

    pub fn not_implemented(text: impl Into<String>) -> Refusal {
        Refusal::new(Code::NotImplemented, text)
    }

    pub fn not_allowed(text: impl Into<String>) -> Refusal {
        Refusal::new(Code::NotAllowed, text)
    }

    pub fn channel_error(text: impl Into<String>) -> Refusal {
        Refusal::new(Code::ChannelError, text)
    }

    pub fn unexpected(text: impl Into<String>) -> Refusal {
        Refusal::new(Code::UnexpectedFrame, text)
    }

    /// Blames a method.
    pub fn at(mut self, method: (u16, u16)) -> Refusal {
        self.method = method;
        self
    }

    /// A method whose fields could not be read.
    pub fn of_method(malformed: Malformed, method: (u16, u16), fields: &[u8]) -> Refusal {
        match malformed {
            Malformed::UnknownMethod => Refusal::new(Code::CommandInvalid, "unimplemented method"),
            Malformed::Utf8 => Refusal::new(Code::FrameError, "Malformed UTF-8 in shortstr").at(method),
            Malformed::Length => Refusal::new(Code::FrameError, format!("cannot decode {}", octets(fields))).at(method),
            Malformed::Tag(_) | Malformed::Depth => Refusal::of_table(malformed).at(method),
        }
    }

    /// A field table that could not be read.
    pub fn of_table(malformed: Malformed) -> Refusal {
        Refusal::new(
            Code::SyntaxError,
            match malformed {
                Malformed::Tag(tag) => format!("unknown field value type {tag} in table"),
                Malformed::Depth => format!("table nested deeper than {}", crate::limits::NESTING_MAX),
                Malformed::Utf8 => "Malformed UTF-8 in shortstr".into(),
                Malformed::Length | Malformed::UnknownMethod => "malformed table".into(),
            },
        )
    }

    /// A frame that is none: `what` says why.
    pub fn of_frame(kind: u8, payload: &[u8], what: &str) -> Refusal {
        Refusal::new(Code::FrameError, format!("{}: {what}", snippet(kind, payload)))
    }

    /// A frame in the wrong place.
    pub fn misplaced(kind: u8, payload: &[u8]) -> Refusal {
        Refusal::unexpected(snippet(kind, payload))
    }

    /// `CODE_NAME - explanation`; what a short string doesn't hold is cut off, and that is shown.
    pub fn reply_text(&self) -> String {
        let mut text = format!("{} - {}", self.code.name(), self.text);
        if text.len() > 255 {
            let length = cut(&text, 252).len();
            text.truncate(length);
            text.push_str("...");
        }
        text
    }
}

fn snippet(kind: u8, payload: &[u8]) -> String {
    match payload.get(..16) {
        Some(first) if payload.len() > 16 => format!("type {kind}, first 16 octets = {}", term(first)),
        _ => format!("type {kind}, all octets = {}", term(payload)),
    }
}

/// Bytes as RabbitMQ prints them where text is expected: `<<"text">>`, or numbers if some byte can't be printed.
pub fn term(bytes: &[u8]) -> String {
    let printable = |b: &u8| matches!(b, 0x20..=0x7e | b'\n' | b'\r' | b'\t' | 0x0b | 0x08 | 0x0c | 0x1b);
    if bytes.is_empty() || !bytes.iter().all(printable) {
        return octets(bytes);
    }
    let mut text = String::from("<<\"");
    for &byte in bytes {
        match byte {
            b'"' => text.push_str("\\\""),
            b'\\' => text.push_str("\\\\"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            b'\t' => text.push_str("\\t"),
            0x0b => text.push_str("\\v"),
            0x08 => text.push_str("\\b"),
            0x0c => text.push_str("\\f"),
            0x1b => text.push_str("\\e"),
            byte => text.push(byte as char),
        }
    }
    text.push_str("\">>");
    text
}

/// Bytes as numbers: `<<1,2,3>>`. What a reply text can't hold is left out.
pub fn octets(bytes: &[u8]) -> String {
    let mut text = String::from("<<");
    for (i, byte) in bytes.iter().take(128).enumerate() {
        let _ = write!(text, "{}{byte}", if i == 0 { "" } else { "," });
    }
    text.push_str(">>");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_text_names_its_code_and_is_cut_between_characters() {
        let refusal = Refusal::precondition("é".repeat(200));
        let text = refusal.reply_text();
        assert!(text.starts_with("PRECONDITION_FAILED - é"));
        assert!(text.len() == 255 && text.ends_with("é..."), "{text}");
    }

    #[test]
    fn bytes_are_printed_as_rabbitmq_prints_them() {
        assert_eq!(term(b""), "<<>>");
        assert_eq!(term(b"a\"b\n"), "<<\"a\\\"b\\n\">>");
        assert_eq!(term(&[1, 200]), "<<1,200>>");
    }
}
