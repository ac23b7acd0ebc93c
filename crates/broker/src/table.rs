//! Tables at rest and in JSON.
//!
//! ```text
//! table  = count varint, then count times: name string, value
//! value  = tag u8, then by tag:
//!            'V' nothing | 't' u8 0 or 1 | 'b' i8 | 'B' u8 | 's' i16 | 'u' u16 | 'I' i32 | 'i' u32 | 'l' i64
//!            'f' f32 | 'd' f64 | 'D' scale u8, u32 | 'S' string | 'x' string | 'T' u64, Unix seconds
//!            'A' count varint, values | 'F' table
//! string = length varint, bytes
//! varint = unsigned LEB128, at most 32 bits; all other integers big endian
//! ```
//!
//! In JSON (RabbitMQ's definitions files) a table is an object in its own order; types that JSON lacks become their nearest
//! kin and do not come back: a timestamp a number, a decimal a float, bytes that are no UTF-8 text with replacement signs.

use crate::limits::NESTING_MAX;
use crate::value::{Table, Value};
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// Appends the table. What nests deeper than [`NESTING_MAX`] (no protocol lets it in) is written as void, so that whatever was
/// written can be read.
pub fn encode_table(table: &Table, out: &mut Vec<u8>) {
    put_table(table, out, NESTING_MAX);
}

/// Appends one value, in the form it has inside a table.
pub fn encode_value(value: &Value, out: &mut Vec<u8>) {
    put_value(value, out, NESTING_MAX);
}

/// The same for comparing: integers of one value are written alike, since what one client library sends as a short another
/// sends as a long.
pub fn encode_comparable(value: &Value, out: &mut Vec<u8>) {
    match value.as_integer() {
        Some(integer) => encode_value(&Value::I64(integer), out),
        None => encode_value(value, out),
    }
}

/// Reads exactly one table; `None` where the bytes are anything else.
pub fn decode_table(bytes: &[u8]) -> Option<Table> {
    let mut reader = Reader { rest: bytes };
    let table = reader.table(NESTING_MAX)?;
    reader.rest.is_empty().then_some(table)
}

fn put_table(table: &Table, out: &mut Vec<u8>, depth_left: usize) {
    put_varint(table.0.len(), out);
    for (name, value) in &table.0 {
        put_string(name.as_bytes(), out);
        put_value(value, out, depth_left);
    }
}

fn put_value(value: &Value, out: &mut Vec<u8>, depth_left: usize) {
    match value {
        Value::Void => out.push(b'V'),
        Value::Bool(v) => out.extend_from_slice(&[b't', u8::from(*v)]),
        Value::I8(v) => put_tagged(b'b', &v.to_be_bytes(), out),
        Value::U8(v) => put_tagged(b'B', &v.to_be_bytes(), out),
        Value::I16(v) => put_tagged(b's', &v.to_be_bytes(), out),
        Value::U16(v) => put_tagged(b'u', &v.to_be_bytes(), out),
        Value::I32(v) => put_tagged(b'I', &v.to_be_bytes(), out),
        Value::U32(v) => put_tagged(b'i', &v.to_be_bytes(), out),
        Value::I64(v) => put_tagged(b'l', &v.to_be_bytes(), out),
        Value::F32(v) => put_tagged(b'f', &v.to_be_bytes(), out),
        Value::F64(v) => put_tagged(b'd', &v.to_be_bytes(), out),
        Value::Timestamp(v) => put_tagged(b'T', &v.to_be_bytes(), out),
        Value::Decimal { scale, value } => {
            out.extend_from_slice(&[b'D', *scale]);
            out.extend_from_slice(&value.to_be_bytes());
        }
        Value::Str(bytes) => {
            out.push(b'S');
            put_string(bytes, out);
        }
        Value::Bytes(bytes) => {
            out.push(b'x');
            put_string(bytes, out);
        }
        Value::Array(_) | Value::Table(_) if depth_left == 0 => out.push(b'V'),
        Value::Array(values) => {
            out.push(b'A');
            put_varint(values.len(), out);
            for value in values {
                put_value(value, out, depth_left - 1);
            }
        }
        Value::Table(table) => {
            out.push(b'F');
            put_table(table, out, depth_left - 1);
        }
    }
}

