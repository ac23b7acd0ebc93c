//! The one place that reads the time.

use protocol::Now;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic milliseconds count from here; they begin at 1, so that 0 never means a real moment.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { unix_ms: unix.as_millis() as u64, mono_ms: self.start.elapsed().as_millis() as u64 + 1 }
    }

    /// The instant at which [`Now::mono_ms`] becomes `mono_ms`.
    pub fn instant(&self, mono_ms: u64) -> Instant {
        // A deadline beyond a century is never.
        self.start + Duration::from_millis(mono_ms.saturating_sub(1).min(100 * 365 * 86_400_000))
    }
}
