//! Books kept by a client that we did not write, while the broker is killed with `kill -9` and started again: nothing that was
//! confirmed is lost, nothing comes that was not sent, nothing comes out of order.
//!
//! Quick: two kills, 10,000 confirmed messages, if the ledger was built before (the first build of its client takes minutes).
//! `BRAID_TIER=ci`: ten kills and 200,000.

use std::path::PathBuf;
use std::process::Command;
use tests::{Tier, release_binary, workspace};

#[test]
fn killed_again_and_again_it_keeps_every_promise() {
    let tier = Tier::of_this_run();
    let Some(ledger) = ledger(tier) else {
        println!("SKIPPED: the ledger is not built; `cargo build -p ledger` does that, and so does BRAID_TIER=ci");
        return;
    };
    let (kills, confirmed, life) = match tier {
        Tier::Quick => ("2", "10000", "200..1000"),
        Tier::Ci => ("10", "200000", "200..3000"),
        Tier::Long => ("100", "2000000", "200..3000"),
    };
    let dir = std::env::temp_dir().join(format!("braid-test-ledger-{}", std::process::id()));
    let mut command = Command::new(ledger);
    command.arg("kill").arg("--braid").arg(release_binary()).arg("--dir").arg(&dir);
    let output = command.args(["--kills", kills, "--confirmed", confirmed, "--life-ms", life]).output().expect("it runs");
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "a promise was broken");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with('{')).expect("a line of JSON");
    let books: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert!(books["confirmed"].as_u64() >= confirmed.parse().ok(), "too few were confirmed: {books}");
    assert_eq!(books["kills"].to_string(), kills);
    for promise in ["lost", "ghosts", "duplicates", "reordered", "resurrected", "crashed", "left_in_queues"] {
        assert_eq!(books[promise], 0, "{promise}");
    }
}

/// Built by the tiers that require it. A quick run uses it if it is there.
fn ledger(tier: Tier) -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let built = target.join("debug/ledger");
    if tier == Tier::Quick && !built.exists() {
        return None;
    }
    // Brought up to date: that takes seconds once its client is built.
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo).args(["build", "-p", "ledger"]).current_dir(workspace()).status();
    assert!(status.expect("cargo runs").success(), "the ledger does not build");
    Some(built)
}
