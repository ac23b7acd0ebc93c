//! Keys are words between dots; in a binding `*` stands for one word and `#` for any number of them, none included
//! (AMQP 0-9-1 §3.1.3.3). The empty key has no words at all: `#` matches it and `*` does not, as in RabbitMQ.
//!
//! Binding keys share a trie. A routing key walks down it with the set of all nodes that the words so far can reach; a `#` node
//! once reached stays in the set. So many `#` in one binding cost no backtracking, and bindings that share no beginning with
//! the key cost nothing.

use super::{Found, targets::Targets};
use crate::topology::Target;
use slab::Slab;
use smallvec::SmallVec;
use std::collections::BTreeMap;

type NodeId = usize;
const ROOT: NodeId = 0;

#[derive(Debug)]
pub struct Topic {
    nodes: Slab<Node>,
}

#[derive(Default, Debug)]
struct Node {
    /// `*` and `#` have places of their own.
    words: BTreeMap<Box<str>, NodeId>,
    any_word: Option<NodeId>,
    any_words: Option<NodeId>,
    /// This node is its parent's `#`.
    repeats: bool,
    targets: Targets,
}

impl Default for Topic {
    fn default() -> Topic {
        let mut nodes = Slab::new();
        let root = nodes.insert(Node::default());
        debug_assert_eq!(root, ROOT);
        Topic { nodes }
    }
}

impl Topic {
    pub fn bind(&mut self, key: &str, target: Target) {
        let mut at = ROOT;
        for word in words(key) {
            at = match self.nodes[at].child(word) {
                Some(child) => child,
                None => {
                    let child = self.nodes.insert(Node { repeats: word == "#", ..Node::default() });
                    self.nodes[at].adopt(word, child);
                    child
                }
            };
        }
        self.nodes[at].targets.add(target);
    }

    pub fn unbind(&mut self, key: &str, target: Target) {
        let mut path: SmallVec<[(NodeId, &str); 16]> = SmallVec::new();
        let mut at = ROOT;
        for word in words(key) {
            path.push((at, word));
            let Some(child) = self.nodes[at].child(word) else { return };
            at = child;
        }
        self.nodes[at].targets.remove(target);
        while let Some((parent, word)) = path.pop() {
            if !self.nodes[at].is_bare() {
                break;
            }
            self.nodes.remove(at);
            self.nodes[parent].disown(word);
            at = parent;
        }
    }

    pub fn route(&self, key: &str, found: &mut Found) {
        let mut here: SmallVec<[NodeId; 16]> = SmallVec::new();
        let mut next: SmallVec<[NodeId; 16]> = SmallVec::new();
        self.reach(ROOT, &mut here);
        for word in words(key) {
            let mut repeated = false;
            for &id in &here {
                let node = &self.nodes[id];
                if node.repeats {
                    next.push(id);
                    repeated = true;
                }
                if let Some(child) = node.words.get(word) {
                    self.reach(*child, &mut next);
                }
                if let Some(child) = node.any_word {
                    self.reach(child, &mut next);
                }
            }
            // Only by way of a `#` can one node be reached twice: by staying on it, and again from its parent.
            if repeated {
                next.sort_unstable();
                next.dedup();
            }
            here.clear();
            std::mem::swap(&mut here, &mut next);
            if here.is_empty() {
                return;
            }
        }
        for &id in &here {
            found.add_all(&self.nodes[id].targets);
        }
    }

    /// A node, and those that its `#` reaches with no word at all.
    fn reach(&self, mut id: NodeId, set: &mut SmallVec<[NodeId; 16]>) {
        set.push(id);
        while let Some(child) = self.nodes[id].any_words {
            set.push(child);
            id = child;
        }
    }
}

impl Node {
    fn child(&self, word: &str) -> Option<NodeId> {
        match word {
            "*" => self.any_word,
            "#" => self.any_words,
            _ => self.words.get(word).copied(),
        }
    }

    fn adopt(&mut self, word: &str, child: NodeId) {
        match word {
            "*" => self.any_word = Some(child),
            "#" => self.any_words = Some(child),
            _ => {
                self.words.insert(word.into(), child);
            }
        }
    }

    fn disown(&mut self, word: &str) {
        match word {
            "*" => self.any_word = None,
            "#" => self.any_words = None,
            _ => {
                self.words.remove(word);
            }
        }
    }

    fn is_bare(&self) -> bool {
        self.targets.is_empty() && self.words.is_empty() && self.any_word.is_none() && self.any_words.is_none()
    }
}

