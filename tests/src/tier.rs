//! How much a test run does.

/// `BRAID_TIER`: what a person runs before a commit, what CI runs, what runs overnight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tier {
    Quick,
    Ci,
    Long,
}

impl Tier {
    pub fn of_this_run() -> Tier {
        match std::env::var("BRAID_TIER").as_deref() {
            Ok("ci") => Tier::Ci,
            Ok("long") => Tier::Long,
            Ok("") | Err(_) => Tier::Quick,
            Ok(other) => panic!("BRAID_TIER is '{other}'; it may be ci or long"),
        }
    }

    /// In CI everything is required; elsewhere a missing runtime is said, and passed over.
    pub fn require(self, what: &str, there: bool) -> bool {
        if !there {
            assert!(self == Tier::Quick, "{what} is missing, and this tier requires it");
            println!("SKIPPED: {what} is not on this machine");
        }
        there
    }
}
