//! Reading a log: its tail, its segments and what it spilled, merged by offset.
//!
//! Under the mutex a plan is made (shared batches of the tail, one stretch of each file that may hold the offset); files are
//! read and checked without it. What lies beyond the shortest stretch is left for the next call.

use crate::batch::Batch;
use crate::commit::{LogId, Offset};
use crate::error::Error;
use crate::log::Busy;
use crate::segment::{Segment, SegmentId, Stretch, walk};
use crate::store::Store;
use std::io;
use std::sync::Arc;

type Batches = Vec<(Offset, Arc<Batch>)>;

enum Plan {
    /// Nothing at or above `from`.
    Nothing,
    Read(Reads),
}

struct Reads {
    from: Offset,
    tail: Batches,
    /// Up to here the tail's part is complete.
    tail_to: Offset,
    stretches: Vec<Planned>,
}

struct Planned {
    stretch: Stretch,
    /// The first offset that the file may hold beyond the stretch, or that a later file may hold.
    to: Offset,
    /// The file as a whole ends here.
    end: Offset,
}

const WHOLE: Offset = Offset::MAX;

impl Store {
    /// Reader threads: batches that hold offsets at or above `from`, in order, at least one if there is any, up to
    /// `bytes_max`; none of them settled whole. Bytes that do not read back as written are [`Error::Damaged`].
    pub fn read(&self, log: LogId, mut from: Offset, bytes_max: usize) -> Result<Batches, Error> {
        let mut vanished = 0;
        loop {
            match self.plan(log, from, bytes_max)? {
                Plan::Nothing => return Ok(Vec::new()),
                Plan::Read(reads) => {
                    let (mut found, to) = match self.gather(&reads) {
                        Ok(gathered) => gathered,
                        Err((id, error)) if error.kind() == io::ErrorKind::NotFound && vanished < 8 => {
                            // Written anew or settled between plan and reading: the next plan knows.
                            let _ = id;
                            vanished += 1;
                            continue;
                        }
                        Err((id, error)) => return Err(self.failed(log, &reads, id, error)),
                    };
                    self.retain_unsettled(log, &mut found)?;
                    if !found.is_empty() {
                        cut(&mut found, bytes_max);
                        return Ok(found);
                    }
                    if to == WHOLE {
                        return Ok(found);
                    }
                    assert!(to > reads.from, "a reading gets on");
                    from = to;
                }
            }
        }
    }

    fn plan(&self, id: LogId, from: Offset, bytes_max: usize) -> Result<Plan, Error> {
        let state = self.lock();
        let log = state.logs.get(&id).ok_or(Error::UnknownLog(id))?;
        let from = log.settled.next_absent(from.max(log.first));
        let Some(busy) = log.busy.as_ref().filter(|_| from < log.next) else { return Ok(Plan::Nothing) };
        let mut stretches = Vec::new();
        for segments in [&busy.segments, &busy.spilled] {
            stretches.extend(plan_segments(segments, from, bytes_max));
        }
        let (tail, tail_to) = plan_tail(busy, from, bytes_max);
        if tail.is_empty() && stretches.is_empty() {
            return Ok(Plan::Nothing);
        }
        Ok(Plan::Read(Reads { from, tail, tail_to, stretches }))
    }

    /// Everything between `from` and the nearest end of a stretch.
    fn gather(&self, reads: &Reads) -> Result<(Batches, Offset), (SegmentId, io::Error)> {
        let to = reads.stretches.iter().map(|s| s.to).chain([reads.tail_to]).min().unwrap_or(WHOLE);
        let mut found: Batches = reads.tail.iter().filter(|b| b.0 < to).cloned().collect();
        for Planned { stretch, .. } in &reads.stretches {
            let rotten = |_| (stretch.id, io::Error::from(io::ErrorKind::InvalidData));
            let bytes = self.files.read(stretch).map_err(|e| (stretch.id, e))?;
            for batch in walk(&bytes, stretch).ok_or(()).map_err(rotten)? {
                if batch.base + batch.span > reads.from && batch.base < to {
                    let parsed = Batch::parse(&bytes[batch.from..batch.to]).map_err(|_| rotten(()))?;
                    found.push((batch.base, Arc::new(parsed)));
                }
            }
        }
        found.sort_by_key(|b| b.0);
        Ok((found, to))
    }

    fn failed(&self, log: LogId, reads: &Reads, id: SegmentId, error: io::Error) -> Error {
        use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        let planned = reads.stretches.iter().find(|s| s.stretch.id == id).expect("it was planned");
        match error.kind() {
            InvalidData | UnexpectedEof | NotFound => {
                let to = if planned.to == WHOLE { planned.end } else { planned.to };
                self.damaged(log, reads.from, to, &planned.stretch)
            }
            _ => Error::io("read", &self.files.path(id), error),
        }
    }

    /// Marks the segment: it is kept, whatever is settled.
    fn damaged(&self, log: LogId, from: Offset, to: Offset, stretch: &Stretch) -> Error {
        let mut state = self.lock();
        let busy = state.logs.get_mut(&log).and_then(|l| l.busy.as_mut());
        if let Some(segment) = busy.and_then(|b| b.segments.iter_mut().find(|s| s.id == stretch.id && !s.damaged)) {
            segment.damaged = true;
            state.stats.damage += 1;
        }
        Error::Damaged { log, from, to, file: self.files.path(stretch.id), at: stretch.at }
    }

    fn retain_unsettled(&self, id: LogId, found: &mut Batches) -> Result<(), Error> {
        let state = self.lock();
        let log = state.logs.get(&id).ok_or(Error::UnknownLog(id))?;
        found.retain(|(base, batch)| {
            let end = base + batch.span() as u64;
            end > log.first && !log.settled.covers((*base).max(log.first), end)
        });
        Ok(())
    }
}

/// The stretch of the first segment that may hold `from`.
fn plan_segments(segments: &[Segment], from: Offset, bytes_max: usize) -> Option<Planned> {
    let at = segments.partition_point(|s| s.end <= from);
    let segment = segments.get(at)?;
    let next_file = segments.get(at + 1).map_or(WHOLE, |s| s.id.base);
    let (stretch, more) = segment.stretch(from, bytes_max)?;
    Some(Planned { stretch, to: more.unwrap_or(next_file), end: segment.end })
}

fn plan_tail(busy: &Busy, from: Offset, bytes_max: usize) -> (Batches, Offset) {
    let begin = busy.tail.partition_point(|t| t.base <= from).saturating_sub(1);
    let (mut found, mut bytes) = (Vec::new(), 0);
    for entry in busy.tail.range(begin..) {
        let Some(batch) = entry.batch.as_ref().filter(|_| entry.end() > from) else { continue };
        if bytes > 0 && bytes + batch.size() > bytes_max {
            return (found, entry.base);
        }
        bytes += batch.size();
        found.push((entry.base, batch.clone()));
    }
    (found, WHOLE)
}

fn cut(found: &mut Batches, bytes_max: usize) {
    let mut bytes = 0;
    let fits = found.iter().take_while(|(_, batch)| {
        bytes += batch.size();
        bytes <= bytes_max
    });
    let count = fits.count().max(1);
    found.truncate(count);
}
