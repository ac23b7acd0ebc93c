//! The way out of a message: links and their numbers become consumers and delivery tags, records become frames.
//!
//! ```text
//!            Consume asked        Done                    cancel, from either side
//! (new) -------------------> Opening ------------> Live ---------------------------> Gone ---> forgotten
//!                        deliveries wait      deliveries go out            dropped; what it holds can
//!                        behind consume-ok                                 still be settled by tag
//! ```

use crate::ORIGIN;
use crate::frame::{self, HEADER, METHOD};
use crate::limits::FRAME_OVERHEAD;
use crate::method::{self, Method};
use crate::properties;
use crate::reader::{cut, patch, put_short};
use broker::message::Facts;
use broker::{Batch, Delivery, LinkId};
use std::collections::{BTreeMap, VecDeque};

/// Deliveries of one link under consecutive tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TagRun {
    pub tag: u64,
    pub count: u64,
    pub link: LinkId,
    /// The number on its link of the one with the first tag.
    pub number: u64,
}

/// A channel's unsettled deliveries, in the order of their tags.
#[derive(Debug, Default)]
pub struct TagBook {
    runs: VecDeque<TagRun>,
}

impl TagBook {
    pub fn push(&mut self, run: TagRun) {
        match self.runs.back_mut() {
            Some(last)
                if last.link == run.link && last.tag + last.count == run.tag && last.number + last.count == run.number =>
            {
                last.count += run.count;
            }
            _ => self.runs.push_back(run),
        }
    }

    /// Where the run with this tag is.
    fn find(&self, tag: u64) -> Option<(usize, TagRun)> {
        let i = match self.runs.front() {
            // Most consumers settle in order.
            Some(first) if tag < first.tag + first.count => 0,
            _ => self.runs.partition_point(|run| run.tag <= tag).checked_sub(1)?,
        };
        let run = *self.runs.get(i)?;
        (run.tag <= tag && tag - run.tag < run.count).then_some((i, run))
    }

    /// Takes one delivery out.
    pub fn take(&mut self, tag: u64) -> Option<TagRun> {
        let (i, run) = self.find(tag)?;
        let before = tag - run.tag;
        let after = run.count - before - 1;
        let rest = TagRun { tag: tag + 1, count: after, link: run.link, number: run.number + before + 1 };
        let place = self.runs.get_mut(i)?;
        match (before, after) {
            (0, 0) => drop(self.runs.remove(i)),
            (0, _) => *place = rest,
            (_, 0) => place.count = before,
            _ => {
                place.count = before;
                self.runs.insert(i + 1, rest);
            }
        }
        Some(TagRun { tag, count: 1, link: run.link, number: run.number + before })
    }

    /// Takes out everything up to `tag`, which must be there. False: it is not, and nothing was taken.
    pub fn take_to(&mut self, tag: u64, out: &mut Vec<TagRun>) -> bool {
        let Some((i, run)) = self.find(tag) else { return false };
        out.extend(self.runs.drain(..i));
        let count = tag - run.tag + 1;
        out.push(TagRun { count, ..run });
        if count == run.count {
            self.runs.pop_front();
        } else if let Some(first) = self.runs.front_mut() {
            *first = TagRun { tag: tag + 1, count: run.count - count, link: run.link, number: run.number + count };
        }
        true
    }

    pub fn take_all(&mut self, out: &mut Vec<TagRun>) {
        out.extend(self.runs.drain(..));
    }

    /// Puts runs back that were taken out.
    pub fn restore(&mut self, runs: &mut Vec<TagRun>) {
        runs.extend(self.runs.drain(..));
        runs.sort_unstable_by_key(|run| run.tag);
        runs.drain(..).for_each(|run| self.push(run));
    }
}

#[derive(Debug)]
pub enum LinkState {
    /// Consume is asked for; what comes early waits here for consume-ok.
    Opening(Vec<Delivery>),
    Live,
    Gone,
}

