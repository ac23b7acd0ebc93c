use super::*;

fn declare(name: &str, kind: &str) -> DeclareExchange {
    DeclareExchange {
        name: name.into(),
        kind: kind.into(),
        passive: false,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Table::default(),
    }
}

fn binding(source: &str, destination: &str, to: Destination, key: &str) -> Binding {
    Binding { source: source.into(), destination: destination.into(), to, routing_key: key.into(), arguments: Table::default() }
}

fn to_queue(source: &str, queue: &str, key: &str) -> Binding {
    binding(source, queue, Destination::Queue, key)
}

fn to_exchange(source: &str, destination: &str, key: &str) -> Binding {
    binding(source, destination, Destination::Exchange, key)
}

/// A vhost `/` with these exchanges and queues `q0`, `q1`, … numbered alike.
fn world(exchanges: &[(&str, &str)], queues: u32) -> Topology {
    let mut topology = Topology::new("/");
    for (name, kind) in exchanges {
        assert_eq!(topology.declare_exchange(&declare(name, kind)), Ok(Declared { created: true }));
    }
    for n in 0..queues {
        topology.add_queue(&format!("q{n}"), QueueKey(n));
    }
    topology
}

fn bind(topology: &mut Topology, binding: Binding) {
    assert!(topology.bind(&binding).expect("bindable").binding.is_some());
}

struct Message {
    headers: Table,
    id: Option<String>,
}

impl MessageView for Message {
    fn headers(&mut self) -> &Table {
        &self.headers
    }

    fn property(&mut self, name: &str) -> Option<String> {
        (name == "message_id").then(|| self.id.clone()).flatten()
    }
}

fn with_headers(entries: &[(&str, Value)]) -> Message {
    Message { headers: entries.iter().cloned().collect(), id: None }
}

fn route_message(topology: &Topology, exchange: &str, keys: &[&str], message: &mut dyn MessageView) -> (Vec<u32>, Routed) {
    let mut out = Vec::new();
    let routed = topology.route(exchange, Entry::Publish, keys, message, 0, &mut out).expect("routable");
    (out.iter().map(|q| q.0).collect(), routed)
}

fn route(topology: &Topology, exchange: &str, keys: &[&str]) -> Vec<u32> {
    route_message(topology, exchange, keys, &mut NoMessage::default()).0
}

fn refusal<T: std::fmt::Debug>(result: Result<T>) -> (crate::error::Reason, String) {
    let error = result.expect_err("refused");
    (error.reason, error.text)
}

use crate::error::Reason::{AccessRefused, NotFound, PreconditionFailed};

#[test]
fn the_default_exchange_knows_every_queue_by_its_name() {
    let mut topology = world(&[], 2);
    assert_eq!(route(&topology, "", &["q1"]), [1]);
    assert_eq!(route(&topology, "", &["q1", "nobody", "q0", "q1"]), [0, 1]);
    topology.remove_queue(QueueKey(1));
    assert!(route(&topology, "", &["q1"]).is_empty());
}

