//! The property block of a content header: everything from its flags on (AMQP 0-9-1 §4.2.6.1).
//!
//! ```text
//! flags u16, highest bit first:
//!   15 content-type short | 14 content-encoding short | 13 headers table | 12 delivery-mode u8 | 11 priority u8
//!   10 correlation-id short | 9 reply-to short | 8 expiration short | 7 message-id short | 6 timestamp u64
//!    5 type short | 4 user-id short | 3 app-id short | 2 cluster-id short | 1, 0 unused
//! then the fields whose bits are set, in this order
//! ```
//!
//! The broker keeps the block verbatim. It is looked at once, when it comes in, by [`Spans`]; whoever must change it (BCC, a
//! direct reply address, dead-lettering, what the broker adds) writes a new one beside it.

use crate::field_table::{self, entries};
use crate::reader::{Malformed, Reader, put_long};
use broker::{Table, Value};

/// A property; the number is its place from the highest flag bit on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Property {
    ContentType = 0,
    ContentEncoding = 1,
    Headers = 2,
    DeliveryMode = 3,
    Priority = 4,
    CorrelationId = 5,
    ReplyTo = 6,
    Expiration = 7,
    MessageId = 8,
    Timestamp = 9,
    Type = 10,
    UserId = 11,
    AppId = 12,
    ClusterId = 13,
}

const COUNT: usize = 14;
/// A block without any property.
pub const NONE: &[u8] = &[0, 0];

/// Where each property stands in its block.
#[derive(Clone, Copy, Debug)]
pub struct Spans<'a> {
    block: &'a [u8],
    flags: u16,
    ends: [u32; COUNT],
}

impl<'a> Spans<'a> {
    /// Finds all fields; the block must hold them and no more. The insides of a header table are not looked at.
    pub fn scan(block: &'a [u8]) -> Result<Spans<'a>, Malformed> {
        let mut reader = Reader::new(block);
        let flags = reader.u16()?;
        let mut ends = [0; COUNT];
        for (i, end) in ends.iter_mut().enumerate() {
            if flags & (0x8000 >> i) != 0 {
                match i {
                    2 => reader.long().map(drop)?,
                    3 | 4 => reader.u8().map(drop)?,
                    9 => reader.u64().map(drop)?,
                    _ => reader.short_bytes().map(drop)?,
                }
            }
            *end = (block.len() - reader.rest().len()) as u32;
        }
        reader.end()?;
        Ok(Spans { block, flags, ends })
    }

    pub fn has(&self, property: Property) -> bool {
        self.flags & (0x8000 >> property as u16) != 0
    }

    /// The field as it stands, its length included.
    fn field(&self, property: Property) -> Option<&'a [u8]> {
        if !self.has(property) {
            return None;
        }
        let i = property as usize;
        let from = match i.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 2,
        };
        self.block.get(from as usize..*self.ends.get(i)? as usize)
    }

    /// The inside of the header table.
    pub fn headers(&self) -> Option<&'a [u8]> {
        self.field(Property::Headers)?.get(4..)
    }

    /// A short string.
    pub fn short(&self, property: Property) -> Option<&'a [u8]> {
        self.field(property)?.get(1..)
    }

    /// Delivery mode or priority.
    pub fn octet(&self, property: Property) -> Option<u8> {
        self.field(property)?.first().copied()
    }

    pub fn timestamp(&self) -> Option<u64> {
        Some(u64::from_be_bytes(*self.field(Property::Timestamp)?.first_chunk()?))
    }

    /// The block with some fields changed: `Some` is the new field with its length, `None` takes it away.
    fn with(&self, changes: &[(Property, Option<&[u8]>)]) -> Vec<u8> {
        let mut flags = self.flags & 0xfffc;
        for (property, field) in changes {
            let bit = 0x8000 >> *property as u16;
            flags = if field.is_some() { flags | bit } else { flags & !bit };
        }
        let added: usize = changes.iter().filter_map(|(_, field)| field.map(<[u8]>::len)).sum();
        let mut out = Vec::with_capacity(self.block.len() + added);
        out.extend_from_slice(&flags.to_be_bytes());
        for property in ALL {
            let change = changes.iter().find(|(changed, _)| *changed == property).map(|(_, field)| *field);
            out.extend_from_slice(change.unwrap_or_else(|| self.field(property)).unwrap_or_default());
        }
        out
    }

    fn with_headers(&self, inside: &[u8], others: &[(Property, Option<&[u8]>)]) -> Vec<u8> {
        let mut field = Vec::with_capacity(inside.len() + 4);
        put_long(&mut field, inside);
        let mut changes = vec![(Property::Headers, Some(&field[..]))];
        changes.extend_from_slice(others);
        self.with(&changes)
    }

    /// Another reply address.
    pub fn with_reply_to(&self, name: &str) -> Vec<u8> {
        let mut field = Vec::with_capacity(name.len() + 1);
        crate::reader::put_short(&mut field, name);
        self.with(&[(Property::ReplyTo, Some(&field))])
    }

    /// Without these headers. The table stays, were it empty.
    pub fn without_headers(&self, names: &[&[u8]], others: &[(Property, Option<&[u8]>)]) -> Vec<u8> {
        match self.headers() {
            None => self.with(others),
            Some(headers) => {
                let mut inside = Vec::with_capacity(headers.len());
                put_others(&mut inside, headers, |name| names.contains(&name));
                self.with_headers(&inside, others)
            }
        }
    }

    /// With these headers added, each in place of those of its name.
    pub fn with_added_headers(&self, added: &Table) -> Vec<u8> {
        let mut inside = Vec::new();
        put_others(&mut inside, self.headers().unwrap_or_default(), |name| added.0.iter().any(|(n, _)| n.as_bytes() == name));
        field_table::put(&mut inside, added);
        self.with_headers(&inside, &[])
    }
}

