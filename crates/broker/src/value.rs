//! Typed values of headers and arguments: ordered, duplicates allowed, never a map of strings (AMQP 0-9-1 field tables, §4.2.5).

/// One value. Equality is of type and content; [`Value::as_integer`] compares across widths.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Void,
    Bool(bool),
    I8(i8),
    U8(u8),
    I16(i16),
    U16(u16),
    I32(i32),
    U32(u32),
    I64(i64),
    F32(f32),
    F64(f64),
    Decimal {
        scale: u8,
        value: u32,
    },
    /// A long string: any bytes, mostly text.
    Str(Box<[u8]>),
    /// A byte array (tag `x`).
    Bytes(Box<[u8]>),
    Array(Vec<Value>),
    /// Unix seconds.
    Timestamp(u64),
    Table(Table),
}

impl Value {
    pub fn str(text: impl AsRef<[u8]>) -> Value {
        Value::Str(text.as_ref().into())
    }

    pub fn as_integer(&self) -> Option<i64> {
        match *self {
            Value::I8(v) => Some(v.into()),
            Value::U8(v) => Some(v.into()),
            Value::I16(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::I32(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::I64(v) => Some(v),
            _ => None,
        }
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::Str(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(v) => Some(*v),
            _ => None,
        }
    }

    /// The type's name as RabbitMQ prints it in error texts (`signedint`, `longstr`, …).
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Void => "void",
            Value::Bool(_) => "bool",
            Value::I8(_) => "byte",
            Value::U8(_) => "unsignedbyte",
            Value::I16(_) => "short",
            Value::U16(_) => "unsignedshort",
            Value::I32(_) => "signedint",
            Value::U32(_) => "unsignedint",
            Value::I64(_) => "long",
            Value::F32(_) => "float",
            Value::F64(_) => "double",
            Value::Decimal { .. } => "decimal",
            Value::Str(_) => "longstr",
            Value::Bytes(_) => "binary",
            Value::Array(_) => "array",
            Value::Timestamp(_) => "timestamp",
            Value::Table(_) => "table",
        }
    }
}

/// Names and values in the order they came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table(pub Vec<(Box<str>, Value)>);

impl Table {
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| &**n == name).map(|(_, v)| v)
    }

    pub fn push(&mut self, name: impl Into<Box<str>>, value: Value) {
        self.0.push((name.into(), value));
    }

    /// Replaces the first of that name, or adds it at the end.
    pub fn set(&mut self, name: &str, value: Value) {
        match self.0.iter_mut().find(|(n, _)| &**n == name) {
            Some((_, old)) => *old = value,
            None => self.push(name, value),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<Box<str>>> FromIterator<(N, Value)> for Table {
    fn from_iter<I: IntoIterator<Item = (N, Value)>>(entries: I) -> Table {
        Table(entries.into_iter().map(|(n, v)| (n.into(), v)).collect())
    }
}