#[test]
fn refusals_of_declare_have_rabbitmqs_words() {
    let mut topology = world(&[("x", "direct")], 0);
    let check = |topology: &mut Topology, d: DeclareExchange| refusal(topology.declare_exchange(&d));
    assert_eq!(
        check(&mut topology, declare("", "direct")),
        (AccessRefused, "operation not permitted on the default exchange".into())
    );
    assert_eq!(
        check(&mut topology, declare("amq.mine", "direct")),
        (AccessRefused, "exchange name 'amq.mine' contains reserved prefix 'amq.*'".into())
    );
    assert_eq!(check(&mut topology, declare("y", "nonsense")), (PreconditionFailed, "unknown exchange type 'nonsense'".into()));
    assert_eq!(
        check(&mut topology, declare("x", "fanout")),
        (
            PreconditionFailed,
            "inequivalent arg 'type' for exchange 'x' in vhost '/': received 'fanout' but current is 'direct'".into()
        )
    );
    assert_eq!(
        check(&mut topology, DeclareExchange { durable: false, ..declare("x", "direct") }),
        (
            PreconditionFailed,
            "inequivalent arg 'durable' for exchange 'x' in vhost '/': received 'false' but current is 'true'".into()
        )
    );
    let alternate = |value| [("alternate-exchange", value)].into_iter().collect::<Table>();
    assert_eq!(
        check(&mut topology, DeclareExchange { arguments: alternate(Value::str("ae")), ..declare("x", "direct") }).1,
        "inequivalent arg 'alternate-exchange' for exchange 'x' in vhost '/': \
         received the value 'ae' of type 'longstr' but current is none"
    );
    assert_eq!(
        check(&mut topology, DeclareExchange { arguments: alternate(Value::I64(1)), ..declare("y", "direct") }).1,
        "invalid type 'long' for arg 'alternate-exchange' in exchange 'y' in vhost '/'"
    );
    assert_eq!(
        check(&mut topology, DeclareExchange { passive: true, ..declare("y", "direct") }),
        (NotFound, "no exchange 'y' in vhost '/'".into())
    );
    // Neither passive nor an equal declaration creates anything; pre-declared ones may be declared again.
    let again =
        [DeclareExchange { passive: true, ..declare("x", "wrong") }, declare("x", "direct"), declare("amq.topic", "topic")];
    for declare in again {
        assert_eq!(topology.declare_exchange(&declare), Ok(Declared { created: false }));
    }
}

#[test]
fn arguments_of_plugin_kinds_are_checked() {
    let mut topology = world(&[], 0);
    let mut check = |kind: &str, entries: &[(&str, Value)]| {
        let arguments = entries.iter().cloned().collect();
        refusal(topology.declare_exchange(&DeclareExchange { arguments, ..declare("x", kind) })).1
    };
    assert_eq!(check("x-delayed-message", &[]), "Invalid argument, 'x-delayed-type' must be an existing exchange type");
    assert_eq!(
        check("x-delayed-message", &[("x-delayed-type", Value::str("x-delayed-message"))]),
        "Invalid argument, 'x-delayed-type' can't be used for 'x-delayed-message'"
    );
    assert_eq!(check("x-delayed-message", &[("x-delayed-type", Value::str("no"))]), "unknown exchange type 'no'");
    assert_eq!(check("x-consistent-hash", &[("hash-property", Value::str("app_id"))]), "Unsupported property: app_id");
    assert_eq!(
        check("x-consistent-hash", &[("hash-property", Value::str("message_id")), ("hash-header", Value::str("h"))]),
        "hash-header and hash-property are mutually exclusive"
    );
    assert_eq!(
        check("x-recent-history", &[("x-recent-history-length", Value::str("a"))]),
        "Invalid argument <<\"a\">>, 'x-recent-history-length' must be a positive integer"
    );
}

