//! The log: one line an event, on standard error; what clients made up is escaped and cut.

use crate::limits;
use crate::settings::LogFormat;
use std::fmt::{self, Display, Write};
use tracing::level_filters::LevelFilter;

pub fn start(format: LogFormat, level: LevelFilter) {
    let log = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_ansi(false);
    // A second start in one process (tests) keeps the first.
    let _ = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
}

/// Panics are events of the log like others.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        // Empty unless RUST_BACKTRACE asks for it; quoted, so that it stays on its line.
        let backtrace = std::backtrace::Backtrace::capture();
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            tracing::error!(backtrace = ?backtrace.to_string(), "backtrace of the panic below");
        }
        tracing::error!(thread = thread.name(), %at, what = %clean(text.unwrap_or("?")), "panic");
    }));
}

/// A string from outside, fit for a line of the log.
pub fn clean(text: &str) -> impl Display + '_ {
    struct Clean<'a>(&'a str);
    impl Display for Clean<'_> {
        fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
            for character in self.0.chars().take(limits::LOGGED_CHARS_MAX) {
                match character {
                    '\\' | '"' => write!(f, "\\{character}")?,
                    _ if character.is_control() => write!(f, "{}", character.escape_default())?,
                    // Marks that change the direction of what follows.
                    '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                        write!(f, "{}", character.escape_unicode())?;
                    }
                    _ => f.write_char(character)?,
                }
            }
            if self.0.chars().nth(limits::LOGGED_CHARS_MAX).is_some() { f.write_str("…") } else { Ok(()) }
        }
    }
    Clean(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_made_by_a_client_stays_on_its_line() {
        assert_eq!(clean("a\nb\u{1b}[2J\"").to_string(), "a\\nb\\u{1b}[2J\\\"");
        assert_eq!(clean(&"x".repeat(1000)).to_string().chars().count(), limits::LOGGED_CHARS_MAX + 1);
    }
}
