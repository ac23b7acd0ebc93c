//! A RabbitMQ installation moves over by its definitions file.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tests::Braid;
use tests::wire::{Fields, Login, Wire, eventually};

/// As `rabbitmqctl export_definitions` of 3.13 and 4.x writes it. The passwords are "secret" and "geheim".
const FILE: &str = r#"{
  "rabbit_version": "3.13.7", "rabbitmq_version": "3.13.7", "product_name": "RabbitMQ", "product_version": "3.13.7",
  "rabbitmq_definition_format": "cluster", "original_cluster_name": "rabbit@old", "explanation": "Definitions of cluster",
  "users": [
    {"name": "app", "password_hash": "AQIDBDB9kM21iEUzN1lZ+6VReCsdNqS0sERdAQTcY6Xs3PMz",
     "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": ["administrator"], "limits": {}},
    {"name": "jobs",
     "password_hash": "BQYHCIxGriHPHXVnc+2pXTia79PfGM+U1sG77t07g0/VZxcviZjBCojq1mj8/uhVAIeNsRtfEwwN9uVs0uyYQUjnb9U=",
     "hashing_algorithm": "rabbit_password_hashing_sha512", "tags": "monitoring,policymaker", "limits": {"max-connections": 5}}
  ],
  "vhosts": [
    {"name": "/", "description": "Default virtual host", "tags": [], "metadata": {"description": "Default virtual host", "tags": []}},
    {"name": "shop", "description": "The shop", "tags": ["production"], "default_queue_type": "quorum",
     "metadata": {"description": "The shop", "tags": ["production"], "default_queue_type": "quorum"}}
  ],
  "permissions": [
    {"user": "app", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
    {"user": "app", "vhost": "shop", "configure": ".*", "write": ".*", "read": ".*"},
    {"user": "jobs", "vhost": "shop", "configure": "", "write": "^(amq\\.default|jobs)$", "read": "^jobs$"}
  ],
  "topic_permissions": [
    {"user": "jobs", "vhost": "shop", "exchange": "events", "write": "^jobs\\.", "read": ".*"}
  ],
  "parameters": [
    {"component": "vhost-limits", "name": "limits", "vhost": "shop", "value": {"max-connections": 100, "max-queues": 6}},
    {"component": "operator_policy", "name": "cap", "vhost": "shop",
     "value": {"apply-to": "queues", "definition": {"max-length": 3}, "pattern": "^capped", "priority": 0}},
    {"component": "shovel", "name": "s1", "vhost": "/", "value": {"src-uri": "amqp://", "dest-uri": "amqp://", "src-queue": "q"}},
    {"component": "shovel", "name": "s2", "vhost": "/", "value": {"src-uri": "amqp://", "dest-uri": "amqp://", "src-queue": "q"}},
    {"component": "federation-upstream", "name": "up", "vhost": "/", "value": {"uri": "amqp://other"}}
  ],
  "global_parameters": [
    {"name": "cluster_name", "value": "rabbit@old"},
    {"name": "internal_cluster_id", "value": "rabbitmq-cluster-id-1"},
    {"name": "mqtt_default_vhosts", "value": {"O=client,CN=guest": "/"}}
  ],
  "policies": [
    {"vhost": "/", "name": "ha-all", "pattern": ".*", "apply-to": "all",
     "definition": {"ha-mode": "all", "ha-sync-mode": "automatic"}, "priority": 0},
    {"vhost": "shop", "name": "ha-dead", "pattern": "^work", "apply-to": "queues",
     "definition": {"ha-mode": "exactly", "ha-params": 2, "dead-letter-exchange": "dead"}, "priority": 1}
  ],
  "queues": [
    {"name": "work", "vhost": "shop", "durable": true, "auto_delete": false, "arguments": {"x-message-ttl": 600000}},
    {"name": "work.dead", "vhost": "shop", "durable": true, "auto_delete": false, "arguments": {"x-queue-mode": "lazy"}},
    {"name": "jobs", "vhost": "shop", "type": "quorum", "durable": true, "auto_delete": false,
     "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5}},
    {"name": "capped", "vhost": "shop", "type": "classic", "durable": true, "auto_delete": false,
     "arguments": {"x-queue-type": "classic", "x-max-priority": 5}},
    {"name": "plain", "vhost": "/", "durable": true, "auto_delete": false, "arguments": {}}
  ],
  "exchanges": [
    {"name": "events", "vhost": "shop", "type": "topic", "durable": true, "auto_delete": false, "internal": false,
     "arguments": {"alternate-exchange": "lost"}},
    {"name": "lost", "vhost": "shop", "type": "fanout", "durable": true, "auto_delete": false, "internal": true, "arguments": {}},
    {"name": "dead", "vhost": "shop", "type": "direct", "durable": true, "auto_delete": false, "internal": false, "arguments": {}},
    {"name": "later", "vhost": "shop", "type": "x-delayed-message", "durable": true, "auto_delete": false, "internal": false,
     "arguments": {"x-delayed-type": "direct"}}
  ],
  "bindings": [
    {"source": "events", "vhost": "shop", "destination": "work", "destination_type": "queue", "routing_key": "order.*", "arguments": {}},
    {"source": "events", "vhost": "shop", "destination": "dead", "destination_type": "exchange", "routing_key": "dead.#", "arguments": {}},
    {"source": "dead", "vhost": "shop", "destination": "work.dead", "destination_type": "queue", "routing_key": "dead.x", "arguments": {}},
    {"source": "lost", "vhost": "shop", "destination": "capped", "destination_type": "queue", "routing_key": "", "arguments": {}},
    {"source": "amq.headers", "vhost": "/", "destination": "plain", "destination_type": "queue", "routing_key": "",
     "arguments": {"x-match": "all", "kind": "a"}}
  ],
  "some_plugin": {"anything": [1, 2, 3]}
}"#;

fn start(name: &str, file: &str) -> Braid {
    let dir = Braid::fresh_dir(name);
    std::fs::write(dir.join("definitions.json"), file).expect("a file");
    Braid::start_in(dir, &["--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--definitions", "definitions.json"])
}

const APP: Login = Login {
    mechanism: "PLAIN",
    user: "app",
    password: "secret",
    vhost: "shop",
    capabilities: &["authentication_failure_close"],
};

fn assert_topology_works(braid: &Braid) {
    let mut wire = Wire::open_as(&braid.address("amqp"), &APP).expect("the hashed password is known");
    wire.confirm_select();
    for (exchange, key, queue) in [
        ("events", "order.new", "work"),
        ("events", "dead.x", "work.dead"),
        ("events", "elsewhere", "capped"),
        ("", "jobs", "jobs"),
    ] {
        assert_eq!(wire.publish_confirmed(exchange, key, key.as_bytes()), Ok(true));
        assert_eq!(wire.get(queue), Ok(Some(key.as_bytes().to_vec())), "{exchange} {key}");
    }
    // The operator's policy caps, the user's dead-letters beside keys that mean nothing.
    for body in [b"1", b"2", b"3", b"4"] {
        assert_eq!(wire.publish_confirmed("", "capped", body), Ok(true));
    }
    assert_eq!(wire.get("capped"), Ok(Some(b"2".to_vec())));
    wire.ask(1, 50, 30, &Fields::new().u16(0).short("capped").u8(0)).expect("a purge");
    // What is declared as it was declared in the old place is the same thing.
    let quorum = Fields::new().u16(0).short("jobs").u8(2).raw(&jobs_arguments());
    wire.ask(1, 50, 10, &quorum).expect("an equal declaration");
    wire.close();
    let jobs = Login { user: "jobs", password: "geheim", ..APP };
    let mut wire = Wire::open_as(&braid.address("amqp"), &jobs).expect("SHA-512 is known as well");
    assert_eq!(wire.get("jobs"), Ok(None));
    assert_eq!(wire.get("work").expect_err("not allowed").code(), 403);
}

fn jobs_arguments() -> Vec<u8> {
    let kind = Fields::new().short("x-queue-type").u8(b'S').long(b"quorum");
    let inside = kind.short("x-delivery-limit").u8(b'I').u32(5);
    Fields::new().long(&inside.0).0
}

fn export(braid: &Braid) -> Value {
    serde_json::from_str(&braid.tell(&["definitions", "export"])).expect("JSON")
}

/// Lists in one order: they are sets.
fn sorted(mut all: Value) -> Value {
    for (_, value) in all.as_object_mut().into_iter().flatten() {
        if let Value::Array(rows) = value {
            rows.sort_by_key(Value::to_string);
        }
    }
    all
}

#[test]
fn a_topology_moves_over_and_survives() {
    let mut braid = start("definitions-move", FILE);
    let log = braid.log();
    for name in
        ["some_plugin", "ha-mode", "ha-params", "ha-sync-mode", "'shovel'", "'federation-upstream'", "mqtt_default_vhosts"]
    {
        assert_eq!(log.matches(name).count(), 1, "{name} is reported once: {log}");
    }
    for name in ["rabbit_version", "cluster_name", "x-queue-mode", "original_cluster_name"] {
        assert!(!log.contains(name), "{name} says nothing that is lost: {log}");
    }
    assert!(!log.contains("secret") && !log.contains("AQIDBA"), "no secrets in the log");
    assert_topology_works(&braid);
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    assert_topology_works(&braid);
    braid.kill();
    // And without the file.
    let dir = braid.dir().to_owned();
    std::fs::write(dir.join("definitions.json"), "{}").expect("a file");
    braid.restart();
    assert_topology_works(&braid);
}

#[test]
fn what_was_imported_is_exported() {
    let mut braid = start("definitions-export", FILE);
    let exported = export(&braid);
    assert_is_all_there(&exported);
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    assert_eq!(sorted(export(&braid)), sorted(exported.clone()), "after a restart");
    // A second house, furnished from the first one's export.
    let second = start("definitions-second", &exported.to_string());
    assert_eq!(sorted(export(&second)), sorted(exported), "an export is a definitions file");
    assert_topology_works(&second);
}

/// Each thing of the file is in the export with all that the file says of it.
fn assert_is_all_there(exported: &Value) {
    let file: Value = serde_json::from_str(FILE).expect("JSON");
    for (key, wanted) in file.as_object().expect("an object") {
        let Value::Array(wanted) = wanted else {
            assert_eq!(&exported[key], wanted, "{key}");
            continue;
        };
        let found = exported[key].as_array().unwrap_or_else(|| panic!("{key} is exported"));
        for row in wanted {
            let same = found.iter().find(|other| {
                ["name", "vhost", "user", "source", "destination", "routing_key", "component"]
                    .iter()
                    .all(|id| other[id] == row[id])
            });
            let same = same.unwrap_or_else(|| panic!("{key} has {row}: {found:?}"));
            for (field, value) in row.as_object().expect("an object") {
                // Old files list tags in one string, and leave empty limits and types in.
                let value = if key == "users" && field == "tags" { tags(value) } else { value.clone() };
                let is_empty = value == json!({}) || value == json!([]) || value == json!("");
                assert!(same[field] == value || is_empty && same[field].is_null(), "{key} {field}: {row} became {same}");
            }
        }
    }
}

fn tags(value: &Value) -> Value {
    match value {
        Value::String(text) => text.split(',').map(Value::from).collect(),
        list => list.clone(),
    }
}

#[test]
fn a_vhosts_default_queue_type_is_what_an_unsaid_type_means() {
    let mut braid = start("definitions-type", FILE);
    for _ in 0..2 {
        let mut wire = Wire::open_as(&braid.address("amqp"), &APP).expect("the hashed password is known");
        wire.declare_queue("unsaid", true).expect("app may");
        let exported = export(&braid);
        let queues = exported["queues"].as_array().expect("a list");
        let unsaid = queues.iter().find(|queue| queue["name"] == "unsaid").expect("it is exported");
        assert_eq!(unsaid["type"], "quorum");
        let work = queues.iter().find(|queue| queue["name"] == "work").expect("it is exported");
        assert_eq!(work["type"], "classic", "what was there without a type was a classic queue");
        // Of those that quorum queues can't be, the type stays classic.
        wire.declare_queue_on(2).expect("an exclusive one");
        drop(wire);
        assert_eq!(braid.stop(), Some(0));
        braid.restart();
    }
    // The vhost's limit of queues: five came by file and by declaration.
    let mut wire = Wire::open_as(&braid.address("amqp"), &APP).expect("the hashed password is known");
    wire.declare_queue("sixth", true).expect("six may");
    let refused = wire.declare_queue("seventh", true).expect_err("a seventh may not");
    let text = "PRECONDITION_FAILED - cannot declare queue 'seventh': queue limit in vhost 'shop' (6) is reached";
    assert_eq!((refused.code(), refused.text()), (406, text));
}

#[test]
fn a_file_that_is_wrong_stops_the_start_and_names_the_place() {
    let dir = Braid::fresh_dir("definitions-wrong");
    for (file, says) in [
        ("{\n\"queues\": [\n{\"vhost\": \"/\"}]}", "line 3"),
        (r#"{"queues": [{"name": "q", "vhost": "nope"}]}"#, "vhost nope not found"),
        (r#"{"users": [{"name": "u", "password_hash": "not base 64"}]}"#, "user 'u'"),
        (r#"{"exchanges": [{"name": "x", "vhost": "/", "type": "nope"}]}"#, "nope"),
        (r#"{"policies": [{"vhost": "/", "name": "p", "pattern": "(", "definition": {"expires": 1}}]}"#, "("),
    ] {
        let output = refused_start(&dir, file);
        assert!(output.contains("definitions.json") && output.contains(says), "{file}: {output}");
    }
    let missing = refused_start(&dir.join("."), "");
    assert!(missing.contains("definitions.json"), "{missing}");
    std::fs::remove_dir_all(dir).expect("ours");
}

fn refused_start(dir: &Path, file: &str) -> String {
    let path: PathBuf = dir.join("definitions.json");
    if file.is_empty() {
        std::fs::remove_file(&path).expect("ours");
    } else {
        std::fs::write(&path, file).expect("a file");
    }
    let mut braid = std::process::Command::new(tests::release_binary());
    braid.current_dir(dir).args(["--data-dir", "data", "--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let output = braid.args(["--definitions", "definitions.json"]).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_first_user_comes_from_the_environment() {
    let dir = Braid::fresh_dir("definitions-first");
    std::fs::write(dir.join("braid.toml"), "default_user = \"ann\"\ndefault_pass = \"secret\"\ndefault_vhost = \"hers\"\n")
        .expect("a file");
    let mut braid = Braid::start_in(dir, &["--amqp", "0", "--http", "127.0.0.1:0"]);
    for _ in 0..2 {
        let address = format!("127.0.0.1:{}", braid.port("amqp"));
        assert!(braid.address("amqp").starts_with("0.0.0.0:"), "somebody may come from elsewhere");
        let ann = Login { user: "ann", password: "secret", vhost: "hers", ..Login::default() };
        Wire::open_as(&address, &ann).expect("she may come in").close();
        eventually("guest was never made", || Wire::open_as(&address, &Login::default()).is_err());
        assert_eq!(braid.stop(), Some(0));
        braid.restart();
    }
}
