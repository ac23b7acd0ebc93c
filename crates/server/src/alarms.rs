//! Watches memory and disk once a second; publishers stop while either is short. Page cache never counts: it gives way.

use crate::hub::Hub;
use crate::settings::Settings;
use broker::Alarm;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

#[derive(Clone, Debug)]
pub struct Watermarks {
    /// Anonymous memory of this process, bytes.
    pub memory_max: u64,
    /// Free space on the disk of the data directory, bytes.
    pub disk_free_min: u64,
    pub data_dir: PathBuf,
}

impl Watermarks {
    pub fn of(settings: &Settings) -> Watermarks {
        Watermarks::new(settings.memory_limit, settings.disk_free_limit, &settings.data_dir)
    }

    /// What was set, or 0.6 of the memory we may use, and 1 GiB or 5 % of the disk, whichever is more.
    fn new(memory_limit: Option<u64>, disk_free_limit: Option<u64>, data_dir: &Path) -> Watermarks {
        Watermarks {
            memory_max: memory_limit.unwrap_or_else(|| memory_available() / 5 * 3),
            disk_free_min: disk_free_limit.unwrap_or_else(|| (1 << 30).max(disk(data_dir).map_or(0, |(_, size)| size / 20))),
            data_dir: data_dir.to_owned(),
        }
    }
}

/// Runs for the life of the process; the watermarks may change meanwhile.
pub async fn run(hub: Arc<Hub>, watermarks: watch::Receiver<Watermarks>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tick.tick().await;
        let watermarks = watermarks.borrow().clone();
        let memory = anonymous_memory().unwrap_or(0);
        hub.set_alarm(Alarm::Memory, is_on(hub.has_alarm(Alarm::Memory), memory, watermarks.memory_max));
        if let Some((free, _)) = disk(&watermarks.data_dir) {
            // The same rule upside down.
            let on = if hub.has_alarm(Alarm::Disk) {
                free < with_slack(watermarks.disk_free_min)
            } else {
                free < watermarks.disk_free_min
            };
            hub.set_alarm(Alarm::Disk, on);
        }
    }
}

/// Goes on above the mark, and off only when a twentieth below it, so that it does not flutter.
fn is_on(was_on: bool, used: u64, max: u64) -> bool {
    if was_on { used > max - max / 20 } else { used > max }
}

fn with_slack(min: u64) -> u64 {
    min + min / 20
}

/// (free for us, size) in bytes.
fn disk(dir: &Path) -> Option<(u64, u64)> {
    let facts = rustix::fs::statvfs(dir).ok()?;
    Some((facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize))
}

/// Memory that only we can give back: no file pages, no page cache.
pub fn anonymous_memory() -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

/// The machine's memory, or less if a control group says so.
fn memory_available() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| kibibytes(&text, "MemTotal:"));
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or("").to_owned();
    let limits = [
        format!("/sys/fs/cgroup/{group}/memory.max"),
        "/sys/fs/cgroup/memory.max".into(),
        "/sys/fs/cgroup/memory/memory.limit_in_bytes".into(),
    ];
    let limits = limits.iter().filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
    limits.chain(machine).min().unwrap_or(u64::MAX)
}

/// The number in a line like `RssAnon:     1234 kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_does_not_flutter() {
        assert!(!is_on(false, 1_000, 1_000));
        assert!(is_on(false, 1_001, 1_000));
        assert!(is_on(true, 960, 1_000));
        assert!(!is_on(true, 950, 1_000));
    }

    #[test]
    fn this_machine_can_be_read() {
        assert!(anonymous_memory().unwrap() > 4096);
        assert!(memory_available() > 64 << 20);
        assert!(disk(Path::new("/")).unwrap().1 > 0);
        assert_eq!(kibibytes("A: 1 kB\nRssAnon:\t  12 kB\n", "RssAnon:"), Some(12 << 10));
    }
}
