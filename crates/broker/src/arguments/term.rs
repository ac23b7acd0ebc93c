//! Values as RabbitMQ prints them into refusals: Erlang terms.

use crate::value::Value;

pub fn term(value: &Value) -> String {
    match value {
        Value::Void => "undefined".into(),
        Value::Bool(v) => v.to_string(),
        Value::F32(v) => float(f64::from(*v)),
        Value::F64(v) => float(*v),
        Value::Decimal { scale, value } => format!("{{{scale},{value}}}"),
        Value::Timestamp(v) => v.to_string(),
        Value::Str(bytes) | Value::Bytes(bytes) => binary(bytes),
        Value::Array(values) => {
            let items: Vec<String> = values.iter().map(typed).collect();
            format!("[{}]", items.join(","))
        }
        Value::Table(table) => {
            let entry = |(name, value): &(Box<str>, Value)| {
                format!("{{{},{},{}}}", binary(name.as_bytes()), value.type_name(), term(value))
            };
            let items: Vec<String> = table.0.iter().map(entry).collect();
            format!("[{}]", items.join(","))
        }
        integer => integer.as_integer().unwrap_or_default().to_string(),
    }
}

fn typed(value: &Value) -> String {
    format!("{{{},{}}}", value.type_name(), term(value))
}

fn float(v: f64) -> String {
    format!("{v:?}")
}

fn binary(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "<<>>".into();
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) => {
            let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\r', "\\r");
            let suffix = if text.is_ascii() { "" } else { "/utf8" };
            format!("<<\"{}\"{suffix}>>", escaped.replace('\t', "\\t"))
        }
        _ => {
            let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
            format!("<<{}>>", numbers.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::Table;

    fn table(entries: &[(&str, Value)]) -> Table {
        entries.iter().cloned().collect()
    }

    #[test]
    fn terms_look_like_erlangs() {
        assert_eq!(term(&Value::str("a\"b")), "<<\"a\\\"b\">>");
        assert_eq!(term(&Value::str("ü")), "<<\"ü\"/utf8>>");
        assert_eq!(term(&Value::Bytes([0u8, 200].as_slice().into())), "<<0,200>>");
        assert_eq!(term(&Value::I8(-10)), "-10");
        assert_eq!(term(&Value::F64(1.0)), "1.0");
        assert_eq!(term(&Value::Array(vec![Value::I32(1)])), "[{signedint,1}]");
        assert_eq!(term(&Value::Table(table(&[("k", Value::Bool(true))]))), "[{<<\"k\">>,bool,true}]");
    }
}