fn words(key: &str) -> impl Iterator<Item = &str> {
    // Splitting "" would give one empty word.
    key.split('.').take(if key.is_empty() { 0 } else { usize::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::QueueKey;
    use std::collections::BTreeSet;

    fn queue(n: u32) -> Target {
        Target::Queue(QueueKey(n))
    }

    fn route(topic: &Topic, key: &str) -> Vec<u32> {
        let mut out = Vec::new();
        let mut found = Found::new(&mut out);
        topic.route(key, &mut found);
        found.finish();
        let mut out: Vec<u32> = out.iter().map(|q| q.0).collect();
        out.sort_unstable();
        out
    }

    /// The definition, word for word.
    fn matches(pattern: &[&str], key: &[&str]) -> bool {
        match pattern.split_first() {
            None => key.is_empty(),
            Some((&"#", rest)) => (0..=key.len()).any(|n| matches(rest, &key[n..])),
            Some((&"*", rest)) => !key.is_empty() && matches(rest, &key[1..]),
            Some((word, rest)) => key.first() == Some(word) && matches(rest, &key[1..]),
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % n
        }

        fn key(&mut self, alphabet: &[&str]) -> String {
            let length = self.below(6);
            let words: Vec<&str> = (0..length).map(|_| alphabet[self.below(alphabet.len() as u64) as usize]).collect();
            words.join(".")
        }
    }

    #[test]
    fn random_bindings_come_and_go_and_always_match_what_the_definition_matches() {
        let mut random = Random(42);
        for round in 0..60 {
            let mut topic = Topic::default();
            let mut model: Vec<(String, u32)> = Vec::new();
            for step in 0..120 {
                if random.below(3) == 0 && !model.is_empty() {
                    let (key, n) = model.swap_remove(random.below(model.len() as u64) as usize);
                    topic.unbind(&key, queue(n));
                } else {
                    let key = random.key(&["a", "b", "", "*", "#"]);
                    let n = random.below(20) as u32;
                    topic.bind(&key, queue(n));
                    model.push((key, n));
                }
                let key = random.key(&["a", "b", "c", ""]);
                let key_words: Vec<&str> = words(&key).collect();
                let expected: BTreeSet<u32> = model
                    .iter()
                    .filter(|(pattern, _)| matches(&words(pattern).collect::<Vec<_>>(), &key_words))
                    .map(|(_, n)| *n)
                    .collect();
                let expected: Vec<u32> = expected.into_iter().collect();
                assert_eq!(route(&topic, &key), expected, "round {round} step {step} key {key:?} of {model:?}");
            }
            for (key, n) in model {
                topic.unbind(&key, queue(n));
            }
            assert_eq!(topic.nodes.len(), 1, "only the root stays");
        }
    }

    #[test]
    fn rabbitmqs_own_examples() {
        let bindings = [
            "a.b.c",
            "a.*.c",
            "a.#.b",
            "a.b.b.c",
            "#",
            "#.#",
            "#.b",
            "*.*",
            "a.*",
            "*.b.c",
            "a.#",
            "a.#.#",
            "b.b.c",
            "a.b.b",
            "a.b",
            "b.c",
            "",
            "*.*.*",
            "vodka.martini",
            "a.b.c",
            "*.#",
            "#.*.#",
            "*.#.#",
            "#.#.#",
            "*",
            "#.b.#",
        ];
        let mut topic = Topic::default();
        for (n, key) in bindings.iter().enumerate() {
            topic.bind(key, queue(n as u32 + 1));
        }
        for (key, expected) in [
            ("a.b.c", vec![1, 2, 5, 6, 10, 11, 12, 18, 20, 21, 22, 23, 24, 26]),
            ("a.b", vec![3, 5, 6, 7, 8, 9, 11, 12, 15, 21, 22, 23, 24, 26]),
            ("", vec![5, 6, 17, 24]),
            ("b.b.c", vec![5, 6, 10, 13, 18, 21, 22, 23, 24, 26]),
            ("nothing.here.at.all", vec![5, 6, 21, 22, 23, 24]),
            ("oneword", vec![5, 6, 21, 22, 23, 24, 25]),
        ] {
            assert_eq!(route(&topic, key), expected, "{key}");
        }
    }

    #[test]
    fn a_key_of_many_wildcards_costs_no_backtracking() {
        let mut topic = Topic::default();
        topic.bind(&"#.a.".repeat(20), queue(1));
        topic.bind(&["#"; 100].join("."), queue(2));
        assert_eq!(route(&topic, &["a"; 120].join(".")), [2]);
    }
}
