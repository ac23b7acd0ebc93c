//! Regular expressions of permissions and policies. They match anywhere in a name unless they say otherwise, and may look ahead
//! (`^(?!amq\.)` is in RabbitMQ's own examples); a match that takes too many steps is none.

use crate::error::{Error, Result};
use crate::limits::{PATTERN_BYTES_MAX, PATTERN_COMPILED_BYTES_MAX, PATTERN_STEPS_MAX};
use fancy_regex::{Regex, RegexBuilder};

#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    /// `None`: everything, which is what most patterns say.
    regex: Option<Box<Regex>>,
}

impl Pattern {
    pub fn new(text: &str) -> Result<Pattern> {
        if text == ".*" {
            return Ok(Pattern { text: text.into(), regex: None });
        }
        let invalid = |why: &dyn std::fmt::Display| Error::precondition(format!("invalid regular expression '{text}': {why}"));
        if text.len() > PATTERN_BYTES_MAX {
            return Err(Error::precondition(format!("regular expression longer than {PATTERN_BYTES_MAX} bytes")));
        }
        let regex = RegexBuilder::new(text)
            .backtrack_limit(PATTERN_STEPS_MAX)
            .delegate_size_limit(PATTERN_COMPILED_BYTES_MAX)
            .delegate_dfa_size_limit(PATTERN_COMPILED_BYTES_MAX)
            .build()
            .map_err(|e| invalid(&e))?;
        Ok(Pattern { text: text.into(), regex: Some(Box::new(regex)) })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn matches(&self, name: &str) -> bool {
        self.regex.as_ref().is_none_or(|regex| regex.is_match(name).unwrap_or(false))
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.text == other.text
    }
}

/// Text that stands for itself inside a pattern.
pub fn escape(text: &str) -> String {
    fancy_regex::escape(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_anywhere_and_may_look_ahead() {
        let matches = |pattern: &str, name: &str| Pattern::new(pattern).expect("valid").matches(name);
        assert!(matches("b", "abc") && matches(".*", "") && matches("", "anything"));
        assert!(!matches("^b$", "abc"));
        assert!(matches(r"^(?!amq\.).*", "mine") && !matches(r"^(?!amq\.).*", "amq.direct"));
    }

    #[test]
    fn wrong_huge_and_endless_patterns_are_refused_or_match_nothing() {
        assert!(Pattern::new("(").is_err());
        assert!(Pattern::new(&"a".repeat(PATTERN_BYTES_MAX + 1)).is_err());
        assert!(Pattern::new(r"\w{5000}{5000}").is_err());
        let endless = Pattern::new(r"^(?=(a+)+$)(a|aa)+\1$").expect("valid");
        assert!(!endless.matches(&"a".repeat(250).replace("aaaaa", "aaaab")));
    }
}
