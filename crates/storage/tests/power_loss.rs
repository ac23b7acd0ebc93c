//! A thousand power losses, each from a number that repeats it.
//!
//! `BRAID_SEEDS=n` runs n seeds, `BRAID_TIER=ci` 2,000, otherwise 200; `BRAID_SEED=n` replays one.

mod simulated;

use simulated::{Tally, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn is_ci() -> bool {
    std::env::var("BRAID_TIER").is_ok_and(|tier| tier != "quick")
}

fn verdict(seed: u64) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(|_| Err("panicked".into()))
}

#[test]
fn nothing_that_was_durable_is_lost_and_nothing_else_appears() {
    if let Some(seed) = number("BRAID_SEED") {
        let tally = run(seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        return println!("{tally:?}");
    }
    let seeds = number("BRAID_SEEDS").unwrap_or(if is_ci() { 2_000 } else { 200 });
    let next = AtomicU64::new(1);
    let total = Mutex::new((Tally::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds {
                        break;
                    }
                    let verdict = verdict(seed);
                    let mut total = total.lock().expect("nothing panics under this lock");
                    match verdict {
                        Ok(tally) => total.0.add(tally),
                        Err(error) => total.1.push((seed, error)),
                    }
                }
            });
        }
    });
    let (tally, mut failed) = total.into_inner().expect("nothing panics under this lock");
    println!("power loss: {tally:?}");
    failed.sort();
    for (seed, error) in failed.iter().take(10) {
        println!("BRAID_SEED={seed}: {}", error.chars().take(400).collect::<String>());
    }
    assert!(failed.is_empty(), "{} of {seeds} seeds failed", failed.len());
}
