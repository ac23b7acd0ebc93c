//! Field tables on the wire (AMQP 0-9-1 §4.2.5, with the tags of RabbitMQ's errata) to and from [`broker::Table`].
//!
//! ```text
//! table   size u32 | { name_length u8 | name | value }          array   size u32 | { value }
//! value   't' bool  u8      's' i16     'I' i32     'l' i64     'f' f32     'D' scale u8, u32     'T' u64 (Unix seconds)
//!         'b' i8    'B' u8  'u' u16     'i' u32     'L' i64     'd' f64     'S' 'x' size u32, bytes
//!         'A' array         'F' table   'V' nothing
//! ```
//!
//! Everything here takes the *inside* of a table: the bytes behind its size. Names need not be UTF-8 to pass through.

use crate::limits::NESTING_MAX;
use crate::reader::{Malformed, Reader, put_long};
use broker::{Table, Value};

/// One entry as it stands.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    pub name: &'a [u8],
    pub tag: u8,
    /// What follows the tag; for 'S', 'x', 'A' and 'F' behind the size.
    pub value: &'a [u8],
    /// Name, tag and value.
    pub whole: &'a [u8],
}

/// Walks over the entries of a table without decoding their values.
pub fn entries(table: &[u8]) -> Entries<'_> {
    Entries { reader: Reader::new(table) }
}

pub struct Entries<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.is_empty() {
            return None;
        }
        let entry = entry(&mut self.reader);
        if entry.is_err() {
            self.reader = Reader::new(&[]);
        }
        Some(entry)
    }
}

fn entry<'a>(reader: &mut Reader<'a>) -> Result<Entry<'a>, Malformed> {
    let before = reader.rest();
    let name = reader.short_bytes()?;
    let (tag, value) = raw_value(reader)?;
    let whole = before.get(..before.len() - reader.rest().len()).unwrap_or_default();
    Ok(Entry { name, tag, value, whole })
}

fn raw_value<'a>(reader: &mut Reader<'a>) -> Result<(u8, &'a [u8]), Malformed> {
    let tag = reader.u8()?;
    let value = match tag {
        b't' | b'b' | b'B' => reader.take(1)?,
        b's' | b'u' => reader.take(2)?,
        b'I' | b'i' | b'f' => reader.take(4)?,
        b'D' => reader.take(5)?,
        b'l' | b'L' | b'd' | b'T' => reader.take(8)?,
        b'V' => &[],
        b'S' | b'x' | b'A' | b'F' => reader.long()?,
        _ => return Err(Malformed::Tag(tag)),
    };
    Ok((tag, value))
}

/// The long strings of an array that are text; `array` is its inside.
pub fn texts(array: &[u8]) -> Vec<&str> {
    let mut reader = Reader::new(array);
    let mut texts = Vec::new();
    while let Ok((tag, value)) = raw_value(&mut reader) {
        if tag == b'S'
            && let Ok(text) = std::str::from_utf8(value)
        {
            texts.push(text);
        }
    }
    texts
}

/// Checks every length, tag and depth; allocates nothing.
pub fn validate(table: &[u8]) -> Result<(), Malformed> {
    validate_nested(table, true, NESTING_MAX)
}

fn validate_nested(bytes: &[u8], named: bool, depth_left: usize) -> Result<(), Malformed> {
    let mut reader = Reader::new(bytes);
    while !reader.is_empty() {
        if named {
            reader.short_bytes()?;
        }
        let (tag, value) = raw_value(&mut reader)?;
        if tag == b'A' || tag == b'F' {
            let depth_left = depth_left.checked_sub(1).ok_or(Malformed::Depth)?;
            validate_nested(value, tag == b'F', depth_left)?;
        }
    }
    Ok(())
}

pub fn decode(table: &[u8]) -> Result<Table, Malformed> {
    decode_table(table, NESTING_MAX)
}

fn decode_table(bytes: &[u8], depth_left: usize) -> Result<Table, Malformed> {
    let mut reader = Reader::new(bytes);
    let mut table = Table::default();
    while !reader.is_empty() {
        let name = String::from_utf8_lossy(reader.short_bytes()?).into_owned();
        let (tag, value) = raw_value(&mut reader)?;
        table.push(name, decode_value(tag, value, depth_left)?);
    }
    Ok(table)
}

fn decode_value(tag: u8, bytes: &[u8], depth_left: usize) -> Result<Value, Malformed> {
    let mut reader = Reader::new(bytes);
    let nested = || depth_left.checked_sub(1).ok_or(Malformed::Depth);
    Ok(match tag {
        b't' => Value::Bool(reader.u8()? != 0),
        b'b' => Value::I8(reader.u8()? as i8),
        b'B' => Value::U8(reader.u8()?),
        b's' => Value::I16(reader.u16()? as i16),
        b'u' => Value::U16(reader.u16()?),
        b'I' => Value::I32(reader.u32()? as i32),
        b'i' => Value::U32(reader.u32()?),
        b'l' | b'L' => Value::I64(reader.u64()? as i64),
        b'f' => Value::F32(f32::from_bits(reader.u32()?)),
        b'd' => Value::F64(f64::from_bits(reader.u64()?)),
        b'D' => Value::Decimal { scale: reader.u8()?, value: reader.u32()? },
        b'T' => Value::Timestamp(reader.u64()?),
        b'S' => Value::Str(bytes.into()),
        b'x' => Value::Bytes(bytes.into()),
        b'V' => Value::Void,
        b'F' => Value::Table(decode_table(bytes, nested()?)?),
        b'A' => {
            let depth_left = nested()?;
            let mut values = Vec::new();
            while !reader.is_empty() {
                let (tag, value) = raw_value(&mut reader)?;
                values.push(decode_value(tag, value, depth_left)?);
            }
            Value::Array(values)
        }
        _ => return Err(Malformed::Tag(tag)),
    })
}

