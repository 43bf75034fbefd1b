//! The spans of time of a measurement, from which a trace can be drawn.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::panic::Location;
use std::path::Path;
use std::thread::{ThreadId, current};
use std::time::{Duration, Instant};

use super::Kind;

/// A span of time on one thread. Of two spans of a thread, either one contains the other, or one ends before the other
/// begins.
#[derive(Clone, Debug)]
pub struct Span {
    /// What was done: an op by the folder of its source, a name given to [`region`](super::region()), [`GAP`], [`REST`],
    /// [`QUEUE`] or [`DEVICE`].
    pub name: Cow<'static, str>,
    /// The name of an op's [`Kind`]; `between` of what lies between ops, `part` of a part of an op, `region` of a region.
    pub category: &'static str,
    /// Where an op was called.
    pub place: Option<&'static Location<'static>>,
    /// The thread, numbered from 0, which is the one that measured.
    pub thread: usize,
    /// From the beginning of the measurement.
    pub begin: Duration,
    /// How long it took.
    pub duration: Duration,
}

/// The time from the end of an op to the call of the next one: work of the host, and Burn's own ops. On a device that
/// queues work, only the part of Burn's ops that the device computes in this time.
pub const GAP: &str = "host and Burn's ops";
/// The time after a gap, until the device has completed the rest of Burn's own ops.
pub const REST: &str = "rest of Burn's ops";
/// The first part of an op: until its kernels are queued, or, on a CPU, until it is done.
pub const QUEUE: &str = "queue";
/// The second part of an op: until the device has completed its kernels.
pub const DEVICE: &str = "device";

/// Collects spans.
pub(super) struct Recorder {
    begun: Instant,
    /// The threads, and where the last span of each has ended.
    threads: Vec<(ThreadId, Duration)>,
    spans: Vec<Span>,
}

impl Recorder {
    /// Of a measurement by this thread.
    pub(super) fn new(begun: Instant) -> Self {
        Self {
            begun,
            threads: vec![(current().id(), Duration::ZERO)],
            spans: vec![],
        }
    }

    /// Records an op of this thread. `times` are when it was called, when it began after the first wait, when its work
    /// was queued, and when it was done.
    pub(super) fn op(
        &mut self,
        kind: Kind,
        place: &'static Location<'static>,
        [called, begun, queued, done]: [Instant; 4],
    ) {
        self.gap(called);
        self.add(REST.into(), "between", None, [called, begun]);
        let name = name_of(Path::new(place.file()));
        self.add(name.into(), kind.name(), Some(place), [begun, done]);
        self.add(QUEUE.into(), "part", None, [begun, queued]);
        self.add(DEVICE.into(), "part", None, [queued, done]);
        self.ends(done);
    }

    /// An op in another one, for which nothing waits.
    pub(super) fn part(&mut self, place: &'static Location<'static>, times: [Instant; 2]) {
        let name = name_of(Path::new(place.file()));
        self.add(name.into(), "part", Some(place), times);
    }

    /// A region around ops, whose beginning was a [`gap`](Self::gap).
    pub(super) fn region(&mut self, name: &'static str, [begun, done]: [Instant; 2]) {
        self.gap(done);
        self.add(name.into(), "region", None, [begun, done]);
    }

    /// What lies between the last span of this thread and `until`.
    pub(super) fn gap(&mut self, until: Instant) {
        let thread = self.thread(until);
        let since = self.begun + self.threads[thread].1;
        self.add(GAP.into(), "between", None, [since, until]);
        self.ends(until);
    }

    /// All of them: by threads, then by their beginnings, those that hold others first.
    pub(super) fn finish(mut self, ended: Instant) -> Vec<Span> {
        self.gap(ended);
        let order = |span: &Span| (span.thread, span.begin, std::cmp::Reverse(span.duration));
        self.spans.sort_by_key(order);
        self.spans
    }

    fn add(
        &mut self,
        name: Cow<'static, str>,
        category: &'static str,
        place: Option<&'static Location<'static>>,
        [begin, end]: [Instant; 2],
    ) {
        let (thread, begin, end) = (self.thread(begin), self.at(begin), self.at(end));
        if begin < end {
            self.spans.push(Span {
                name,
                category,
                place,
                thread,
                begin,
                duration: end - begin,
            });
        }
    }

    /// The number of this thread, whose first span begins at `first`.
    fn thread(&mut self, first: Instant) -> usize {
        let id = current().id();
        let found = self.threads.iter().position(|(known, _)| *known == id);
        found.unwrap_or_else(|| {
            self.threads.push((id, self.at(first)));
            self.threads.len() - 1
        })
    }

    fn ends(&mut self, at: Instant) {
        let thread = self.thread(at);
        self.threads[thread].1 = self.at(at);
    }

    fn at(&self, time: Instant) -> Duration {
        time.saturating_duration_since(self.begun)
    }
}

/// The op whose source calls in `file`: its folder, and the file where that is not the op's own.
fn name_of(file: &Path) -> String {
    let text = |part: &OsStr| part.to_string_lossy().into_owned();
    let folder = file
        .parent()
        .and_then(Path::file_name)
        .map_or_else(String::new, text);
    match file.file_stem().map_or_else(String::new, text).as_str() {
        "mod" => folder,
        "autodiff" => format!("{folder} backward"),
        stem => format!("{folder}/{stem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ops_are_named_by_their_sources() {
        for (file, name) in [
            ("kernels/src/dense/linear/mod.rs", "linear"),
            ("kernels/src/dense/linear/autodiff.rs", "linear backward"),
            ("/a/kernels/src/scan/ssd/gated.rs", "ssd/gated"),
            ("train/src/stages/head.rs", "stages/head"),
            ("head.rs", "/head"),
        ] {
            assert_eq!(name_of(Path::new(file)), name);
        }
    }
}
