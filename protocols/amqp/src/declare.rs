//! Methods about exchanges, queues and bindings become requests.

use crate::channel::Then;
use crate::connection::Connection;
use crate::error::{Code, Refusal};
use crate::field_table;
use crate::limits::NAME_PREFIX_BYTES_MAX;
use crate::method::{Method, RawTable};
use crate::publish::REPLY_TO;
use broker::{Binding, DeclareExchange, DeclareQueue, Destination, Request, Table};

impl Connection {
    pub(crate) fn declare(&mut self, number: u16, method: &Method<'_>, requests: &mut Vec<Request>) -> Result<(), Refusal> {
        let (then, request) = match *method {
            Method::ExchangeDeclare { exchange, kind, passive, durable, auto_delete, internal, nowait, arguments, .. } => {
                let declare = DeclareExchange {
                    name: name(exchange),
                    kind: kind.into(),
                    passive,
                    durable,
                    auto_delete,
                    internal,
                    arguments: table(arguments)?,
                };
                (say(nowait, Method::ExchangeDeclareOk {}), Request::DeclareExchange(Box::new(declare)))
            }
            Method::ExchangeDelete { exchange, if_unused, nowait, .. } => {
                (say(nowait, Method::ExchangeDeleteOk {}), Request::DeleteExchange { name: name(exchange), if_unused })
            }
            Method::ExchangeBind { destination, source, routing_key, nowait, arguments, .. } => {
                let binding = binding(source, name(destination), Destination::Exchange, routing_key, arguments)?;
                (say(nowait, Method::ExchangeBindOk {}), Request::Bind(binding))
            }
            Method::ExchangeUnbind { destination, source, routing_key, nowait, arguments, .. } => {
                let binding = binding(source, name(destination), Destination::Exchange, routing_key, arguments)?;
                (say(nowait, Method::ExchangeUnbindOk {}), Request::Unbind(binding))
            }
            Method::QueueDeclare { nowait, .. } => {
                (Then::Declared { nowait }, Request::DeclareQueue(Box::new(self.declare_queue(method)?)))
            }
            Method::QueueBind { queue, exchange, routing_key, nowait, arguments, .. } => {
                let binding = self.queue_binding(number, queue, exchange, routing_key, arguments)?;
                (say(nowait, Method::QueueBindOk {}), Request::Bind(binding))
            }
            Method::QueueUnbind { queue, exchange, routing_key, arguments, .. } => {
                let binding = self.queue_binding(number, queue, exchange, routing_key, arguments)?;
                (say(false, Method::QueueUnbindOk {}), Request::Unbind(binding))
            }
            Method::QueuePurge { queue, nowait, .. } => {
                (Then::Purged { nowait }, Request::Purge { queue: self.named(number, queue)?.into() })
            }
            Method::QueueDelete { queue, if_unused, if_empty, nowait, .. } => {
                let name = name(self.named(number, queue)?);
                (Then::Deleted { nowait }, Request::DeleteQueue { name, if_unused, if_empty })
            }
            _ => return Ok(()),
        };
        self.ask(number, method.id(), then, request, requests);
        Ok(())
    }

    fn declare_queue(&mut self, method: &Method<'_>) -> Result<DeclareQueue, Refusal> {
        let Method::QueueDeclare { queue, passive, durable, exclusive, auto_delete, arguments, .. } = *method else {
            return Err(Refusal::new(Code::InternalError, "not a queue.declare"));
        };
        let mut given = name(queue);
        let mut arguments = if passive { Table::default() } else { table(arguments)? };
        let prefix = match arguments.get("x-name-prefix").and_then(|prefix| prefix.as_str()) {
            None => "amq.gen".into(),
            Some(prefix) if prefix.len() <= NAME_PREFIX_BYTES_MAX => name(prefix),
            Some(prefix) => {
                let text = format!("Queue name prefix '{}' exceeds the {NAME_PREFIX_BYTES_MAX}-byte limit", name(prefix));
                return Err(Refusal::precondition(text));
            }
        };
        arguments.0.retain(|(name, _)| &**name != "x-name-prefix");
        if passive && given.is_empty() {
            return Err(Refusal::new(Code::NotFound, format!("no queue '' in vhost '{}'", self.vhost)));
        }
        let server_named = given.is_empty();
        if server_named {
            given = self.made_up_name(&prefix);
        }
        // A reply address can be looked for, never made.
        let passive = passive || given.starts_with(REPLY_TO);
        // An exclusive queue ends with its connection, so it has nothing to keep.
        Ok(DeclareQueue { name: given, server_named, passive, durable, exclusive, auto_delete, arguments })
    }

    /// An empty queue name means the last one declared, and then an empty key means its name too.
    fn queue_binding(
        &mut self,
        number: u16,
        queue: &str,
        exchange: &str,
        routing_key: &str,
        arguments: RawTable<'_>,
    ) -> Result<Box<Binding>, Refusal> {
        let named = self.named(number, queue)?;
        let routing_key = if queue.is_empty() && routing_key.is_empty() { named } else { routing_key };
        if named.starts_with(REPLY_TO) {
            let text = "cannot bind or unbind to a volatile (direct reply-to) queue";
            return Err(Refusal::new(Code::AccessRefused, text));
        }
        binding(exchange, name(named), Destination::Queue, routing_key, arguments)
    }

    fn named<'a>(&'a self, number: u16, queue: &'a str) -> Result<&'a str, Refusal> {
        match self.channels.get(number) {
            Some(channel) => channel.named(queue),
            None => Ok(queue),
        }
    }
}

fn say(nowait: bool, answer: Method<'static>) -> Then {
    Then::Say((!nowait).then_some(answer))
}

fn table(raw: RawTable<'_>) -> Result<Table, Refusal> {
    field_table::decode(raw.0).map_err(Refusal::of_table)
}

fn binding(
    source: &str,
    destination: Box<str>,
    to: Destination,
    routing_key: &str,
    arguments: RawTable<'_>,
) -> Result<Box<Binding>, Refusal> {
    let (source, routing_key, arguments) = (name(source), routing_key.into(), table(arguments)?);
    Ok(Box::new(Binding { source, destination, to, routing_key, arguments }))
}

/// Line ends are stripped from names, silently, as RabbitMQ does.
fn name(given: &str) -> Box<str> {
    if given.contains(['\r', '\n']) { given.replace(['\r', '\n'], "").into() } else { given.into() }
}