/// The name of a tag's type as RabbitMQ prints it.
pub fn type_name(tag: u8) -> &'static str {
    let bytes: &[u8] = if matches!(tag, b'A' | b'F') { &[] } else { &[0; 8] };
    decode_value(tag, bytes, 1).map_or("unknown", |value| value.type_name())
}

/// The inside of a table.
pub fn encode(table: &Table) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, table);
    out
}

/// Appends the entries of a table; its size is the caller's.
pub fn put(out: &mut Vec<u8>, table: &Table) {
    for (name, value) in &table.0 {
        crate::reader::put_short(out, name);
        put_value(out, value);
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Void => out.push(b'V'),
        Value::Bool(v) => out.extend_from_slice(&[b't', u8::from(*v)]),
        Value::I8(v) => put_tagged(out, b'b', &v.to_be_bytes()),
        Value::U8(v) => put_tagged(out, b'B', &v.to_be_bytes()),
        Value::I16(v) => put_tagged(out, b's', &v.to_be_bytes()),
        Value::U16(v) => put_tagged(out, b'u', &v.to_be_bytes()),
        Value::I32(v) => put_tagged(out, b'I', &v.to_be_bytes()),
        Value::U32(v) => put_tagged(out, b'i', &v.to_be_bytes()),
        Value::I64(v) => put_tagged(out, b'l', &v.to_be_bytes()),
        Value::F32(v) => put_tagged(out, b'f', &v.to_be_bytes()),
        Value::F64(v) => put_tagged(out, b'd', &v.to_be_bytes()),
        Value::Decimal { scale, value } => {
            put_tagged(out, b'D', &[*scale]);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Value::Timestamp(v) => put_tagged(out, b'T', &v.to_be_bytes()),
        Value::Str(bytes) => {
            out.push(b'S');
            put_long(out, bytes);
        }
        Value::Bytes(bytes) => {
            out.push(b'x');
            put_long(out, bytes);
        }
        Value::Array(values) => put_nested(out, b'A', |out| values.iter().for_each(|v| put_value(out, v))),
        Value::Table(table) => put_nested(out, b'F', |out| put(out, table)),
    }
}

fn put_tagged(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    out.extend_from_slice(bytes);
}

fn put_nested(out: &mut Vec<u8>, tag: u8, inside: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    inside(out);
    let size = (out.len() - at - 4) as u32;
    crate::reader::patch(out, at, &size.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_reads_back_in_order_with_duplicates() {
        let table: Table = [
            ("t", Value::Bool(true)),
            ("b", Value::I8(-8)),
            ("B", Value::U8(200)),
            ("s", Value::I16(-300)),
            ("u", Value::U16(60_000)),
            ("I", Value::I32(-70_000)),
            ("i", Value::U32(4_000_000_000)),
            ("l", Value::I64(i64::MIN)),
            ("f", Value::F32(1.5)),
            ("d", Value::F64(-2.5)),
            ("D", Value::Decimal { scale: 2, value: 314 }),
            ("S", Value::str("text")),
            ("x", Value::Bytes([0, 255].into())),
            ("T", Value::Timestamp(u64::MAX)),
            ("V", Value::Void),
            ("A", Value::Array(vec![Value::Void, Value::Array(vec![]), Value::I64(1)])),
            ("F", Value::Table([("t", Value::Bool(false)), ("t", Value::Bool(true))].into_iter().collect())),
            ("t", Value::I16(0)),
        ]
        .into_iter()
        .collect();
        let bytes = encode(&table);
        assert_eq!(validate(&bytes), Ok(()));
        assert_eq!(decode(&bytes), Ok(table));
        assert_eq!(entries(&bytes).map(|e| e.unwrap().whole.len()).sum::<usize>(), bytes.len());
        for cut in 1..bytes.len() {
            assert_eq!(validate(&bytes[..cut]).is_ok(), decode(&bytes[..cut]).is_ok(), "cut at {cut}");
        }
    }

    #[test]
    fn both_tags_of_a_64_bit_number_are_signed() {
        assert_eq!(decode(b"\x01aL\xff\xff\xff\xff\xff\xff\xff\xff").unwrap().get("a"), Some(&Value::I64(-1)));
    }

    #[test]
    fn nesting_ends_at_its_bound_and_never_with_the_stack() {
        let nested = |depth: usize| {
            let mut inside = Vec::new();
            for _ in 0..depth {
                let mut outside = vec![1, b'n', b'F'];
                put_long(&mut outside, &inside);
                inside = outside;
            }
            inside
        };
        assert_eq!(validate(&nested(NESTING_MAX)), Ok(()));
        assert!(decode(&nested(NESTING_MAX)).is_ok());
        for depth in [NESTING_MAX + 1, 128, 1000] {
            assert_eq!(validate(&nested(depth)), Err(Malformed::Depth), "{depth}");
            assert_eq!(decode(&nested(depth)), Err(Malformed::Depth), "{depth}");
        }
    }
}
