//! All methods of AMQP 0-9-1 as RabbitMQ speaks it: one row each, from which reading and writing follow.

use crate::frame;
use crate::reader::{Malformed, Reader, put_long, put_short};

/// A long string: any bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Long<'a>(pub &'a [u8]);

/// The inside of a field table, checked when read, decoded by whoever needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RawTable<'a>(pub &'a [u8]);

trait Field<'a>: Sized {
    fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed>;
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! number {
    ($($type:ident)*) => { $(
        impl<'a> Field<'a> for $type {
            fn read(reader: &mut Reader<'a>) -> Result<$type, Malformed> {
                reader.$type()
            }
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
        }
    )* };
}
number! { u8 u16 u32 u64 }

impl<'a> Field<'a> for &'a str {
    fn read(reader: &mut Reader<'a>) -> Result<&'a str, Malformed> {
        reader.short()
    }
    fn write(&self, out: &mut Vec<u8>) {
        put_short(out, self);
    }
}

impl<'a> Field<'a> for Long<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Long<'a>, Malformed> {
        reader.long().map(Long)
    }
    fn write(&self, out: &mut Vec<u8>) {
        put_long(out, self.0);
    }
}

impl<'a> Field<'a> for RawTable<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<RawTable<'a>, Malformed> {
        let table = reader.long()?;
        crate::field_table::validate(table)?;
        Ok(RawTable(table))
    }
    fn write(&self, out: &mut Vec<u8>) {
        put_long(out, self.0);
    }
}

/// A method's shape: fields are (name, type), bits share one octet between them.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub id: (u16, u16),
    pub name: &'static str,
    pub before: &'static [(&'static str, &'static str)],
    pub bits: &'static [&'static str],
    pub after: &'static [(&'static str, &'static str)],
}

/// A row: class, method, name { fields; bits of one octet, lowest first; fields }.
macro_rules! methods {
    ($a:lifetime $(
        $class:literal $method:literal $name:ident {
            $($before:ident: $before_type:ty),* ; $($bit:ident),* ; $($after:ident: $after_type:ty),*
        }
    )*) => {
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Method<$a> {
            $( $name { $($before: $before_type,)* $($bit: bool,)* $($after: $after_type,)* }, )*
        }

        impl<$a> Method<$a> {
            /// Class and method number.
            pub fn id(&self) -> (u16, u16) {
                match self {
                    $( Method::$name { .. } => ($class, $method), )*
                }
            }

            /// `fields` is the payload of a method frame behind class and method number; it must hold the fields and no more.
            #[allow(unused_assignments, unused_mut, unused_variables)]
            pub fn decode(id: (u16, u16), fields: &$a [u8]) -> Result<Method<$a>, Malformed> {
                let mut reader = Reader::new(fields);
                let method = match id {
                    $( ($class, $method) => {
                        $( let $before = Field::read(&mut reader)?; )*
                        let has_bits = false $( || !stringify!($bit).is_empty() )*;
                        let mut bits = if has_bits { reader.u8()? } else { 0 };
                        $( let $bit = bits & 1 != 0; bits >>= 1; )*
                        $( let $after = Field::read(&mut reader)?; )*
                        Method::$name { $($before,)* $($bit,)* $($after,)* }
                    } )*
                    _ => return Err(Malformed::UnknownMethod),
                };
                reader.end()?;
                Ok(method)
            }

            /// Appends what [`Method::decode`] takes.
            #[allow(unused_assignments, unused_mut, unused_variables)]
            pub fn encode_fields(&self, out: &mut Vec<u8>) {
                match self {
                    $( Method::$name { $($before,)* $($bit,)* $($after,)* } => {
                        $( $before.write(out); )*
                        let has_bits = false $( || !stringify!($bit).is_empty() )*;
                        let (mut bits, mut mask) = (0u8, 1u8);
                        $( bits |= if *$bit { mask } else { 0 }; mask <<= 1; )*
                        if has_bits {
                            out.push(bits);
                        }
                        $( $after.write(out); )*
                    } )*
                }
            }
        }

        /// The rows as data, for transcripts and differential tests.
        pub const ROWS: &[Row] = &[$( Row {
            id: ($class, $method),
            name: stringify!($name),
            before: &[$((stringify!($before), stringify!($before_type))),*],
            bits: &[$(stringify!($bit)),*],
            after: &[$((stringify!($after), stringify!($after_type))),*],
        } ),*];
    };
}

