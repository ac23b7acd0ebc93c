//! `braid`: reads the command line, opens the data, serves.

use clap::Parser;
use server::cli::{self, Cli, Job};

fn main() -> std::process::ExitCode {
    match cli::parse(Cli::parse()).and_then(run) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("braid: {wrong}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(job: Job) -> Result<(), String> {
    match job {
        Job::Serve(_settings) => Err("nothing to serve yet".into()),
        Job::Ask { ask, data_dir, json } => {
            let answer = cli::ask(&ask, &data_dir, json)?;
            if !answer.is_empty() {
                println!("{answer}");
            }
            Ok(())
        }
    }
}
