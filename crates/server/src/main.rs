//! `braid`: reads the command line, opens the data, serves.

use clap::Parser;
use server::cli::{self, Cli, Job};
use server::run::{self, Signal};
use server::settings::{self, Settings};
use server::{limits, log, real};
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

fn main() -> ExitCode {
    match cli::parse(Cli::parse()).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("braid: {wrong}");
            ExitCode::FAILURE
        }
    }
}

fn run(job: Job) -> Result<(), String> {
    match job {
        Job::Serve(settings) => serve(*settings),
        Job::Ready(settings) => cli::ready(&settings),
        Job::Ask { ask, data_dir, json } => {
            let answer = cli::ask(&ask, &data_dir, json)?;
            if !answer.is_empty() {
                println!("{answer}");
            }
            Ok(())
        }
    }
}

fn serve(mut settings: Settings) -> Result<(), String> {
    log::start(settings.log_format, settings.log_level);
    log::catch_panics();
    for name in settings::unknown_variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok())) {
        tracing::warn!(%name, "this variable means nothing to braid");
    }
    leave_descriptors_for_files(&mut settings, raise_descriptor_limit());
    let parts = real::open(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.workers)
        .thread_name("socket")
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start threads: {error}"))?;
    let result = runtime.block_on(async {
        let (tell, signals) = mpsc::channel(4);
        listen_for_signals(tell).map_err(|error| format!("cannot listen for signals: {error}"))?;
        run::serve(settings, parts, signals).await
    });
    // Tasks that did not end by themselves are not waited for: everything is on disk.
    runtime.shutdown_background();
    result
}

fn listen_for_signals(tell: mpsc::Sender<Signal>) -> std::io::Result<()> {
    let meanings = [
        (SignalKind::terminate(), Signal::Stop),
        (SignalKind::interrupt(), Signal::Stop),
        (SignalKind::hangup(), Signal::Reload),
    ];
    for (kind, meaning) in meanings {
        let (mut stream, tell) = (signal(kind)?, tell.clone());
        tokio::spawn(async move { while stream.recv().await.is_some() && tell.send(meaning).await.is_ok() {} });
    }
    Ok(())
}

/// Connections never take the descriptors that the store and the health checks need.
fn leave_descriptors_for_files(settings: &mut Settings, descriptors: Option<u64>) {
    let descriptors = descriptors.map_or(usize::MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    let room = descriptors.saturating_sub(limits::DESCRIPTORS_KEPT).max(1);
    if room < settings.connections_max {
        tracing::warn!(descriptors, connections_max = room, "the limit of open files allows fewer connections than were set");
        settings.connections_max = room;
    }
}

/// The soft limit is a default of another age; the hard one is the administrator's word. Answers what holds now; `None` is no
/// limit.
fn raise_descriptor_limit() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::warn!(%error, "the limit of open files stays low");
        return current;
    }
    maximum
}