fn put_tagged(tag: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_string(bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(bytes.len(), out);
    out.extend_from_slice(bytes);
}

fn put_varint(length: usize, out: &mut Vec<u8>) {
    debug_assert!(u32::try_from(length).is_ok());
    let mut left = length as u32;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

/// Takes bytes from the front; every method is `None` where too few are left.
pub(crate) struct Reader<'a> {
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.fixed::<1>().map(|[byte]| byte)
    }

    fn varint(&mut self) -> Option<usize> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).ok().map(|v| v as usize);
            }
        }
        None
    }

    pub fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.varint()?;
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    pub fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.string()?).ok()
    }

    pub fn table(&mut self, depth_left: usize) -> Option<Table> {
        let count = self.varint()?;
        // An entry takes two bytes at least: no count can ask for more room than the bytes that are there are worth.
        let mut table = Vec::with_capacity(count.min(self.rest.len() / 2));
        for _ in 0..count {
            let name = self.text()?.into();
            table.push((name, self.value(depth_left)?));
        }
        Some(Table(table))
    }

    fn value(&mut self, depth_left: usize) -> Option<Value> {
        Some(match self.u8()? {
            b'V' => Value::Void,
            b't' => match self.u8()? {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return None,
            },
            b'b' => Value::I8(i8::from_be_bytes(self.fixed()?)),
            b'B' => Value::U8(self.u8()?),
            b's' => Value::I16(i16::from_be_bytes(self.fixed()?)),
            b'u' => Value::U16(u16::from_be_bytes(self.fixed()?)),
            b'I' => Value::I32(i32::from_be_bytes(self.fixed()?)),
            b'i' => Value::U32(u32::from_be_bytes(self.fixed()?)),
            b'l' => Value::I64(i64::from_be_bytes(self.fixed()?)),
            b'f' => Value::F32(f32::from_be_bytes(self.fixed()?)),
            b'd' => Value::F64(f64::from_be_bytes(self.fixed()?)),
            b'T' => Value::Timestamp(u64::from_be_bytes(self.fixed()?)),
            b'D' => Value::Decimal { scale: self.u8()?, value: u32::from_be_bytes(self.fixed()?) },
            b'S' => Value::Str(self.string()?.into()),
            b'x' => Value::Bytes(self.string()?.into()),
            b'A' => Value::Array(self.array(depth_left.checked_sub(1)?)?),
            b'F' => Value::Table(self.table(depth_left.checked_sub(1)?)?),
            _ => return None,
        })
    }

    fn array(&mut self, depth_left: usize) -> Option<Vec<Value>> {
        let count = self.varint()?;
        let mut values = Vec::with_capacity(count.min(self.rest.len()));
        for _ in 0..count {
            values.push(self.value(depth_left)?);
        }
        Some(values)
    }
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Void => serializer.serialize_unit(),
            Value::Bool(v) => serializer.serialize_bool(*v),
            Value::F32(v) => serializer.serialize_f32(*v),
            Value::F64(v) => serializer.serialize_f64(*v),
            Value::Timestamp(v) => serializer.serialize_u64(*v),
            Value::Decimal { scale, value } => serializer.serialize_f64(f64::from(*value) / 10f64.powi(i32::from(*scale))),
            Value::Str(bytes) | Value::Bytes(bytes) => serializer.serialize_str(&String::from_utf8_lossy(bytes)),
            Value::Array(values) => {
                let mut seq = serializer.serialize_seq(Some(values.len()))?;
                for value in values {
                    seq.serialize_element(value)?;
                }
                seq.end()
            }
            Value::Table(table) => table.serialize(serializer),
            integer => match integer.as_integer() {
                Some(v) => serializer.serialize_i64(v),
                None => serializer.serialize_unit(),
            },
        }
    }
}

/// An object, or an empty array: that is how RabbitMQ's exports print an empty table of arguments.
impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Table, D::Error> {
        match (ValueSeed { depth_left: NESTING_MAX + 1 }).deserialize(deserializer)? {
            Value::Table(table) => Ok(table),
            Value::Array(values) if values.is_empty() => Ok(Table::default()),
            other => Err(D::Error::custom(format!("expected a table, got {}", other.type_name()))),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        ValueSeed { depth_left: NESTING_MAX }.deserialize(deserializer)
    }
}

/// Reads a JSON value with the types that RabbitMQ gives it: integers are `long`, other numbers `double`, strings `longstr`.
struct ValueSeed {
    depth_left: usize,
}