#[test]
fn refusals_of_bind_delete_and_publish_have_rabbitmqs_words() {
    let mut topology = world(&[("x", "direct"), ("h", "x-consistent-hash")], 1);
    let default = (AccessRefused, "operation not permitted on the default exchange".to_string());
    assert_eq!(refusal(topology.bind(&to_queue("", "q0", "k"))), default);
    assert_eq!(refusal(topology.bind(&to_exchange("x", "", "k"))), default);
    assert_eq!(refusal(topology.unbind(&to_queue("", "q0", "k"))), default);
    assert_eq!(refusal(topology.delete_exchange("", false)), default);
    // The source is looked for first.
    assert_eq!(refusal(topology.bind(&to_queue("no", "none", "k"))), (NotFound, "no exchange 'no' in vhost '/'".into()));
    assert_eq!(refusal(topology.bind(&to_queue("x", "none", "k"))), (NotFound, "no queue 'none' in vhost '/'".into()));
    assert_eq!(refusal(topology.bind(&to_exchange("x", "no", "k"))), (NotFound, "no exchange 'no' in vhost '/'".into()));
    assert_eq!(
        refusal(topology.bind(&to_queue("h", "q0", "k"))),
        (PreconditionFailed, "The binding key must be an integer: <<\"k\">>".into())
    );
    assert_eq!(
        refusal(topology.delete_exchange("amq.direct", false)),
        (AccessRefused, "deletion of system exchange 'amq.direct' in vhost '/' not allowed".into())
    );
    bind(&mut topology, to_queue("x", "q0", "k"));
    assert_eq!(refusal(topology.delete_exchange("x", true)), (PreconditionFailed, "exchange 'x' in vhost '/' in use".into()));
    let mut out = Vec::new();
    let mut publish = |exchange| topology.route(exchange, Entry::Publish, &["k"], &mut NoMessage::default(), 0, &mut out);
    assert_eq!(refusal(publish("no")), (NotFound, "no exchange 'no' in vhost '/'".into()));
    assert_eq!(
        refusal(publish("amq.rabbitmq.trace")),
        (AccessRefused, "cannot publish to internal exchange 'amq.rabbitmq.trace' in vhost '/'".into())
    );
    assert!(topology.unbind(&to_queue("nope", "q0", "k")).expect("no error").bindings.is_empty());
    assert!(topology.delete_exchange("nope", true).expect("no error").exchanges.is_empty());
}

#[test]
fn a_binding_is_itself_whatever_the_order_of_its_arguments() {
    let mut topology = world(&[("h", "headers")], 1);
    let with = |entries: &[(&str, Value)]| Binding { arguments: entries.iter().cloned().collect(), ..to_queue("h", "q0", "") };
    let (a, b) = (("a", Value::I32(1)), ("b", Value::I32(2)));
    bind(&mut topology, with(&[a.clone(), b.clone()]));
    assert!(topology.bind(&with(&[b.clone(), a.clone()])).expect("same").binding.is_none());
    bind(&mut topology, with(&[a.clone()]));
    let mut message = with_headers(&[a.clone(), b.clone()]);
    let (queues, routed) = route_message(&topology, "h", &[""], &mut message);
    assert_eq!((queues, routed.per_message), (vec![0], true));
    assert_eq!(topology.unbind(&with(&[b, a.clone()])).expect("there").bindings.len(), 1);
    assert_eq!(route_message(&topology, "h", &[""], &mut message).0, [0]);
    topology.unbind(&with(&[a])).expect("there");
    assert!(route_message(&topology, "h", &[""], &mut message).0.is_empty());
}

#[test]
fn a_queue_gets_a_message_once_over_keys_exchanges_and_cycles() {
    let mut topology = world(&[("a", "direct"), ("b", "fanout"), ("c", "topic")], 3);
    bind(&mut topology, to_exchange("a", "b", "k"));
    bind(&mut topology, to_exchange("b", "c", ""));
    bind(&mut topology, to_exchange("c", "a", "#"));
    bind(&mut topology, to_exchange("c", "c", "#"));
    bind(&mut topology, to_queue("a", "q0", "k"));
    bind(&mut topology, to_queue("a", "q0", "l"));
    bind(&mut topology, to_queue("b", "q1", ""));
    bind(&mut topology, to_queue("c", "q0", "*"));
    bind(&mut topology, to_queue("c", "q2", "*"));
    assert_eq!(route(&topology, "a", &["k", "l", "k"]), [0, 1, 2]);
    assert_eq!(route(&topology, "c", &["k"]), [0, 1, 2]);
    assert_eq!(route(&topology, "a", &["l"]), [0]);
}

#[test]
fn a_star_of_many_exchanges_is_passed_once_each() {
    let names: Vec<String> = (0..200).map(|n| format!("e{n}")).collect();
    let mut topology = world(&[("hub", "fanout")], 1);
    for name in &names {
        topology.declare_exchange(&declare(name, "fanout")).expect("new");
        bind(&mut topology, to_exchange("hub", name, ""));
        bind(&mut topology, to_exchange(name, "hub", ""));
        bind(&mut topology, to_queue(name, "q0", ""));
    }
    let (queues, routed) = route_message(&topology, "e7", &["k"], &mut NoMessage::default());
    assert_eq!((queues, routed.passed.len()), (vec![0], 201));
}