fn put_others(out: &mut Vec<u8>, headers: &[u8], is_left_out: impl Fn(&[u8]) -> bool) {
    for entry in entries(headers).flatten() {
        if !is_left_out(entry.name) {
            out.extend_from_slice(entry.whole);
        }
    }
}

const ALL: [Property; COUNT] = [
    Property::ContentType,
    Property::ContentEncoding,
    Property::Headers,
    Property::DeliveryMode,
    Property::Priority,
    Property::CorrelationId,
    Property::ReplyTo,
    Property::Expiration,
    Property::MessageId,
    Property::Timestamp,
    Property::Type,
    Property::UserId,
    Property::AppId,
    Property::ClusterId,
];

/// What the broker asks of a property block that this protocol wrote.
#[derive(Clone, Copy, Debug, Default)]
pub struct AmqpProperties;

impl broker::message::Properties for AmqpProperties {
    fn headers(&self, properties: &[u8]) -> Table {
        let headers = Spans::scan(properties).ok().and_then(|spans| spans.headers());
        headers.and_then(|headers| field_table::decode(headers).ok()).unwrap_or_default()
    }

    fn property(&self, properties: &[u8], name: &str) -> Option<String> {
        let spans = Spans::scan(properties).ok()?;
        let property = match name {
            "message_id" => Property::MessageId,
            "correlation_id" => Property::CorrelationId,
            "reply_to" => Property::ReplyTo,
            "expiration" => Property::Expiration,
            "content_type" => Property::ContentType,
            "content_encoding" => Property::ContentEncoding,
            "type" => Property::Type,
            "user_id" => Property::UserId,
            "app_id" => Property::AppId,
            "cluster_id" => Property::ClusterId,
            "timestamp" => return spans.timestamp().map(|seconds| seconds.to_string()),
            _ => return None,
        };
        spans.short(property).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    fn for_dead_letter(&self, properties: &[u8], without_cc: bool) -> Vec<u8> {
        let Ok(spans) = Spans::scan(properties) else { return properties.to_vec() };
        let others = [(Property::Expiration, None)];
        if without_cc { spans.without_headers(&[b"CC"], &others) } else { spans.with(&others) }
    }
}

/// The block that a consumer sees: what the broker knows of the message stands among the headers.
pub fn annotated(properties: &[u8], annotations: &[u8], delivery_count: Option<u32>) -> Vec<u8> {
    let mut added = broker::table::decode_table(annotations).unwrap_or_default();
    if let Some(count) = delivery_count {
        added.push("x-delivery-count", Value::I64(count.into()));
    }
    match Spans::scan(properties) {
        Ok(spans) => spans.with_added_headers(&added),
        Err(_) => properties.to_vec(),
    }
}

/// What a routing header (CC or BCC) adds to the routing keys.
///
/// `Err` names the type that is not an array.
pub fn routing_header<'a>(headers: &'a [u8], name: &[u8]) -> Result<Option<Vec<&'a str>>, u8> {
    let Some(entry) = entries(headers).flatten().find(|entry| entry.name == name) else { return Ok(None) };
    if entry.tag != b'A' {
        return Err(entry.tag);
    }
    Ok(Some(field_table::texts(entry.value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use broker::message::Properties;

    fn block(flags: u16, fields: &[u8]) -> Vec<u8> {
        let mut block = flags.to_be_bytes().to_vec();
        block.extend_from_slice(fields);
        block
    }

    #[test]
    fn fields_are_found_in_order_and_no_byte_may_be_missing_or_left() {
        let bytes = block(
            0xfffc,
            b"\x01a\x01b\x00\x00\x00\x03\x01hV\x02\x09\x01c\x01d\x0260\x01e\0\0\0\0\0\0\0\x07\x01f\x01g\x01h\x01i",
        );
        let spans = Spans::scan(&bytes).unwrap();
        assert_eq!(spans.short(Property::ContentType), Some(&b"a"[..]));
        assert_eq!(spans.headers(), Some(&b"\x01hV"[..]));
        assert_eq!((spans.octet(Property::DeliveryMode), spans.octet(Property::Priority)), (Some(2), Some(9)));
        assert_eq!((spans.timestamp(), spans.short(Property::ClusterId)), (Some(7), Some(&b"i"[..])));
        assert_eq!(spans.with(&[]), bytes);
        for cut in 0..bytes.len() {
            assert!(Spans::scan(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(Spans::scan(&longer).is_err());
    }

    #[test]
    fn dead_lettering_takes_expiration_and_cc_away() {
        let headers: Table = [("CC", Value::Array(vec![Value::str("k")])), ("a", Value::Void)].into_iter().collect();
        let mut fields = Vec::new();
        put_long(&mut fields, &field_table::encode(&headers));
        fields.extend_from_slice(b"\x0260");
        let bytes = block(0x2100, &fields);
        assert_eq!(AmqpProperties.property(&bytes, "expiration").as_deref(), Some("60"));
        let kept = AmqpProperties.for_dead_letter(&bytes, false);
        assert_eq!(AmqpProperties.headers(&kept), headers);
        assert_eq!(AmqpProperties.property(&kept, "expiration"), None);
        let without = AmqpProperties.for_dead_letter(&bytes, true);
        assert_eq!(AmqpProperties.headers(&without), [("a", Value::Void)].into_iter().collect());
    }

    #[test]
    fn what_the_broker_adds_replaces_the_clients_header_of_that_name() {
        let mut fields = Vec::new();
        let headers: Table = [("x-delivery-count", Value::str("mine")), ("a", Value::Void)].into_iter().collect();
        put_long(&mut fields, &field_table::encode(&headers));
        let mut annotations = Vec::new();
        broker::table::encode_table(&[("x-death", Value::I32(1))].into_iter().collect(), &mut annotations);
        let seen = AmqpProperties.headers(&annotated(&block(0x2000, &fields), &annotations, Some(3)));
        let expected: Table =
            [("a", Value::Void), ("x-death", Value::I32(1)), ("x-delivery-count", Value::I64(3))].into_iter().collect();
        assert_eq!(seen, expected);
        assert_eq!(AmqpProperties.headers(&annotated(NONE, b"", Some(3))).0.len(), 1);
    }
}
