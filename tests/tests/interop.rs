//! Clients that we did not write, against the release binary: the numbered scenarios of `interop/SCENARIOS.md` in each
//! client, the classic tutorials, and the Go client's own integration tests.
//!
//! Quick: pika only. `BRAID_TIER=ci`: all of them, all required. The outcome of each client is kept in
//! `target/interop/<client>`; `python3 interop/table.py target/interop/*` prints the table of README.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use tests::{Braid, Tier, target, workspace};

/// A client's suite: how it is made ready, and how it runs. Both are run in its folder, by bash.
struct Suite {
    client: &'static str,
    folder: &'static str,
    /// The programs without which it cannot run.
    needs: &'static [&'static str],
    prepare: &'static str,
    run: &'static str,
}

const PIKA: Suite = Suite {
    client: "pika",
    folder: "interop/pika",
    needs: &["python3"],
    prepare: "python3 -m venv \"$WORK/venv\" && \"$WORK/venv/bin/pip\" install -q --disable-pip-version-check -r requirements.txt",
    run: "\"$WORK/venv/bin/python\" run.py",
};

const OTHERS: [Suite; 4] = [
    Suite {
        client: "amqplib",
        folder: "interop/amqplib",
        needs: &["node", "npm"],
        prepare: "mkdir -p \"$WORK/src\" && cp *.js *.json \"$WORK/src\" && cp .npmrc \"$WORK/src\" 2>/dev/null; cd \"$WORK/src\" && npm ci --silent",
        run: "cd \"$WORK/src\" && node run.js",
    },
    Suite {
        client: "amqp091-go",
        folder: "interop/amqp091-go",
        needs: &["go"],
        prepare: "go build -o \"$WORK/run\" .",
        run: "\"$WORK/run\"",
    },
    Suite {
        client: "java",
        folder: "interop/java",
        needs: &["java", "mvn"],
        // -p: what is as old as the jar built last time is not built again.
        prepare: "mkdir -p \"$WORK/src\" && cp -Rp pom.xml run.sh src \"$WORK/src\" && \"$WORK/src/run.sh\" --build",
        run: "\"$WORK/src/run.sh\"",
    },
    Suite {
        client: "lapin",
        folder: "interop/lapin",
        needs: &["cargo"],
        prepare: "cargo build -q",
        run: "\"$CARGO_TARGET_DIR/debug/interop-lapin\"",
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
    let [amqplib, _, java, lapin] = &OTHERS;
    let all = [("python", Some(&PIKA)), ("node", Some(amqplib)), ("go", None), ("java", Some(java)), ("rust", Some(lapin))];
    let braid = Braid::start("tutorials");
    let environment = [
        ("PYTHON", work("pika").join("venv/bin/python")),
        ("AMQPLIB", work("amqplib").join("src")),
        ("JAVA_SUITE", work("java").join("src")),
    ];
    for (language, suite) in all {
        if let Some(suite) = suite {
            prepare(suite);
        }
        let mut run = script(&workspace().join("interop/tutorials"), &format!("./run.sh {} {language}", uri(&braid)));
        let output = run.envs(environment.clone()).output().expect("bash runs");
        print(&output);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let passed = text.lines().filter(|line| line.starts_with("ok ")).count();
        assert!(output.status.success() && passed >= 6, "the {language} tutorials fail");
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

/// Builds what a suite needs, under `target`; two tests that want the same one take turns. `false`: a runtime is missing.
fn prepare(suite: &Suite) -> bool {
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let there =
        |program: &&str| Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !suite.needs.iter().all(|program| Tier::of_this_run().require(program, there(&program))) {
        return false;
    }
    let prepared = bash(&workspace().join(suite.folder), &work(suite.client), suite.prepare);
    if !prepared.status.success() {
        print(&prepared);
        panic!("{} cannot be made ready", suite.client);
    }
    true
}

/// Runs a suite against a broker of its own that it may restart, and keeps what it printed.
fn check(suite: &Suite) {
    if !prepare(suite) {
        return;
    }
    let (folder, work) = (workspace().join(suite.folder), work(suite.client));
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
        "pid=$(cat {stop})\nkill -TERM $pid\nwhile [ -d /proc/$pid ] && ! grep -q '^State:.*Z' /proc/$pid/status; do sleep 0.02; done\n\
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

fn bash(folder: &Path, work: &Path, text: &str) -> Output {
    script(folder, text).env("WORK", work).output().expect("bash runs")
}

fn script(folder: &Path, text: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", text]).current_dir(folder).env("CARGO_TARGET_DIR", target());
    command
}

fn print(output: &Output) {
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}