#[test]
fn the_alternate_takes_what_found_nothing_and_loops_end() {
    let mut topology = world(&[("y", "fanout")], 2);
    let alternate = |to: &str| [("alternate-exchange", Value::str(to))].into_iter().collect::<Table>();
    let x = DeclareExchange { arguments: alternate("y"), ..declare("x", "direct") };
    topology.declare_exchange(&x).expect("new");
    bind(&mut topology, to_queue("x", "q0", "k"));
    bind(&mut topology, to_queue("y", "q1", ""));
    assert_eq!(route(&topology, "x", &["k"]), [0]);
    assert_eq!(route(&topology, "x", &["other"]), [1]);
    // One key of two found something: no alternate.
    assert_eq!(route(&topology, "x", &["other", "k"]), [0]);

    let self_loop = DeclareExchange { arguments: alternate("loop"), ..declare("loop", "direct") };
    topology.declare_exchange(&self_loop).expect("new");
    assert!(route(&topology, "loop", &["k"]).is_empty());

    // A policy's alternate works where the exchange has none of its own, and one that doesn't exist is none.
    let plain = declare("plain", "direct");
    topology.declare_exchange(&plain).expect("new");
    let key = topology.exchange_key("plain").expect("there");
    topology.set_policy_alternate(key, Some("late"));
    let (none, routed) = route_message(&topology, "plain", &["k"], &mut NoMessage::default());
    assert!(none.is_empty() && topology.is_current(&routed));
    topology.declare_exchange(&declare("late", "fanout")).expect("new");
    assert!(!topology.is_current(&routed), "an exchange of that name changes the route");
    bind(&mut topology, to_queue("late", "q1", ""));
    assert_eq!(route(&topology, "plain", &["k"]), [1]);
    let x = topology.exchange_key("x").expect("there");
    topology.set_policy_alternate(x, Some("late"));
    assert_eq!(topology.exchange(x).and_then(|x| x.alternate.as_deref()), Some("y"));
}

#[test]
fn internal_exchanges_are_open_from_inside() {
    let mut topology = world(&[("out", "fanout")], 1);
    topology.declare_exchange(&DeclareExchange { internal: true, ..declare("in", "fanout") }).expect("new");
    bind(&mut topology, to_exchange("out", "in", ""));
    bind(&mut topology, to_queue("in", "q0", ""));
    assert_eq!(route(&topology, "out", &["k"]), [0]);
    let mut out = Vec::new();
    let dead = topology.route("in", Entry::DeadLetter, &["k"], &mut NoMessage::default(), 0, &mut out);
    assert!(dead.is_ok() && out == [QueueKey(0)]);
}

#[test]
fn auto_delete_goes_with_the_last_binding_and_takes_others_along() {
    let mut topology = world(&[("end", "fanout")], 1);
    for name in ["first", "second"] {
        topology.declare_exchange(&DeclareExchange { auto_delete: true, ..declare(name, "direct") }).expect("new");
    }
    bind(&mut topology, to_exchange("first", "second", "k"));
    bind(&mut topology, to_queue("second", "q0", "k"));
    bind(&mut topology, to_queue("second", "q0", "l"));
    assert!(topology.unbind(&to_queue("second", "q0", "k")).expect("there").exchanges.is_empty());
    // The queue was the last that `second` led to, and `second` the last that `first` did.
    let removed = topology.remove_queue(QueueKey(0));
    let names: Vec<&str> = removed.exchanges.iter().map(|x| &*x.name).collect();
    assert_eq!(names, ["second", "first"]);
    assert_eq!(removed.bindings.len(), 2);
    assert!(topology.exchange_key("first").is_none() && topology.exchange_key("end").is_some());
    assert_eq!(topology.bindings().count(), 0);
}

