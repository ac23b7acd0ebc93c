//! As much of AMQP 0-9-1 as measuring needs, over a blocking socket: a client library costs several times what is measured
//! here, and would be what the figures are about.

use crate::process::Outcome;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;
const FRAME_MAX: u32 = 131_072;

/// Class and method, as in the specification.
type Name = (u16, u16);
const ACK: Name = (60, 80);
const DELIVER: Name = (60, 60);

/// A method's arguments.
pub struct Fields(Vec<u8>);

impl Fields {
    fn of((class, method): Name) -> Fields {
        let mut bytes = class.to_be_bytes().to_vec();
        bytes.extend_from_slice(&method.to_be_bytes());
        Fields(bytes)
    }

    fn raw(mut self, bytes: &[u8]) -> Fields {
        self.0.extend_from_slice(bytes);
        self
    }

    fn short(self, text: &str) -> Fields {
        self.raw(&[text.len() as u8]).raw(text.as_bytes())
    }

    fn long(self, bytes: &[u8]) -> Fields {
        self.raw(&(bytes.len() as u32).to_be_bytes()).raw(bytes)
    }
}

fn put_frame(out: &mut Vec<u8>, kind: u8, channel: u16, payload: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes());
    out.extend_from_slice(payload);
    out.push(FRAME_END);
}

/// A connection with one channel.
pub struct Wire {
    input: BufReader<TcpStream>,
    payload: Vec<u8>,
    out: Vec<u8>,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Outcome<Wire> {
        let stream = TcpStream::connect(address).map_err(text)?;
        stream.set_nodelay(true).map_err(text)?;
        let mut wire = Wire { input: BufReader::with_capacity(64 << 10, stream), payload: Vec::new(), out: Vec::new() };
        wire.out.extend_from_slice(b"AMQP\0\0\x09\x01");
        wire.flush()?;
        wire.expect((10, 10))?;
        let start = Fields::of((10, 11)).raw(&[0; 4]).short("PLAIN").long(b"\0guest\0guest").short("en_US");
        wire.say(0, start)?;
        wire.expect((10, 30))?;
        let tune = Fields::of((10, 31)).raw(&2047u16.to_be_bytes()).raw(&FRAME_MAX.to_be_bytes()).raw(&[0; 2]);
        wire.say(0, tune)?;
        wire.say(0, Fields::of((10, 40)).short("/").raw(&[0; 2]))?;
        wire.expect((10, 41))?;
        wire.say(1, Fields::of((20, 10)).short(""))?;
        wire.expect((20, 11))?;
        Ok(wire)
    }

    fn say(&mut self, channel: u16, fields: Fields) -> Outcome<()> {
        put_frame(&mut self.out, METHOD, channel, &fields.0);
        self.flush()
    }

    pub fn flush(&mut self) -> Outcome<()> {
        self.input.get_ref().write_all(&self.out).map_err(text)?;
        self.out.clear();
        Ok(())
    }

    /// The next frame's kind; its payload is in `payload`.
    fn frame(&mut self) -> Outcome<u8> {
        let mut head = [0; 7];
        self.input.read_exact(&mut head).map_err(text)?;
        let [kind, _, _, size @ ..] = head;
        let size = u32::from_be_bytes(size);
        if size > FRAME_MAX {
            return Err(format!("a frame of {size} bytes"));
        }
        self.payload.resize(size as usize + 1, 0);
        self.input.read_exact(&mut self.payload).map_err(text)?;
        match self.payload.pop() {
            Some(FRAME_END) => Ok(kind),
            _ => Err("a frame without an end".into()),
        }
    }

    fn method(&mut self) -> Outcome<Name> {
        loop {
            match (self.frame()?, &*self.payload) {
                (METHOD, [class_high, class, method_high, method, ..]) => {
                    return Ok((u16::from_be_bytes([*class_high, *class]), u16::from_be_bytes([*method_high, *method])));
                }
                (METHOD, _) => return Err("a method without a name".into()),
                _ => {}
            }
        }
    }

    fn expect(&mut self, name: Name) -> Outcome<()> {
        match self.method()? {
            found if found == name => Ok(()),
            found => Err(format!("{found:?} instead of {name:?}: {}", String::from_utf8_lossy(&self.payload))),
        }
    }

    fn call(&mut self, fields: Fields, answer: Name) -> Outcome<()> {
        self.say(1, fields)?;
        self.expect(answer)
    }

    pub fn declare(&mut self, queue: &str) -> Outcome<()> {
        const DURABLE: u8 = 2;
        self.call(Fields::of((50, 10)).raw(&[0; 2]).short(queue).raw(&[DURABLE]).raw(&[0; 4]), (50, 11))
    }

    pub fn bind(&mut self, queue: &str, exchange: &str, key: &str) -> Outcome<()> {
        let bind = Fields::of((50, 20)).raw(&[0; 2]).short(queue).short(exchange).short(key).raw(&[0; 5]);
        self.call(bind, (50, 21))
    }

    pub fn confirm(&mut self) -> Outcome<()> {
        self.call(Fields::of((85, 10)).raw(&[0]), (85, 11))
    }

    pub fn consume(&mut self, queue: &str, prefetch: u16) -> Outcome<()> {
        self.call(Fields::of((60, 10)).raw(&[0; 4]).raw(&prefetch.to_be_bytes()).raw(&[0]), (60, 11))?;
        self.call(Fields::of((60, 20)).raw(&[0; 2]).short(queue).short("").raw(&[0; 5]), (60, 21))
    }

    pub fn ack_up_to(&mut self, tag: u64) -> Outcome<()> {
        self.say(1, Fields::of(ACK).raw(&tag.to_be_bytes()).raw(&[1]))
    }

    /// A persistent message over the default exchange; it leaves at the next flush.
    pub fn publish(&mut self, queue: &str, body: &[u8]) {
        const DELIVERY_MODE: [u8; 3] = [0x10, 0x00, 2];
        let publish = Fields::of((60, 40)).raw(&[0; 2]).short("").short(queue).raw(&[0]);
        put_frame(&mut self.out, METHOD, 1, &publish.0);
        let header = Fields::of((60, 0)).raw(&(body.len() as u64).to_be_bytes()).raw(&DELIVERY_MODE);
        put_frame(&mut self.out, HEADER, 1, &header.0);
        for part in body.chunks(FRAME_MAX as usize - 8) {
            put_frame(&mut self.out, BODY, 1, part);
        }
    }

    pub fn unflushed(&self) -> usize {
        self.out.len()
    }

    /// Waits for the next confirm; answers up to which publish everything is confirmed. Braid confirms in order.
    pub fn confirmed(&mut self) -> Outcome<u64> {
        loop {
            match self.method()? {
                ACK => {
                    let tag = self.payload.get(4..12).and_then(|tag| tag.first_chunk());
                    return tag.map(|tag| u64::from_be_bytes(*tag)).ok_or("a short ack".into());
                }
                // connection.blocked and unblocked
                (10, _) => {}
                other => return Err(format!("{other:?} instead of a confirm: {}", String::from_utf8_lossy(&self.payload))),
            }
        }
    }

    /// Waits for the next delivery, of one frame; its body is the answer.
    pub fn delivery(&mut self) -> Outcome<&[u8]> {
        self.expect(DELIVER)?;
        match (self.frame()?, self.frame()?) {
            (HEADER, BODY) => Ok(&self.payload),
            kinds => Err(format!("frames {kinds:?} behind a delivery")),
        }
    }
}
