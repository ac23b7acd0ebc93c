//! The small print of every format here: big-endian integers and LEB128 numbers, read without trust.

/// Appends an unsigned number, 7 bits a byte, low bits first.
#[inline]
pub(crate) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A number of bytes, then the bytes.
pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads fields from the front; `None` as soon as something does not fit.
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take(4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take(8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes)
    }

    pub fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for i in 0..10 {
            let byte = self.u8()?;
            value |= ((byte & 0x7f) as u64) << (7 * i);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A count of things that take at least one byte each: it cannot be larger than what is left.
    pub fn count(&mut self) -> Option<usize> {
        let count = self.number()?;
        (count <= self.0.len() as u64).then_some(count as usize)
    }

    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.count()?;
        self.take(length)
    }

    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}