#[test]
fn an_exchange_never_bound_is_not_deleted_and_being_bound_to_does_not_count() {
    let mut topology = world(&[("x", "fanout")], 0);
    topology.declare_exchange(&DeclareExchange { auto_delete: true, ..declare("auto", "fanout") }).expect("new");
    bind(&mut topology, to_exchange("x", "auto", ""));
    assert!(topology.delete_exchange("auto", true).is_ok(), "only bindings from it make it used");
    topology.declare_exchange(&DeclareExchange { auto_delete: true, ..declare("auto", "fanout") }).expect("new");
    bind(&mut topology, to_exchange("x", "auto", ""));
    let removed = topology.unbind(&to_exchange("x", "auto", "")).expect("there");
    assert_eq!((removed.exchanges.len(), removed.bindings.len()), (0, 1));
    // Bound to itself, it goes in one piece.
    bind(&mut topology, to_exchange("auto", "auto", ""));
    let removed = topology.unbind(&to_exchange("auto", "auto", "")).expect("there");
    assert_eq!(removed.exchanges.len(), 1);
}

#[test]
fn a_delay_holds_back_at_the_delayed_exchange_only() {
    let mut topology = world(&[("x", "fanout")], 2);
    let arguments: Table = [("x-delayed-type", Value::str("direct"))].into_iter().collect();
    topology.declare_exchange(&DeclareExchange { arguments, ..declare("d", "x-delayed-message") }).expect("new");
    bind(&mut topology, to_queue("d", "q0", "k"));
    bind(&mut topology, to_exchange("x", "d", ""));
    bind(&mut topology, to_queue("x", "q1", ""));
    let d = topology.exchange_key("d").expect("there");

    let mut late = with_headers(&[("x-delay", Value::I32(5000))]);
    let (queues, routed) = route_message(&topology, "d", &["k"], &mut late);
    assert_eq!((queues, &routed.delays[..], routed.delay_ms), (vec![], &[d][..], 5000));
    let (queues, routed) = route_message(&topology, "x", &["k"], &mut late);
    assert_eq!((queues, &routed.delays[..]), (vec![1], &[d][..]));
    let mut out = Vec::new();
    let routed = topology.route_from(d, Entry::AfterDelay, &["k"], &mut late, 0, &mut out);
    assert!(out == [QueueKey(0)] && routed.delays.is_empty());

    for value in [Value::I32(0), Value::I32(-5), Value::str("5"), Value::I64(4_294_967_296)] {
        let (queues, routed) = route_message(&topology, "d", &["k"], &mut with_headers(&[("x-delay", value)]));
        assert_eq!((queues, routed.per_message), (vec![0], true));
    }
}

#[test]
fn hash_random_and_history_kinds_route_and_say_so() {
    let kinds = [
        ("m", "x-modulus-hash"),
        ("r", "x-random"),
        ("l", "x-local-random"),
        ("t", "x-recent-history"),
        ("c", "x-consistent-hash"),
    ];
    let mut topology = world(&kinds, 3);
    for queue in ["q0", "q1", "q2"] {
        for exchange in ["m", "r", "l"] {
            bind(&mut topology, to_queue(exchange, queue, ""));
        }
        bind(&mut topology, to_queue("c", queue, "1"));
    }
    let first = route_message(&topology, "m", &["some"], &mut NoMessage::default());
    assert_eq!(first.0.len(), 1);
    assert!(!first.1.per_message && !route_message(&topology, "c", &["k"], &mut NoMessage::default()).1.per_message);
    for random in 0..6 {
        let mut out = Vec::new();
        let routed = topology.route("r", Entry::Publish, &["k"], &mut NoMessage::default(), random, &mut out).expect("there");
        assert!(out == [QueueKey(random as u32 % 3)] && routed.per_message);
    }
    assert_eq!(refusal(topology.bind(&to_queue("l", "q0", "k"))).1, "Non empty binding 'k' key not permitted");

    let added = topology.bind(&to_queue("t", "q0", "")).expect("new");
    let t = topology.exchange_key("t").expect("there");
    assert_eq!(added.replay, Some(t));
    assert!(topology.bind(&to_queue("t", "q0", "")).expect("same").replay.is_none());
    let (queues, routed) = route_message(&topology, "t", &["k"], &mut NoMessage::default());
    assert_eq!((queues, &routed.remember[..], routed.per_message), (vec![0], &[t][..], true));
    assert_eq!(topology.exchange(t).map(Exchange::history_length), Some(20));
}

