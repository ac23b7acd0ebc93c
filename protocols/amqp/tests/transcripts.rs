//! Every conversation in `transcripts/`, held word by word.

mod harness;

use amqp::Settings;
use harness::check;
use protocol::Peer;

#[test]
fn every_transcript_holds() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/transcripts");
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut count = 0;
    for file in files {
        println!("{}", file.display());
        let text = format!("\n{}", std::fs::read_to_string(&file).unwrap());
        let settings = Settings { message_bytes_max: 100_000, anonymous_user: Some("nobody".into()), ..Settings::default() };
        let peer = Peer { certificate_name: Some("device".into()), ..Peer::default() };
        count += check(&text, &settings, &peer);
    }
    assert!(count >= 40, "only {count} situations were found");
}
