//! Frames, found in place.
//!
//! ```text
//! type u8 | channel u16 | size u32 | payload (size bytes) | end 0xCE        (AMQP 0-9-1 §4.2.3)
//! ```

use crate::limits::FRAME_OVERHEAD;
use crate::reader::patch;

pub const METHOD: u8 = 1;
pub const HEADER: u8 = 2;
pub const BODY: u8 = 3;
pub const HEARTBEAT: u8 = 8;
pub const END: u8 = 0xCE;
/// The whole of a heartbeat.
pub const HEARTBEAT_FRAME: [u8; 8] = [HEARTBEAT, 0, 0, 0, 0, 0, 0, END];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frame<'a> {
    pub kind: u8,
    pub channel: u16,
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Bytes on the wire.
    #[inline]
    pub fn size(&self) -> usize {
        self.payload.len() + FRAME_OVERHEAD as usize
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scan<'a> {
    Frame(Frame<'a>),
    /// More bytes are needed.
    Incomplete,
    /// The size field says more than was negotiated: found before any of the payload has to be kept.
    TooLarge {
        kind: u8,
        size: u32,
    },
    BadEnd {
        kind: u8,
        payload: &'a [u8],
        end: u8,
    },
}

/// Looks at the first frame of `input`. `frame_max` bounds its whole size, give or take the eight bytes that many clients get
/// wrong (RabbitMQ allows them too).
#[inline]
pub fn scan(input: &[u8], frame_max: u32) -> Scan<'_> {
    let Some((&[kind, high, low, s0, s1, s2, s3], rest)) = input.split_first_chunk::<7>() else {
        return Scan::Incomplete;
    };
    let size = u32::from_be_bytes([s0, s1, s2, s3]);
    if size > frame_max {
        return Scan::TooLarge { kind, size };
    }
    let Some((payload, rest)) = rest.split_at_checked(size as usize) else {
        return Scan::Incomplete;
    };
    match rest.first() {
        None => Scan::Incomplete,
        Some(&END) => Scan::Frame(Frame { kind, channel: u16::from_be_bytes([high, low]), payload }),
        Some(&end) => Scan::BadEnd { kind, payload, end },
    }
}

/// Begins a frame; [`finish`] with the returned place ends it.
#[inline]
pub fn begin(out: &mut Vec<u8>, kind: u8, channel: u16) -> usize {
    let at = out.len();
    let [high, low] = channel.to_be_bytes();
    out.extend_from_slice(&[kind, high, low, 0, 0, 0, 0]);
    at
}

#[inline]
pub fn finish(out: &mut Vec<u8>, at: usize) {
    let size = (out.len() - at - 7) as u32;
    patch(out, at + 3, &size.to_be_bytes());
    out.push(END);
}

/// A content header (§4.2.6.1) and the body in frames of at most `frame_max` bytes.
pub fn put_content(out: &mut Vec<u8>, channel: u16, properties: &[u8], body: &[u8], frame_max: u32) {
    let header = begin(out, HEADER, channel);
    out.extend_from_slice(&[0, 60, 0, 0]);
    out.extend_from_slice(&(body.len() as u64).to_be_bytes());
    out.extend_from_slice(properties);
    finish(out, header);
    put_body(out, channel, body, frame_max);
}

/// No frame at all for an empty body.
#[inline]
pub fn put_body(out: &mut Vec<u8>, channel: u16, body: &[u8], frame_max: u32) {
    for part in body.chunks((frame_max - FRAME_OVERHEAD) as usize) {
        let [high, low] = channel.to_be_bytes();
        let [s0, s1, s2, s3] = (part.len() as u32).to_be_bytes();
        out.extend_from_slice(&[BODY, high, low, s0, s1, s2, s3]);
        out.extend_from_slice(part);
        out.push(END);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_whole_or_not_at_all() {
        let mut bytes = Vec::new();
        let at = begin(&mut bytes, METHOD, 7);
        bytes.extend_from_slice(b"payload");
        finish(&mut bytes, at);
        for cut in 0..bytes.len() {
            assert_eq!(scan(&bytes[..cut], 4096), Scan::Incomplete, "cut at {cut}");
        }
        assert_eq!(scan(&bytes, 4096), Scan::Frame(Frame { kind: METHOD, channel: 7, payload: b"payload" }));
        *bytes.last_mut().unwrap() = 0;
        assert_eq!(scan(&bytes, 4096), Scan::BadEnd { kind: METHOD, payload: b"payload", end: 0 });
        assert_eq!(scan(&[3, 0, 1, 0, 0, 16, 1], 4096), Scan::TooLarge { kind: 3, size: 4097 });
    }

    #[test]
    fn a_body_is_split_at_the_frame_size_and_an_empty_one_is_no_frame() {
        let mut out = Vec::new();
        put_body(&mut out, 1, &[], 16);
        assert!(out.is_empty());
        put_body(&mut out, 1, &[5; 17], 16);
        let sizes: Vec<usize> = std::iter::from_fn(|| match scan(&out, 16) {
            Scan::Frame(frame) => {
                let size = frame.payload.len();
                out.drain(..size + 8);
                Some(size)
            }
            _ => None,
        })
        .collect();
        assert_eq!(sizes, [8, 8, 1]);
    }
}