#[test]
fn hashing_on_a_property_keeps_a_message_id_together() {
    let mut topology = world(&[], 4);
    let arguments: Table = [("hash-property", Value::str("message_id"))].into_iter().collect();
    topology.declare_exchange(&DeclareExchange { arguments, ..declare("c", "x-consistent-hash") }).expect("new");
    for queue in ["q0", "q1", "q2", "q3"] {
        bind(&mut topology, to_queue("c", queue, "10"));
    }
    let by_id = |id: &str, key: &str| {
        let mut message = Message { headers: Table::default(), id: Some(id.into()) };
        let (queues, routed) = route_message(&topology, "c", &[key], &mut message);
        assert!(routed.per_message && queues.len() == 1);
        queues[0]
    };
    let spread: BTreeSet<u32> = (0..50).map(|n| by_id(&n.to_string(), "k")).collect();
    assert_eq!(spread.len(), 4);
    assert_eq!(by_id("same", "one"), by_id("same", "other"));
}

#[test]
fn what_is_remembered_of_a_route_ends_with_any_change_on_its_way() {
    let mut topology = world(&[("a", "fanout"), ("b", "fanout"), ("far", "fanout")], 3);
    bind(&mut topology, to_exchange("a", "b", ""));
    bind(&mut topology, to_queue("b", "q0", ""));
    let (_, routed) = route_message(&topology, "a", &["k"], &mut NoMessage::default());
    assert_eq!(routed.entry(), topology.exchange_key("a"));
    bind(&mut topology, to_queue("far", "q0", ""));
    topology.add_queue("new", QueueKey(9));
    assert!(topology.is_current(&routed), "changes elsewhere don't matter");
    bind(&mut topology, to_queue("b", "q1", ""));
    assert!(!topology.is_current(&routed));

    let (_, routed) = route_message(&topology, "a", &["k"], &mut NoMessage::default());
    topology.remove_queue(QueueKey(0));
    assert!(!topology.is_current(&routed), "the number may be another queue's tomorrow");
    let (_, routed) = route_message(&topology, "", &["q1"], &mut NoMessage::default());
    topology.remove_queue(QueueKey(1));
    assert!(!topology.is_current(&routed));
}

#[test]
fn records_read_back_and_their_keys_stay_what_they_are() {
    let arguments: Table = [("b", Value::I32(1)), ("a", Value::Void)].into_iter().collect();
    let exchange = ExchangeRecord {
        name: "x".into(),
        kind: "topic".into(),
        durable: true,
        auto_delete: false,
        internal: true,
        arguments: arguments.clone(),
    };
    let mut bytes = Vec::new();
    exchange.encode(&mut bytes);
    assert_eq!(ExchangeRecord::decode(&bytes), Some(exchange));
    for cut in 0..bytes.len() {
        assert_eq!(ExchangeRecord::decode(&bytes[..cut]), None);
    }
    let binding = BindingRecord::of(&Binding { arguments, ..to_exchange("x", "y", "k.*") });
    bytes.clear();
    binding.encode(&mut bytes);
    assert_eq!(BindingRecord::decode(&bytes), Some(binding.clone()));
    for cut in 0..bytes.len() {
        assert_eq!(BindingRecord::decode(&bytes[..cut]), None);
    }
    // At rest in catalogs: must not change between releases.
    let key: String = binding.key().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(key, "af25da49f842fac9973b3fb6519e44ae");
}