impl ValueSeed {
    fn deeper<E: serde::de::Error>(&self) -> Result<ValueSeed, E> {
        match self.depth_left.checked_sub(1) {
            Some(depth_left) => Ok(ValueSeed { depth_left }),
            None => Err(E::custom(format!("nested deeper than {NESTING_MAX}"))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Void)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::I64(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(i64::try_from(v).map_or(Value::F64(v as f64), Value::I64))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::F64(v))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::str(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self.deeper()?)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut table = Table::default();
        while let Some(name) = map.next_key::<Box<str>>()? {
            table.push(name, map.next_value_seed(self.deeper()?)?);
        }
        Ok(Value::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Table {
        let mut table = Table::default();
        table.push("void", Value::Void);
        table.push("yes", Value::Bool(true));
        table.push("b", Value::I8(-1));
        table.push("B", Value::U8(255));
        table.push("s", Value::I16(i16::MIN));
        table.push("u", Value::U16(u16::MAX));
        table.push("I", Value::I32(i32::MIN));
        table.push("i", Value::U32(u32::MAX));
        table.push("l", Value::I64(i64::MIN));
        table.push("f", Value::F32(0.5));
        table.push("d", Value::F64(-1e300));
        table.push("D", Value::Decimal { scale: 2, value: 12345 });
        table.push("S", Value::str("text".repeat(100)));
        table.push("x", Value::Bytes([0u8, 255].as_slice().into()));
        table.push("T", Value::Timestamp(u64::MAX));
        table.push("A", Value::Array(vec![Value::Void, Value::Array(vec![]), Value::Table(Table::default())]));
        table.push("F", Value::Table([("in", Value::I64(1)), ("in", Value::I64(2))].into_iter().collect()));
        table
    }

    #[test]
    fn every_type_reads_back_in_order_with_duplicates() {
        let mut bytes = Vec::new();
        encode_table(&one_of_each(), &mut bytes);
        assert_eq!(decode_table(&bytes), Some(one_of_each()));
    }

    #[test]
    fn a_cut_table_and_one_with_a_tail_are_refused() {
        let mut bytes = Vec::new();
        encode_table(&one_of_each(), &mut bytes);
        for cut in 0..bytes.len() {
            assert_eq!(decode_table(&bytes[..cut]), None, "cut at {cut}");
        }
        bytes.push(0);
        assert_eq!(decode_table(&bytes), None);
    }

    #[test]
    fn damaged_bytes_never_panic_nor_ask_for_much_room() {
        let mut good = Vec::new();
        encode_table(&one_of_each(), &mut good);
        let mut state = 7u64;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (state >> 33) as usize % bytes.len();
                bytes[at] = (state >> 20) as u8;
            }
            if let Some(table) = decode_table(&bytes) {
                let mut again = Vec::new();
                encode_table(&table, &mut again);
                assert!(again.len() <= bytes.len());
            }
        }
        assert_eq!(decode_table(&[0xff, 0xff, 0xff, 0xff, 0x0f]), None);
        assert_eq!(decode_table(&[0xff; 16]), None);
    }

    #[test]
    fn nesting_stops_at_the_limit_on_both_sides() {
        let nested = |depth: usize| {
            let mut value = Value::I8(1);
            for _ in 0..depth {
                value = Value::Array(vec![value]);
            }
            [("a", value)].into_iter().collect::<Table>()
        };
        let mut bytes = Vec::new();
        encode_table(&nested(NESTING_MAX), &mut bytes);
        assert_eq!(decode_table(&bytes), Some(nested(NESTING_MAX)));

        bytes.clear();
        encode_table(&nested(NESTING_MAX + 1), &mut bytes);
        assert!(decode_table(&bytes).is_some(), "what we wrote must be readable");

        let mut hostile = vec![1, 1, b'a'];
        hostile.extend([b'A', 1].repeat(100_000));
        assert_eq!(decode_table(&hostile), None);
    }

    #[test]
    fn json_keeps_order_and_gives_rabbitmqs_types() {
        let json = r#"{"z":1,"a":"text","f":1.5,"t":true,"list":[1,"x",{"k":null}],"big":18446744073709551615}"#;
        let table: Table = serde_json::from_str(json).expect("valid");
        assert_eq!(table.get("z"), Some(&Value::I64(1)));
        assert_eq!(table.get("a"), Some(&Value::str("text")));
        assert_eq!(table.get("f"), Some(&Value::F64(1.5)));
        assert_eq!(table.0.iter().map(|(n, _)| &**n).collect::<Vec<_>>(), ["z", "a", "f", "t", "list", "big"]);
        let back = serde_json::to_string(&table).expect("serialisable");
        assert_eq!(back, json.replace("18446744073709551615", "1.8446744073709552e+19"));
        assert_eq!(serde_json::from_str::<Table>("[]").expect("empty"), Table::default());
        assert!(serde_json::from_str::<Table>("[1]").is_err());
        assert!(serde_json::from_str::<Table>("3").is_err());
    }

    #[test]
    fn json_deeper_than_the_limit_is_refused() {
        let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(serde_json::from_str::<Table>(&nested(NESTING_MAX)).is_ok());
        assert!(serde_json::from_str::<Table>(&nested(NESTING_MAX + 1)).is_err());
    }
}
