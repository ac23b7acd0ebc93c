//! All figures in one list, and Prometheus' text form of it.

use crate::hub::Hub;
use crate::listener::Gate;
use crate::owner::{ALARMS, Figure, Figures, Kind, alarm_name};
use std::fmt::Write;
use std::sync::atomic::Ordering;

pub fn collect(hub: &Hub, gate: &Gate) -> Figures {
    let counts = &hub.counts;
    let mut figures = hub.with_node(|node, _, _| node.figures());
    figures.extend(hub.journal.figures());
    figures.extend([
        Figure::gauge("connections", "Connections open now.", hub.connections() as u64),
        Figure::gauge("connections_half_open", "Connections not authenticated yet.", gate.half_open() as u64),
        Figure::counter("connections_opened_total", "Connections opened.", counts.connections_opened.load(Ordering::Relaxed)),
        Figure::counter("connections_closed_total", "Connections closed.", counts.connections_closed.load(Ordering::Relaxed)),
        Figure::counter(
            "connections_refused_total",
            "Connections refused by a limit.",
            counts.connections_refused.load(Ordering::Relaxed),
        ),
        Figure::counter("panics_total", "Bugs that ended a connection.", counts.panics.load(Ordering::Relaxed)),
    ]);
    for alarm in ALARMS {
        let on = u64::from(hub.has_alarm(alarm));
        figures.push(
            Figure::gauge("alarm", "1 while publishers are stopped for this reason.", on).with("reason", alarm_name(alarm)),
        );
    }
    figures
}

/// Figures of one family must stand together; its head is written before the first.
pub fn render(figures: &[Figure]) -> String {
    let mut text = String::new();
    let mut last = "";
    for Figure { name, help, kind, labels, value } in figures {
        let family = family(name, *kind);
        if family != last {
            let kind = match kind {
                Kind::Counter => "counter",
                Kind::Gauge => "gauge",
                Kind::Histogram => "histogram",
            };
            let _ = writeln!(text, "# HELP braid_{family} {help}\n# TYPE braid_{family} {kind}");
            last = family;
        }
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(text, "braid_{name}{labels} {value}");
    }
    text
}

fn family(name: &'static str, kind: Kind) -> &'static str {
    if kind != Kind::Histogram {
        return name;
    }
    ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_one_head_each() {
        let bucket = Figure { kind: Kind::Histogram, ..Figure::gauge("fsync_seconds_bucket", "Syncs.", 3) };
        let sum = Figure { kind: Kind::Histogram, value: 0.5, ..Figure::gauge("fsync_seconds_sum", "Syncs.", 0) };
        let text = render(&[
            Figure::counter("messages_in_total", "Messages.", 1).with("protocol", "amqp"),
            Figure::counter("messages_in_total", "Messages.", 2).with("protocol", "mqtt"),
            bucket.with("le", "+Inf"),
            sum,
        ]);
        assert_eq!(
            text,
            "# HELP braid_messages_in_total Messages.\n# TYPE braid_messages_in_total counter\n\
             braid_messages_in_total{protocol=\"amqp\"} 1\nbraid_messages_in_total{protocol=\"mqtt\"} 2\n\
             # HELP braid_fsync_seconds Syncs.\n# TYPE braid_fsync_seconds histogram\n\
             braid_fsync_seconds_bucket{le=\"+Inf\"} 3\nbraid_fsync_seconds_sum 0.5\n"
        );
    }
}
