//! Clients that we did not write, against the release binary: the numbered scenarios of `interop/SCENARIOS.md` in each
//! client, the classic tutorials, and the Go client's own integration tests.
//!
//! Quick: pika only. `BRAID_TIER=ci`: all of them, all required. The outcome of each client is kept in
//! `target/interop/<client>`; `python3 interop/table.py target/interop/*` prints the table of README.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tests::{Braid, Tier, workspace};

/// A client's suite: how it is made ready, and how it runs. Both are run in its folder, by bash.
struct Suite {
    client: &'static str,
    folder: &'static str,
    /// The program without which it cannot run.
    needs: &'static str,
    prepare: &'static str,
    run: &'static str,
}

const PIKA: Suite = Suite {
    client: "pika",
    folder: "interop/pika",
    needs: "python3",
    prepare: "python3 -m venv \"$WORK/venv\" && \"$WORK/venv/bin/pip\" install -q --disable-pip-version-check -r requirements.txt",
    run: "\"$WORK/venv/bin/python\" run.py",
};

const OTHERS: [Suite; 4] = [
    Suite {
        client: "amqplib",
        folder: "interop/amqplib",
        needs: "node",
        prepare: "mkdir -p \"$WORK/src\" && cp *.js *.json \"$WORK/src\" && cp .npmrc \"$WORK/src\" 2>/dev/null; cd \"$WORK/src\" && npm ci --silent",
        run: "cd \"$WORK/src\" && node run.js",
    },
    Suite {
        client: "amqp091-go",
        folder: "interop/amqp091-go",
        needs: "go",
        prepare: "go build -o \"$WORK/run\" .",
        run: "\"$WORK/run\"",
    },
    Suite { client: "java", folder: "interop/java", needs: "mvn", prepare: "./run.sh --list > /dev/null", run: "./run.sh" },
    Suite {
        client: "lapin",
        folder: "interop/lapin",
        needs: "cargo",
        prepare: "CARGO_TARGET_DIR=\"$WORK/target\" cargo build -q",
        run: "\"$WORK/target/debug/interop-lapin\"",
    },
];

#[test]
fn pika() {
    check(&PIKA);
}

#[test]
fn amqplib() {
    check_in_ci(&OTHERS[0]);
}

#[test]
fn amqp091_go() {
    check_in_ci(&OTHERS[1]);
}

#[test]
fn java() {
    check_in_ci(&OTHERS[2]);
}

#[test]
fn lapin() {
    check_in_ci(&OTHERS[3]);
}

#[test]
fn the_go_clients_own_integration_tests() {
    if !in_ci("the Go client's own tests") {
        return;
    }
    let braid = Braid::start("go-integration");
    let folder = workspace().join("interop/amqp091-go");
    let output = bash(&folder, &work("go-integration"), &format!("./integration.sh {}", uri(&braid)));
    print(&output);
    assert!(output.status.success(), "the Go client's own integration tests fail");
}

#[test]
fn tutorials() {
    if !in_ci("the tutorials") {
        return;
    }
    let braid = Braid::start("tutorials");
    for language in ["python", "node", "go", "java", "rust"] {
        let output =
            bash(&workspace().join("interop/tutorials"), &work("tutorials"), &format!("./run.sh {} {language}", uri(&braid)));
        print(&output);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("ok "), "the {language} tutorials fail");
    }
}

fn check_in_ci(suite: &Suite) {
    if in_ci(suite.client) {
        check(suite);
    }
}

fn in_ci(what: &str) -> bool {
    let ci = Tier::of_this_run() >= Tier::Ci;
    if !ci {
        println!("SKIPPED: {what} runs with BRAID_TIER=ci");
    }
    ci
}

/// Runs a suite against a broker of its own that it may restart, and keeps what it printed.
fn check(suite: &Suite) {
    let there = Command::new(suite.needs).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !Tier::of_this_run().require(suite.needs, there) {
        return;
    }
    let (folder, work) = (workspace().join(suite.folder), work(suite.client));
    let prepared = bash(&folder, &work, suite.prepare);
    if !prepared.status.success() {
        print(&prepared);
        panic!("{} cannot be made ready", suite.client);
    }
    let mut braid = Braid::start(suite.client);
    braid.keep_ports();
    let restart = work.join("restart");
    std::fs::write(&restart, restart_script(&braid)).expect("a script");
    let run = format!("{} --uri {} --restart-cmd 'bash {}'", suite.run, uri(&braid), restart.display());
    let output = bash(&folder, &work, &run);
    print(&output);
    std::fs::write(result_file(suite.client), &output.stdout).expect("the result is kept");
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = text.lines().filter(|line| line.starts_with("ok ")).count();
    let failed: Vec<&str> = text.lines().filter(|line| line.starts_with("not ok ") || line.starts_with("skip ")).collect();
    braid.restarted_elsewhere();
    assert!(output.status.success() && failed.is_empty(), "{}: {passed} ok, not so: {failed:#?}", suite.client);
    assert!(passed >= 34, "{}: only {passed} scenarios ran", suite.client);
}

/// Stops the broker as an operator would, starts it on the same directory and ports, and waits until it accepts.
fn restart_script(braid: &Braid) -> String {
    let (stop, start) = (braid.pid_file(), braid.command_line());
    let ready = braid.data().join("listeners.json");
    format!(
        "pid=$(cat {stop})\nkill -TERM $pid\nwhile kill -0 $pid 2>/dev/null && [ \"$(ps -o stat= -p $pid | cut -c1)\" != Z ]; do sleep 0.02; done\n\
         rm -f {ready}\nnohup {start} >> {log} 2>&1 < /dev/null &\necho $! > {stop}\n\
         for i in $(seq 1000); do [ -f {ready} ] && exit 0; sleep 0.02; done\nexit 1\n",
        stop = stop.display(),
        ready = ready.display(),
        log = braid.log_file().display(),
    )
}

fn uri(braid: &Braid) -> String {
    format!("amqp://guest:guest@{}/", braid.address("amqp"))
}

/// A folder for what a suite builds; kept between runs.
fn work(client: &str) -> PathBuf {
    let folder = target().join("interop-work").join(client);
    std::fs::create_dir_all(&folder).expect("a folder under target");
    folder
}

fn result_file(client: &str) -> PathBuf {
    let folder = target().join("interop");
    std::fs::create_dir_all(&folder).expect("a folder under target");
    folder.join(client)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

fn bash(folder: &Path, work: &Path, script: &str) -> Output {
    Command::new("bash").args(["-c", script]).current_dir(folder).env("WORK", work).output().expect("bash runs")
}

fn print(output: &Output) {
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}