/// A consumer, or the getter of a channel.
#[derive(Debug)]
pub struct Link {
    pub channel: u16,
    pub epoch: u32,
    /// Consumer tag.
    pub tag: Box<str>,
    pub auto_settle: bool,
    pub state: LinkState,
    /// Deliveries in the tag book (or in an open transaction).
    pub held: u64,
    template: Template,
}

/// A connection's links by number. No number is given out twice: a delivery may still be on its way to its old owner.
#[derive(Debug, Default)]
pub struct Links {
    links: BTreeMap<LinkId, Box<Link>>,
    next: LinkId,
}

impl Links {
    pub fn open(&mut self, channel: u16, epoch: u32, tag: Box<str>, auto_settle: bool, state: LinkState) -> LinkId {
        let link = Link { channel, epoch, tag, auto_settle, state, held: 0, template: Template::default() };
        let id = self.next;
        self.next += 1;
        self.links.insert(id, Box::new(link));
        id
    }

    #[inline]
    pub fn get_mut(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.get_mut(&id).map(|link| &mut **link)
    }

    /// No more deliveries; it is forgotten once nothing of it is held.
    pub fn gone(&mut self, id: LinkId) {
        if let Some(link) = self.get_mut(id) {
            link.state = LinkState::Gone;
            self.settled(id, 0);
        }
    }

    /// `count` deliveries less are held.
    #[inline]
    pub fn settled(&mut self, id: LinkId, count: u64) {
        if let Some(link) = self.get_mut(id) {
            link.held = link.held.saturating_sub(count);
            if link.held == 0 && matches!(link.state, LinkState::Gone) {
                self.links.remove(&id);
            }
        }
    }

    /// The pool of a channel is closed: nothing of it is left.
    pub fn forget(&mut self, channel: u16, epoch: u32) {
        self.links.retain(|_, link| link.channel != channel || link.epoch != epoch);
    }

    /// Forgets all. Numbers go on.
    pub fn clear(&mut self) {
        self.links.clear();
    }
}

/// Method frame and beginning of the header frame, as they were for the last record: only tag, flag and sizes differ.
#[derive(Debug, Default)]
struct Template {
    /// The block's head that it was made for.
    head: Vec<u8>,
    frames: Vec<u8>,
    /// Where the delivery tag stands; the redelivered bit is behind it.
    tag_at: usize,
    /// Where the header frame begins.
    header_at: usize,
}

impl Template {
    fn make(&mut self, channel: u16, consumer_tag: &str, head: &[u8], facts: &Facts<'_>) {
        self.head.clear();
        self.head.extend_from_slice(head);
        let out = &mut self.frames;
        out.clear();
        let at = frame::begin(out, METHOD, channel);
        out.extend_from_slice(&[0, 60, 0, 60]);
        put_short(out, consumer_tag);
        self.tag_at = out.len();
        out.extend_from_slice(&[0; 9]);
        put_short(out, facts.exchange);
        put_short(out, facts.routing_key);
        frame::finish(out, at);
        self.header_at = frame::begin(out, HEADER, channel);
        out.extend_from_slice(&[0, 60, 0, 0]);
        out.extend_from_slice(&[0; 8]);
    }
}

/// A record, read for delivery.
struct Letter<'a> {
    facts: Facts<'a>,
    /// The block up to the properties.
    head: &'a [u8],
    body: &'a [u8],
}

fn letter(batch: &Batch, index: u32) -> Option<Letter<'_>> {
    let record = batch.record(index);
    let body = record.value.unwrap_or_default();
    let Some(block) = record.block() else {
        // Not written by a front-end with blocks: nothing but its body is known.
        return Some(Letter { facts: plain(), head: &[], body });
    };
    let mut facts = Facts::parse(block)?;
    let head = block.get(..block.len() - facts.properties.len())?;
    if facts.origin != ORIGIN {
        facts.properties = translated(&facts);
    }
    facts.routing_key = cut(facts.routing_key, 255);
    Some(Letter { facts, head, body })
}

