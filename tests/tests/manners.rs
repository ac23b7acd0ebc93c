//! The house keeps its floors: who may use whom, and what no file may hold.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tests::workspace;

/// Package, what it may use of ours, what it must never use.
const FLOORS: [(&str, &[&str], &[&str]); 5] = [
    ("crates/storage", &[], &["tokio", "serde", "mio"]),
    ("crates/broker", &["storage"], &["tokio", "rand", "mio", "amq-protocol", "kafka-protocol", "mqttbytes"]),
    ("crates/protocol", &["broker"], &["tokio", "mio"]),
    ("protocols/amqp", &["protocol", "broker"], &["tokio", "mio"]),
    ("crates/server", &["storage", "broker", "protocol", "amqp"], &[]),
];

const OURS: [&str; 5] = ["storage", "broker", "protocol", "amqp", "server"];

#[test]
fn a_package_uses_only_the_floors_below_it() {
    for (package, may, never) in FLOORS {
        for used in dependencies(&workspace().join(package)) {
            let ours = OURS.contains(&used.as_str());
            assert!(!ours || may.contains(&used.as_str()), "{package} uses {used}, which is not below it");
            assert!(!never.contains(&used.as_str()), "{package} must not use {used}");
        }
    }
}

fn dependencies(package: &Path) -> Vec<String> {
    let manifest = std::fs::read_to_string(package.join("Cargo.toml")).expect("every package has a manifest");
    let manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
    let table = manifest.get("dependencies").and_then(|d| d.as_table());
    table.map(|table| table.keys().cloned().collect()).unwrap_or_default()
}

/// Words that a floor doesn't know. Comments count: a room is described in its own words.
#[test]
fn a_floor_does_not_speak_of_the_ones_above() {
    let banned: [(&str, &[&str]); 3] = [
        ("crates/storage/src", &["exchange", "queue", "topic", "consumer", "tokio"]),
        ("crates/broker/src", &["std::time::Instant", "SystemTime", "std::thread", "std::net", "tokio"]),
        ("protocols/amqp/src", &["std::time::Instant", "SystemTime", "std::thread", "std::net", "tokio"]),
    ];
    for (folder, words) in banned {
        for (path, text) in sources(folder) {
            for (number, line) in text.lines().enumerate() {
                let found = words.iter().find(|word| has_word(line, word));
                assert!(found.is_none(), "{}:{}: {:?} does not belong here", path.display(), number + 1, found);
            }
        }
    }
}

fn has_word(line: &str, word: &str) -> bool {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let line = line.to_ascii_lowercase();
    let word = word.to_ascii_lowercase();
    line.match_indices(&word).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + word.len()..].chars().next());
        !letter(before) && !(letter(after) && after != Some('s'))
    })
}

/// Drawers without a name of their own collect what nobody wants.
#[test]
fn no_file_is_a_drawer() {
    for (path, _) in sources(".") {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let words = ["util", "utils", "helper", "helpers", "common", "manager", "misc"];
        assert!(!words.contains(&stem), "{} needs the name of what it is", path.display());
    }
}

/// A function longer than a screen hides something. The best code bases have one or two in a hundred.
#[test]
fn most_functions_fit_a_screen() {
    let mut lengths = BTreeMap::new();
    let mut count = 0;
    for folder in ["crates", "protocols"] {
        for (path, text) in sources(folder) {
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (name, lines) in functions(text) {
                count += 1;
                if lines > 70 {
                    lengths.insert(format!("{}: {name}", path.display()), lines);
                }
            }
        }
    }
    println!("{count} functions, {} longer than 70 lines: {lengths:?}", lengths.len());
    assert!(lengths.len() * 50 <= count, "more than 2 % of the functions are longer than 70 lines: {lengths:?}");
}

/// Functions and their lengths, by indentation: rustfmt closes them where they began.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let is_fn = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn ", "pub async fn "]
            .iter()
            .any(|p| trimmed.starts_with(p));
        if is_fn {
            let indent = line.len() - trimmed.len();
            let closing = format!("{}}}", " ".repeat(indent));
            if let Some(length) = lines[at..].iter().position(|l| *l == closing) {
                found.push((trimmed.chars().take(60).collect(), length + 1));
            }
        }
    }
    found
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![workspace().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the workspace").flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            if path.is_dir() && !name.starts_with('.') && !["target", "node_modules", "data"].contains(&name) {
                folders.push(path);
            } else if name.ends_with(".rs") {
                let text = std::fs::read_to_string(&path).expect("a source file is text");
                found.push((path, text));
            }
        }
    }
    found
}