/// Random declarations, bindings, removals and routes beside a list of bindings searched one by one.
#[test]
fn a_random_life_agrees_with_a_list_of_bindings() {
    let mut state = 11u64;
    let mut below = move |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for _ in 0..40 {
        let mut topology = world(&[("d0", "direct"), ("d1", "direct"), ("f0", "fanout"), ("f1", "fanout")], 0);
        let exchanges = ["d0", "d1", "f0", "f1"];
        let keys = ["k", "l", "m"];
        let mut queues: BTreeSet<u32> = BTreeSet::new();
        let mut model: Vec<Binding> = Vec::new();
        for _ in 0..200 {
            match below(8) {
                0 => {
                    let n = below(12) as u32;
                    if queues.insert(n) {
                        topology.add_queue(&format!("q{n}"), QueueKey(n));
                    }
                }
                1 => {
                    let n = below(12) as u32;
                    let removed = topology.remove_queue(QueueKey(n)).bindings.len();
                    queues.remove(&n);
                    let before = model.len();
                    model.retain(|b| b.to == Destination::Exchange || *b.destination != *format!("q{n}"));
                    assert_eq!(removed, before - model.len());
                }
                2 if !model.is_empty() => {
                    let gone = model.swap_remove(below(model.len()));
                    assert_eq!(topology.unbind(&gone).expect("fine").bindings.len(), 1);
                }
                3..=5 => {
                    let (source, key) = (exchanges[below(4)], keys[below(3)]);
                    let new = match below(3) {
                        0 => to_exchange(source, exchanges[below(4)], key),
                        _ => to_queue(source, &format!("q{}", below(12)), key),
                    };
                    let known = model.iter().any(|b| BindingRecord::of(b) == BindingRecord::of(&new));
                    let exists = new.to == Destination::Exchange || topology.queue(&new.destination).is_some();
                    match topology.bind(&new) {
                        Ok(added) => {
                            assert_eq!((added.binding.is_some(), exists), (!known, true));
                            if !known {
                                model.push(new);
                            }
                        }
                        Err(_) => assert!(!exists),
                    }
                }
                _ => {
                    let (first, key) = (exchanges[below(4)], keys[below(3)]);
                    let mut found = BTreeSet::new();
                    let (mut seen, mut work) = (BTreeSet::from([first]), vec![first]);
                    while let Some(at) = work.pop() {
                        for b in model.iter().filter(|b| *b.source == *at && (at.starts_with('f') || *b.routing_key == *key)) {
                            match b.to {
                                Destination::Queue => drop(found.insert(topology.queue(&b.destination).expect("bound").0)),
                                Destination::Exchange => {
                                    let name = exchanges.iter().find(|x| ***x == *b.destination).expect("known");
                                    if seen.insert(name) {
                                        work.push(name);
                                    }
                                }
                            }
                        }
                    }
                    let routed: BTreeSet<u32> = route(&topology, first, &[key]).into_iter().collect();
                    assert_eq!(routed, found);
                    assert_eq!(route(&topology, first, &[key]).len(), found.len(), "each queue once");
                }
            }
            assert_eq!(topology.bindings().count(), model.len());
        }
    }
}

/// Not a benchmark: a list anywhere on this way would take minutes.
#[test]
fn a_hundred_thousand_bindings_come_and_go_quickly() {
    let mut topology = world(&[("f", "fanout"), ("t", "topic"), ("d", "direct")], 0);
    for n in 0..33_000 {
        topology.add_queue(&format!("q{n}"), QueueKey(n));
        let name = format!("q{n}");
        bind(&mut topology, to_queue("f", &name, ""));
        bind(&mut topology, to_queue("t", &name, &format!("a.{n}.#")));
        bind(&mut topology, to_queue("d", "q0", &n.to_string()));
    }
    assert_eq!(route(&topology, "f", &[""]).len(), 33_000);
    assert_eq!(route(&topology, "t", &["a.77.b"]), [77]);
    assert_eq!(topology.remove_queue(QueueKey(0)).bindings.len(), 33_002);
    for n in 1..33_000 {
        assert_eq!(topology.remove_queue(QueueKey(n)).bindings.len(), 2);
    }
    assert_eq!(topology.bindings().count(), 0);
}