fn plain() -> Facts<'static> {
    Facts {
        origin: ORIGIN,
        flags: 0,
        priority: 0,
        exchange: "",
        routing_key: "",
        expires_ms: None,
        annotations: &[],
        properties: properties::NONE,
    }
}

/// Properties of a message that came in by another protocol: this is the place where they will be translated.
fn translated(_facts: &Facts<'_>) -> &'static [u8] {
    properties::NONE
}

/// The delivery's records as basic.deliver, the first under `tag`.
pub fn put_deliveries(out: &mut Vec<u8>, link: &mut Link, delivery: &Delivery, tag: u64, frame_max: u32) {
    let Link { channel, tag: consumer_tag, template, .. } = link;
    out.reserve(delivery.cost as usize + delivery.count as usize * (template.frames.len() + 16));
    let is_counted = delivery.delivery_count.is_some_and(|count| count > 0 || delivery.redelivered);
    for (index, tag) in delivery.records().zip(tag..) {
        let record = delivery.batch.record(index);
        let body = record.value.unwrap_or_default();
        // The common case: the head is that of the record before, and nothing is to be added.
        let known = match record.block() {
            Some(block) if !is_counted && !template.head.is_empty() => block.strip_prefix(&template.head[..]),
            _ => None,
        };
        if let Some(properties) = known {
            put_templated(out, template, *channel, tag, delivery.redelivered, properties, body, frame_max);
            continue;
        }
        // A damaged block keeps its tag; there is nothing to show of it.
        let Some(Letter { facts, head, body }) = letter(&delivery.batch, index) else { continue };
        template.make(*channel, consumer_tag, head, &facts);
        if is_counted || !facts.annotations.is_empty() {
            let count = delivery.delivery_count.filter(|_| is_counted);
            let block = properties::annotated(facts.properties, facts.annotations, count);
            put_templated(out, template, *channel, tag, delivery.redelivered, &block, body, frame_max);
        } else {
            put_templated(out, template, *channel, tag, delivery.redelivered, facts.properties, body, frame_max);
        }
        if facts.origin != ORIGIN || !facts.annotations.is_empty() {
            // Its properties don't follow the head as they are.
            template.head.clear();
        }
    }
}

#[inline]
#[allow(clippy::too_many_arguments)] // one place, one loop
fn put_templated(
    out: &mut Vec<u8>,
    template: &Template,
    channel: u16,
    tag: u64,
    redelivered: bool,
    properties: &[u8],
    body: &[u8],
    frame_max: u32,
) {
    let at = out.len();
    out.extend_from_slice(&template.frames);
    let mut variable = [0; 9];
    variable[..8].copy_from_slice(&tag.to_be_bytes());
    variable[8] = u8::from(redelivered);
    patch(out, at + template.tag_at, &variable);
    patch(out, at + template.header_at + 3, &(properties.len() as u32 + 12).to_be_bytes());
    patch(out, at + template.header_at + 11, &(body.len() as u64).to_be_bytes());
    out.extend_from_slice(properties);
    if !body.is_empty() && body.len() <= (frame_max - FRAME_OVERHEAD) as usize {
        let [high, low] = channel.to_be_bytes();
        let [s0, s1, s2, s3] = (body.len() as u32).to_be_bytes();
        out.extend_from_slice(&[frame::END, frame::BODY, high, low, s0, s1, s2, s3]);
        out.extend_from_slice(body);
        out.push(frame::END);
    } else {
        out.push(frame::END);
        frame::put_body(out, channel, body, frame_max);
    }
}

/// A message that was asked for.
pub fn put_got(out: &mut Vec<u8>, channel: u16, delivery: &Delivery, tag: u64, left: u64, frame_max: u32) {
    let Some(Letter { facts, body, .. }) = letter(&delivery.batch, delivery.first) else { return };
    let got = Method::BasicGetOk {
        delivery_tag: tag,
        redelivered: delivery.redelivered,
        exchange: facts.exchange,
        routing_key: facts.routing_key,
        message_count: u32::try_from(left).unwrap_or(u32::MAX),
    };
    method::put(out, channel, &got);
    let count = delivery.delivery_count.filter(|&count| count > 0 || delivery.redelivered);
    if count.is_some() || !facts.annotations.is_empty() {
        let block = properties::annotated(facts.properties, facts.annotations, count);
        frame::put_content(out, channel, &block, body, frame_max);
    } else {
        frame::put_content(out, channel, facts.properties, body, frame_max);
    }
}

/// Records of a batch, as mandatory messages that reached no queue.
pub fn put_returns(out: &mut Vec<u8>, channel: u16, batch: &Batch, records: std::ops::Range<u32>, frame_max: u32) {
    for index in records {
        let Some(Letter { facts, body, .. }) = letter(batch, index) else { continue };
        let returned = Method::BasicReturn {
            reply_code: crate::error::Code::NoRoute as u16,
            reply_text: crate::error::Code::NoRoute.name(),
            exchange: facts.exchange,
            routing_key: facts.routing_key,
        };
        method::put(out, channel, &returned);
        frame::put_content(out, channel, facts.properties, body, frame_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(tag: u64, count: u64, link: LinkId, number: u64) -> TagRun {
        TagRun { tag, count, link, number }
    }

    #[test]
    fn a_tag_book_takes_one_many_and_all_and_knows_each_tag_once() {
        let mut book = TagBook::default();
        book.push(run(1, 5, 0, 0));
        book.push(run(6, 5, 0, 5)); // goes on where the last run ended
        book.push(run(11, 5, 1, 0));
        assert_eq!(book.runs.len(), 2);
        assert_eq!(book.take(3), Some(run(3, 1, 0, 2)));
        assert_eq!(book.take(3), None);
        let mut out = Vec::new();
        assert!(!book.take_to(3, &mut out) && !book.take_to(0, &mut out) && !book.take_to(16, &mut out) && out.is_empty());
        assert!(book.take_to(12, &mut out));
        assert_eq!(out, [run(1, 2, 0, 0), run(4, 7, 0, 3), run(11, 2, 1, 0)]);
        book.restore(&mut out);
        assert_eq!(book.runs, [run(1, 2, 0, 0), run(4, 7, 0, 3), run(11, 5, 1, 0)]);
        book.take_all(&mut out);
        assert_eq!(out.iter().map(|run| run.count).sum::<u64>(), 14);
        assert_eq!(book.take(15), None);
    }

    #[test]
    fn a_tag_book_agrees_with_a_map_over_random_settles() {
        let mut state = 42u64;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let (mut book, mut model) = (TagBook::default(), std::collections::BTreeMap::new());
        let (mut next_tag, mut numbers) = (1, [0u64; 3]);
        for _ in 0..20_000 {
            match random(4) {
                0 => {
                    let (link, count) = (random(3) as usize, random(6) + 1);
                    book.push(run(next_tag, count, link as LinkId, numbers[link]));
                    for i in 0..count {
                        model.insert(next_tag + i, (link as LinkId, numbers[link] + i));
                    }
                    next_tag += count;
                    numbers[link] += count;
                }
                1 if next_tag > 20 => {
                    let tag = next_tag - random(20);
                    let mut out = Vec::new();
                    let there = book.take_to(tag, &mut out);
                    assert_eq!(there, model.contains_key(&tag));
                    for taken in out {
                        for i in 0..taken.count {
                            assert_eq!(model.remove(&(taken.tag + i)), Some((taken.link, taken.number + i)));
                        }
                    }
                    assert!(!there || model.range(..=tag).next().is_none());
                }
                _ => {
                    let tag = next_tag.saturating_sub(random(30));
                    assert_eq!(book.take(tag).map(|run| (run.link, run.number)), model.remove(&tag));
                }
            }
        }
    }
}
