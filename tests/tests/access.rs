//! Who may do what, and what an operator changes while everything runs.

use std::net::{IpAddr, UdpSocket};
use tests::Braid;
use tests::wire::{Fields, Login, Refused, Wire, eventually};

fn login<'a>(user: &'a str, password: &'a str) -> Login<'a> {
    Login { user, password, ..Login::default() }
}

fn refusal(result: Result<Wire, Refused>) -> Refused {
    match result {
        Ok(_) => panic!("it got in"),
        Err(refused) => refused,
    }
}

/// An address of this machine that is not loopback, if it has one.
fn outward_address() -> Option<IpAddr> {
    // No packet is sent: the kernel only chooses a route.
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[test]
fn guest_comes_from_this_machine_only() {
    let Some(outward) = outward_address() else {
        println!("SKIPPED: this machine has no address but loopback");
        return;
    };
    let braid = Braid::start_with("access-guest", &["--amqp", "0.0.0.0:0", "--http", "127.0.0.1:0"]);
    let port = braid.port("amqp");
    Wire::open(&format!("127.0.0.1:{port}")).close();
    Wire::open(&format!("127.0.0.2:{port}")).close();
    let outside = format!("{outward}:{port}");
    let refused = refusal(Wire::open_as(&outside, &Login::default()));
    assert_eq!(refused.code(), 403, "{refused:?}");
    assert!(!refused.text().contains("localhost"), "the client learns only that it was refused: {refused:?}");
    eventually("the log says why", || braid.log().contains("can only connect via localhost"));
    braid.tell(&["user", "add", "ann", "secret"]);
    braid.tell(&["permission", "set", "ann"]);
    Wire::open_as(&outside, &login("ann", "secret")).expect("others may come from anywhere").close();
}

#[test]
fn listeners_stay_on_loopback_until_there_is_somebody_but_guest() {
    let mut braid = Braid::start_with("access-loopback", &["--amqp", "0", "--http", "0"]);
    assert!(braid.address("amqp").starts_with("127.0.0.1:") && braid.address("http").starts_with("127.0.0.1:"));
    braid.tell(&["user", "add", "ann", "secret"]);
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    assert!(braid.address("amqp").starts_with("0.0.0.0:"), "{}", braid.address("amqp"));
}

#[test]
fn a_wrong_password_is_refused_in_either_way() {
    let braid = Braid::start("access-password");
    let address = braid.address("amqp");
    for (user, password) in [("guest", "wrong"), ("guest", ""), ("nobody", "guest"), ("", "")] {
        let refused = refusal(Wire::open_as(&address, &login(user, password)));
        let text =
            "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile.";
        assert_eq!(refused, Refused::Close(0, 403, text.into()), "{user}");
        let untold = Login { capabilities: &[], ..login(user, password) };
        assert_eq!(refusal(Wire::open_as(&address, &untold)), Refused::Gone, "{user}");
    }
    assert_eq!(braid.metric("logins_refused_total"), Some(8.0));
    let log = braid.log();
    assert!(log.contains("invalid credentials") && !log.contains("wrong"), "a password must not be logged: {log}");
    Wire::open(&address).close();
}

#[test]
fn a_vhost_must_exist_and_be_the_users() {
    let braid = Braid::start("access-vhost");
    let address = braid.address("amqp");
    let at = |vhost| Wire::open_as(&address, &Login { vhost, ..Login::default() });
    let refused = refusal(at("nope"));
    assert_eq!((refused.code(), refused.text()), (530, "NOT_ALLOWED - vhost nope not found"));
    braid.tell(&["vhost", "add", "nope"]);
    let refused = refusal(at("nope"));
    assert_eq!((refused.code(), refused.text()), (530, "NOT_ALLOWED - access to vhost 'nope' refused for user 'guest'"));
    braid.tell(&["permission", "set", "guest", "--vhost", "nope"]);
    let mut wire = at("nope").expect("now it may");
    wire.declare_queue("q", true).expect("and work there");
    assert_eq!(Wire::open(&address).look_at_queue("q").expect_err("another vhost").code(), 404);
    assert!(braid.tell(&["vhost", "list"]).contains("nope"));
    braid.tell(&["vhost", "delete", "nope"]);
    let closed = wire.wait_for(10, 99).expect_err("its vhost is gone");
    assert_eq!(closed.code(), 320, "{closed:?}");
    assert_eq!(refusal(at("nope")).text(), "NOT_ALLOWED - vhost nope not found");
    assert!(!braid.tell(&["permission", "list"]).contains("nope"));
}

#[test]
fn rights_are_asked_for_every_verb() {
    let braid = Braid::start("access-rights");
    let address = braid.address("amqp");
    let mut admin = Wire::open(&address);
    for queue in ["r-in", "w-out", "c-own"] {
        admin.declare_queue(queue, true).expect("guest may");
    }
    for exchange in ["r-x", "w-x"] {
        admin.declare_exchange(exchange, "fanout").expect("guest may");
    }
    braid.tell(&["user", "add", "ann", "secret"]);
    braid.tell(&["permission", "set", "ann", "^c-", "^w-", "^r-"]);
    let ann = || Wire::open_as(&address, &login("ann", "secret")).expect("she may come in");
    let may_not = |what: &str, result: Result<(), Refused>| {
        let refused = result.expect_err("she may not");
        let text = format!("ACCESS_REFUSED - {what} in vhost '/' refused for user 'ann'");
        assert_eq!(refused, Refused::Close(1, 403, text));
    };
    may_not("configure access to queue 'x'", ann().declare_queue("x", true).map(drop));
    may_not("configure access to queue 'r-in'", ann().delete_queue("r-in").map(drop));
    may_not("configure access to exchange 'x'", ann().declare_exchange("x", "fanout").map(drop));
    may_not("read access to queue 'w-out'", ann().consume("w-out", "t").map(drop));
    may_not("read access to queue 'c-own'", ann().get("c-own").map(drop));
    let purge = Fields::new().u16(0).short("w-out").u8(0);
    may_not("read access to queue 'w-out'", ann().ask(1, 50, 30, &purge).map(drop));
    may_not("write access to queue 'r-in'", ann().bind("r-in", "r-x", "").map(drop));
    may_not("read access to exchange 'w-x'", ann().bind("w-out", "w-x", "").map(drop));
    let mut publishing = ann();
    publishing.confirm_select();
    may_not("write access to exchange 'r-x'", publishing.publish_confirmed("r-x", "", b"x").map(drop));
    let mut to_default = ann();
    to_default.confirm_select();
    may_not("write access to exchange 'amq.default'", to_default.publish_confirmed("", "w-out", b"x").map(drop));
    let mut wire = ann();
    wire.declare_queue("c-new", true).expect("configure");
    wire.look_at_queue("r-in").expect("any right is enough to look");
    wire.bind("w-out", "r-x", "").expect("write on the queue, read on the exchange");
    wire.consume("r-in", "t").expect("read");
    wire.confirm_select();
    assert_eq!(wire.publish_confirmed("w-x", "", b"x"), Ok(true));
    wire.close();
    // The refusals ended channels, not connections, and changed nothing.
    assert_eq!(admin.look_at_queue("w-out"), Ok((0, 0)));
    assert!(braid.tell(&["permission", "list", "--user", "ann"]).contains("^w-"));
}

#[test]
fn a_right_that_is_taken_away_ends_what_it_allowed() {
    let braid = Braid::start("access-revoke");
    let address = braid.address("amqp");
    Wire::open(&address).declare_queue("q", true).expect("guest may");
    braid.tell(&["user", "add", "ann", "secret"]);
    braid.tell(&["permission", "set", "ann", "", ".*", ".*"]);
    let mut wire = Wire::open_as(&address, &login("ann", "secret")).expect("she may come in");
    wire.confirm_select();
    wire.consume("q", "hers").expect("she may read");
    assert_eq!(wire.publish_confirmed("", "q", b"1"), Ok(true));
    assert_eq!(wire.look_at_queue("q").expect("any right will do").1, 1);
    braid.tell(&["permission", "set", "ann", "", ".*", "^other$"]);
    let cancelled = wire.wait_for(60, 30).expect("her consumer is cancelled, not her connection");
    assert_eq!(cancelled.short_at(0), "hers");
    assert_eq!(wire.publish_confirmed("", "q", b"2"), Ok(true), "she may still write");
    assert_eq!(Wire::open(&address).look_at_queue("q").expect("it is there"), (1, 0), "what came after is not hers");
    braid.tell(&["permission", "set", "ann", "", "^other$", ".*"]);
    let refused = wire.publish_confirmed("", "q", b"3").expect_err("a route that was used before");
    assert_eq!(refused.code(), 403);
    // All rights, then the user: the connection ends.
    for words in [&["permission", "delete", "ann"][..], &["user", "delete", "ann"]] {
        if words[0] == "user" {
            braid.tell(&["permission", "set", "ann"]);
        }
        let mut wire = Wire::open_as(&address, &login("ann", "secret")).expect("she may come in");
        braid.tell(words);
        assert_eq!(wire.wait_for(60, 999).expect_err("the connection ends").code(), 320);
    }
    assert_eq!(refusal(Wire::open_as(&address, &login("ann", "secret"))).code(), 403);
}

const TOPICS: &str = r#"{
    "users": [{"name": "ann", "password_hash": "", "tags": []},
              {"name": "few", "password_hash": "", "tags": "", "limits": {"max-connections": 1, "max-channels": 2}}],
    "permissions": [{"user": "ann", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"},
                    {"user": "few", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
    "topic_permissions": [{"user": "ann", "vhost": "/", "exchange": "amq.topic",
                           "write": "^{username}\\.", "read": "^(news|{vhost})"}]
}"#;

/// A broker with ann, whose topics are restricted, and few, who may have little.
fn start_with_topics(name: &str) -> Braid {
    let braid = Braid::start(name);
    std::fs::write(braid.dir().join("topics.json"), TOPICS).expect("a file");
    braid.tell(&["definitions", "import", "topics.json"]);
    braid.tell(&["user", "set", "ann", "secret"]);
    braid.tell(&["user", "set", "few", "secret"]);
    braid
}

#[test]
fn topic_permissions_bound_routing_keys() {
    let mut braid = start_with_topics("access-topics");
    let try_out = |braid: &Braid| {
        let ann = || Wire::open_as(&braid.address("amqp"), &login("ann", "secret")).expect("she may come in");
        let mut wire = ann();
        wire.declare_queue("hers", true).expect("she may");
        wire.bind("hers", "amq.topic", "news.*").expect("within her topics");
        wire.confirm_select();
        assert_eq!(wire.publish_confirmed("amq.topic", "ann.x", b"x"), Ok(true));
        assert_eq!(wire.publish_confirmed("amq.fanout", "bob.x", b"x"), Ok(true), "another exchange has no topics");
        let refused = wire.publish_confirmed("amq.topic", "bob.x", b"x").expect_err("not hers");
        let text = "ACCESS_REFUSED - write access to topic 'bob.x' in exchange 'amq.topic' in vhost '/' refused for user 'ann'";
        assert_eq!(refused.text(), text);
        let refused = ann().bind("hers", "amq.topic", "secret.*").expect_err("not hers");
        assert!(refused.text().starts_with("ACCESS_REFUSED - read access to topic 'secret.*'"), "{refused:?}");
        Wire::open(&braid.address("amqp")).bind("hers", "amq.topic", "secret.*").expect("guest has no such bounds");
    };
    try_out(&braid);
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    try_out(&braid);
    // A user who comes back under an old name inherits nothing.
    braid.tell(&["user", "delete", "ann"]);
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    braid.tell(&["user", "add", "ann", "secret"]);
    braid.tell(&["permission", "set", "ann"]);
    let mut wire = Wire::open_as(&braid.address("amqp"), &login("ann", "secret")).expect("she may come in");
    wire.confirm_select();
    assert_eq!(wire.publish_confirmed("amq.topic", "bob.x", b"x"), Ok(true));
    assert!(!braid.tell(&["definitions", "export"]).contains("{username}"));
}

#[test]
fn a_user_has_so_many_connections_and_channels() {
    let braid = start_with_topics("access-limits");
    let address = braid.address("amqp");
    let come = || Wire::open_as(&address, &login("few", "secret"));
    let mut first = come().expect("one may");
    let refused = refusal(come());
    let text = "NOT_ALLOWED - connection refused for user 'few': user connection limit (1) is reached";
    assert_eq!((refused.code(), refused.text()), (530, text));
    first.open_channel(2).expect("two channels may");
    first.ask(2, 20, 40, &Fields::new().u16(200).short("").u16(0).u16(0)).expect("and go");
    first.open_channel(2).expect("and come again");
    let refused = first.open_channel(3).expect_err("a third may not");
    let text = "NOT_ALLOWED - number of channels opened for user 'few' has reached the maximum allowed user limit of 2";
    assert_eq!((refused.code(), refused.text()), (530, text));
    first.rest();
    eventually("its place is free", || come().is_ok());
}

#[test]
fn users_come_and_change_and_go_by_command() {
    let mut braid = Braid::start("access-users");
    let address = |braid: &Braid| braid.address("amqp");
    braid.tell(&["user", "add", "ann", "one", "--tag", "administrator", "--tag", "monitoring"]);
    braid.tell(&["permission", "set", "ann"]);
    let list = braid.tell(&["user", "list"]);
    assert!(list.contains("ann") && list.contains("administrator,monitoring") && list.contains("guest"), "{list}");
    assert!(!list.contains("one"), "{list}");
    Wire::open_as(&address(&braid), &login("ann", "one")).expect("she may come in").close();
    braid.tell(&["user", "set", "ann", "two"]);
    assert_eq!(refusal(Wire::open_as(&address(&braid), &login("ann", "one"))).code(), 403);
    Wire::open_as(&address(&braid), &login("ann", "two")).expect("the new one").close();
    assert!(braid.tell(&["user", "list"]).contains("administrator,monitoring"), "a new password keeps the tags");
    braid.kill();
    braid.restart();
    Wire::open_as(&address(&braid), &login("ann", "two")).expect("what was answered is on disk").close();
    for (words, says) in [
        (&["user", "delete", "nobody"][..], "no user 'nobody'"),
        (&["vhost", "delete", "nope"], "vhost nope not found"),
        (&["permission", "set", "ann", "("], "("),
        (&["permission", "set", "ann", "--vhost", "nope"], "vhost nope not found"),
        (&["policy", "delete", "nope"], "no policy 'nope'"),
        (&["policy", "set", "p", "(", "{\"expires\": 1}"], "("),
        (&["policy", "set", "p", ".*", "{\"expires\": 0}"], "expires"),
        (&["policy", "set", "p", ".*", "{}"], "no policy provided"),
        (&["policy", "set", "p", ".*", "not json"], "not JSON"),
    ] {
        let output = braid.ask(words);
        let wrong = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && wrong.contains(says), "{words:?}: {wrong}");
    }
    braid.tell(&["user", "delete", "guest"]);
    assert_eq!(refusal(Wire::open_as(&address(&braid), &Login::default())).code(), 403);
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    assert_eq!(refusal(Wire::open_as(&address(&braid), &Login::default())).code(), 403, "guest does not come back");
}

#[test]
fn a_policy_works_at_once_and_ends_at_once() {
    let mut braid = Braid::start("access-policy");
    let mut wire = Wire::open(&braid.address("amqp"));
    wire.confirm_select();
    wire.declare_queue("small", true).expect("guest may");
    for body in [b"1", b"2", b"3", b"4"] {
        assert_eq!(wire.publish_confirmed("", "small", body), Ok(true));
    }
    braid.tell(&["policy", "set", "cap", "^small$", "{\"max-length\": 2}", "--apply-to", "queues", "--priority", "1"]);
    eventually("what is too much is gone", || wire.look_at_queue("small") == Ok((2, 0)));
    assert_eq!(wire.get("small"), Ok(Some(b"3".to_vec())));
    let definition = "{\"max-length\": 2, \"overflow\": \"reject-publish\", \"ha-mode\": \"all\"}";
    let said = braid.tell(&["policy", "set", "strict", "^sm", definition, "--priority", "5"]);
    assert!(said.contains("ha-mode"), "what has no effect is said: {said}");
    assert_eq!(wire.publish_confirmed("", "small", b"5"), Ok(true));
    assert_eq!(wire.publish_confirmed("", "small", b"6"), Ok(false), "full, and the higher priority says reject");
    let list = braid.tell(&["policy", "list"]);
    assert!(list.contains("cap") && list.contains("strict") && list.contains("ha-mode"), "{list}");
    drop(wire);
    assert_eq!(braid.stop(), Some(0));
    braid.restart();
    let mut wire = Wire::open(&braid.address("amqp"));
    wire.confirm_select();
    assert_eq!(wire.publish_confirmed("", "small", b"6"), Ok(false), "it survives");
    braid.tell(&["policy", "delete", "strict"]);
    assert_eq!(wire.publish_confirmed("", "small", b"6"), Ok(true), "the lower one drops at the head");
    assert_eq!(wire.look_at_queue("small"), Ok((2, 0)));
    braid.tell(&["policy", "delete", "cap"]);
    assert_eq!(wire.publish_confirmed("", "small", b"7"), Ok(true));
    assert_eq!(wire.look_at_queue("small"), Ok((3, 0)));
    // An exchange's policy: what it can't route goes to its alternate.
    wire.declare_exchange("dead-end", "direct").expect("guest may");
    braid.tell(&["policy", "set", "ae", "^dead", "{\"alternate-exchange\": \"amq.fanout\"}", "--apply-to", "exchanges"]);
    wire.bind("small", "amq.fanout", "").expect("guest may");
    assert_eq!(wire.publish_confirmed("dead-end", "nowhere", b"8"), Ok(true));
    assert_eq!(wire.look_at_queue("small"), Ok((4, 0)));
}

#[test]
fn a_hangup_reads_the_definitions_again() {
    let dir = Braid::fresh_dir("access-hangup");
    let file = dir.join("definitions.json");
    let with = |queue: &str, max: u32| {
        format!(
            r#"{{"vhosts": [{{"name": "/"}}],
                "policies": [{{"vhost": "/", "name": "p", "pattern": "^q", "apply-to": "queues",
                               "definition": {{"max-length": {max}}}, "priority": 0}}],
                "queues": [{{"name": "{queue}", "vhost": "/", "durable": true, "auto_delete": false, "arguments": {{}}}}]}}"#
        )
    };
    std::fs::write(&file, with("q1", 1)).expect("a file");
    let arguments = ["--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0", "--definitions", "definitions.json"];
    let braid = Braid::start_in(dir, &arguments);
    let look = |queue: &str| Wire::open(&braid.address("amqp")).look_at_queue(queue);
    assert_eq!(look("q1"), Ok((0, 0)));
    assert_eq!(look("q2").expect_err("not yet").code(), 404);
    std::fs::write(&file, with("q2", 3)).expect("a file");
    braid.signal("HUP");
    eventually("the second queue is there", || look("q2").is_ok());
    assert_eq!(look("q1"), Ok((0, 0)), "what is not in the file any more stays");
    assert!(braid.tell(&["policy", "list"]).contains("{\"max-length\":3}"));
    std::fs::write(&file, "{ not json").expect("a file");
    braid.signal("HUP");
    eventually("the log says that it can't be read", || braid.log().contains("definitions not read again"));
    assert_eq!(look("q2"), Ok((0, 0)));
}