methods! { 'a
    10 10 ConnectionStart { version_major: u8, version_minor: u8, server_properties: RawTable<'a>, mechanisms: Long<'a>, locales: Long<'a>;; }
    10 11 ConnectionStartOk { client_properties: RawTable<'a>, mechanism: &'a str, response: Long<'a>, locale: &'a str;; }
    10 20 ConnectionSecure { challenge: Long<'a>;; }
    10 21 ConnectionSecureOk { response: Long<'a>;; }
    10 30 ConnectionTune { channel_max: u16, frame_max: u32, heartbeat: u16;; }
    10 31 ConnectionTuneOk { channel_max: u16, frame_max: u32, heartbeat: u16;; }
    10 40 ConnectionOpen { virtual_host: &'a str, capabilities: &'a str; insist; }
    10 41 ConnectionOpenOk { known_hosts: &'a str;; }
    10 50 ConnectionClose { reply_code: u16, reply_text: &'a str, class_id: u16, method_id: u16;; }
    10 51 ConnectionCloseOk { ;; }
    10 60 ConnectionBlocked { reason: &'a str;; }
    10 61 ConnectionUnblocked { ;; }
    10 70 ConnectionUpdateSecret { new_secret: Long<'a>, reason: &'a str;; }
    10 71 ConnectionUpdateSecretOk { ;; }

    20 10 ChannelOpen { out_of_band: &'a str;; }
    20 11 ChannelOpenOk { channel_id: Long<'a>;; }
    20 20 ChannelFlow { ; active; }
    20 21 ChannelFlowOk { ; active; }
    20 40 ChannelClose { reply_code: u16, reply_text: &'a str, class_id: u16, method_id: u16;; }
    20 41 ChannelCloseOk { ;; }

    30 10 AccessRequest { realm: &'a str; exclusive, passive, active, write, read; }
    30 11 AccessRequestOk { ticket: u16;; }

    40 10 ExchangeDeclare { ticket: u16, exchange: &'a str, kind: &'a str; passive, durable, auto_delete, internal, nowait; arguments: RawTable<'a> }
    40 11 ExchangeDeclareOk { ;; }
    40 20 ExchangeDelete { ticket: u16, exchange: &'a str; if_unused, nowait; }
    40 21 ExchangeDeleteOk { ;; }
    40 30 ExchangeBind { ticket: u16, destination: &'a str, source: &'a str, routing_key: &'a str; nowait; arguments: RawTable<'a> }
    40 31 ExchangeBindOk { ;; }
    40 40 ExchangeUnbind { ticket: u16, destination: &'a str, source: &'a str, routing_key: &'a str; nowait; arguments: RawTable<'a> }
    40 51 ExchangeUnbindOk { ;; }

    50 10 QueueDeclare { ticket: u16, queue: &'a str; passive, durable, exclusive, auto_delete, nowait; arguments: RawTable<'a> }
    50 11 QueueDeclareOk { queue: &'a str, message_count: u32, consumer_count: u32;; }
    50 20 QueueBind { ticket: u16, queue: &'a str, exchange: &'a str, routing_key: &'a str; nowait; arguments: RawTable<'a> }
    50 21 QueueBindOk { ;; }
    50 30 QueuePurge { ticket: u16, queue: &'a str; nowait; }
    50 31 QueuePurgeOk { message_count: u32;; }
    50 40 QueueDelete { ticket: u16, queue: &'a str; if_unused, if_empty, nowait; }
    50 41 QueueDeleteOk { message_count: u32;; }
    50 50 QueueUnbind { ticket: u16, queue: &'a str, exchange: &'a str, routing_key: &'a str, arguments: RawTable<'a>;; }
    50 51 QueueUnbindOk { ;; }

    60 10 BasicQos { prefetch_size: u32, prefetch_count: u16; global; }
    60 11 BasicQosOk { ;; }
    60 20 BasicConsume { ticket: u16, queue: &'a str, consumer_tag: &'a str; no_local, no_ack, exclusive, nowait; arguments: RawTable<'a> }
    60 21 BasicConsumeOk { consumer_tag: &'a str;; }
    60 30 BasicCancel { consumer_tag: &'a str; nowait; }
    60 31 BasicCancelOk { consumer_tag: &'a str;; }
    60 40 BasicPublish { ticket: u16, exchange: &'a str, routing_key: &'a str; mandatory, immediate; }
    60 50 BasicReturn { reply_code: u16, reply_text: &'a str, exchange: &'a str, routing_key: &'a str;; }
    60 60 BasicDeliver { consumer_tag: &'a str, delivery_tag: u64; redelivered; exchange: &'a str, routing_key: &'a str }
    60 70 BasicGet { ticket: u16, queue: &'a str; no_ack; }
    60 71 BasicGetOk { delivery_tag: u64; redelivered; exchange: &'a str, routing_key: &'a str, message_count: u32 }
    60 72 BasicGetEmpty { cluster_id: &'a str;; }
    60 80 BasicAck { delivery_tag: u64; multiple; }
    60 90 BasicReject { delivery_tag: u64; requeue; }
    60 100 BasicRecoverAsync { ; requeue; }
    60 110 BasicRecover { ; requeue; }
    60 111 BasicRecoverOk { ;; }
    60 120 BasicNack { delivery_tag: u64; multiple, requeue; }

    85 10 ConfirmSelect { ; nowait; }
    85 11 ConfirmSelectOk { ;; }

    90 10 TxSelect { ;; }
    90 11 TxSelectOk { ;; }
    90 20 TxCommit { ;; }
    90 21 TxCommitOk { ;; }
    90 30 TxRollback { ;; }
    90 31 TxRollbackOk { ;; }
}

pub const PUBLISH: (u16, u16) = (60, 40);

/// Appends a whole method frame.
pub fn put(out: &mut Vec<u8>, channel: u16, method: &Method<'_>) {
    let at = frame::begin(out, frame::METHOD, channel);
    let (class, number) = method.id();
    out.extend_from_slice(&class.to_be_bytes());
    out.extend_from_slice(&number.to_be_bytes());
    method.encode_fields(out);
    frame::finish(out, at);
}

/// Class and method number of a method frame, and its fields; `None` where it is too short for that.
#[inline]
pub fn split(payload: &[u8]) -> Option<((u16, u16), &[u8])> {
    let (&[c0, c1, m0, m1], fields) = payload.split_first_chunk::<4>()?;
    Some(((u16::from_be_bytes([c0, c1]), u16::from_be_bytes([m0, m1])), fields))
}
