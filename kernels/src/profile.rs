//! Where the time of queued work goes, by kind of work.
//!
//! A device that queues work does not report when an op is done. While [`measure`] runs, each op waits for the device
//! before it begins and after it has queued its work, and the time between the two waits counts for the op's kind.
//! The total is then longer than in normal operation, because the host prepares nothing while the device computes; so
//! compare the shares, not the totals. When nothing is measured, an op only reads one flag.
//!
//! [`Times::spans`] has every op and every gap between two of them.

mod spans;

use std::cell::Cell;
use std::fmt;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::spans::Recorder;
pub use self::spans::{DEVICE, GAP, QUEUE, REST, Span};

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Products of activations with weights, forward and backward.
    Products,
    /// The scan with what is fused into it.
    Scan,
    /// The causal convolution.
    Convolution,
    /// Attention.
    Attention,
    /// Normalisation, activations, gates, rotations.
    Elementwise,
    /// What compares student and teacher.
    Losses,
    /// The update of the parameters, and the norm of the gradients.
    Optimizer,
    /// Rows of the embedding, and their gradient.
    Embedding,
}

impl Kind {
    /// All of them, in the order of a table.
    pub const ALL: [Self; 8] = [
        Self::Products,
        Self::Scan,
        Self::Convolution,
        Self::Attention,
        Self::Elementwise,
        Self::Losses,
        Self::Optimizer,
        Self::Embedding,
    ];

    /// Its name in tables: `products`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Products => "products",
            Self::Scan => "scan",
            Self::Convolution => "convolution",
            Self::Attention => "attention",
            Self::Elementwise => "elementwise",
            Self::Losses => "losses",
            Self::Optimizer => "optimizer",
            Self::Embedding => "embedding",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The result of [`measure`].
#[derive(Clone, Debug)]
pub struct Times {
    /// The time of the whole measurement, waits included.
    pub total: Duration,
    kinds: [Duration; Kind::ALL.len()],
    spans: Vec<Span>,
}

impl Times {
    /// Every op with its parts, every gap between two ops, and every [`region`]: by threads, then by their
    /// beginnings, those that hold others first. On one thread the ops and the gaps add up to no more than `total`.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The sum of the times of all ops of one kind.
    pub fn of(&self, kind: Kind) -> Duration {
        self.kinds[kind as usize]
    }

    /// The time that belongs to no kind: Burn's own ops, and work of the host.
    pub fn other(&self) -> Duration {
        let kinds: Duration = self.kinds.iter().sum();
        self.total.saturating_sub(kinds)
    }
}

/// Whether anything is measured now.
static ON: AtomicBool = AtomicBool::new(false);
static CLOCK: Mutex<Option<Clock>> = Mutex::new(None);

struct Clock {
    wait: Arc<dyn Fn() + Send + Sync>,
    kinds: [Duration; Kind::ALL.len()],
    recorder: Recorder,
}

thread_local! {
    /// Whether this thread is in an op.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` and returns its result and where its time went. `wait` must wait for all work that this thread has
/// queued. Only one measurement may run in the process at a time: a second one that begins meanwhile replaces the
/// clock of the first, and the times of both are incomplete.
///
/// # Errors
/// The first error that `wait` returned.
pub fn measure<T, E: Send + 'static>(
    wait: impl Fn() -> Result<(), E> + Send + Sync + 'static,
    work: impl FnOnce() -> T,
) -> Result<(T, Times), E> {
    wait()?;
    let failure = Arc::new(Mutex::new(None));
    let failed = failure.clone();
    let wait: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
        if let Err(error) = wait() {
            failed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(error);
        }
    });
    let begun = Instant::now();
    *lock() = Some(Clock {
        wait: wait.clone(),
        kinds: Default::default(),
        recorder: Recorder::new(begun),
    });
    ON.store(true, Ordering::Relaxed);
    // Also if the work panics.
    let off = OnDrop(|| ON.store(false, Ordering::Relaxed));
    let result = work();
    wait();
    let ended = Instant::now();
    drop(off);
    let clock = lock().take();
    let found = clock.map(|clock| (clock.kinds, clock.recorder.finish(ended)));
    let (kinds, spans) = found.unwrap_or_default();
    let failure = failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match failure {
        Some(failure) => Err(failure),
        None => {
            let total = ended - begun;
            Ok((
                result,
                Times {
                    total,
                    kinds,
                    spans,
                },
            ))
        }
    }
}

/// Calls a function when it is dropped.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Runs `work`. During a measurement, its time counts for `kind`, unless it runs inside another timed op, which
/// counts already. The place of the call gives its span its name.
#[inline]
#[track_caller]
pub fn timed<T>(kind: Kind, work: impl FnOnce() -> T) -> T {
    if ON.load(Ordering::Relaxed) {
        clocked(kind, Location::caller(), work)
    } else {
        work()
    }
}

#[cold]
fn clocked<T>(kind: Kind, place: &'static Location<'static>, work: impl FnOnce() -> T) -> T {
    let wait = lock().as_ref().map(|clock| clock.wait.clone());
    let Some(wait) = wait else {
        return work();
    };
    let now = Instant::now;
    if INSIDE.get() {
        let begun = now();
        let result = work();
        recorded(|clock| clock.recorder.part(place, [begun, now()]));
        return result;
    }
    INSIDE.set(true);
    // Also if the work panics.
    let outside = OnDrop(|| INSIDE.set(false));
    let called = now();
    wait();
    let begun = now();
    let result = work();
    let queued = now();
    wait();
    let done = now();
    drop(outside);
    recorded(|clock| {
        clock.kinds[kind as usize] += done - begun;
        clock
            .recorder
            .op(kind, place, [called, begun, queued, done]);
    });
    result
}

/// Runs `work`, a part of a step that contains ops. During a measurement, it gets a span with this name. It does not
/// wait for the device.
#[inline]
pub fn region<T>(name: &'static str, work: impl FnOnce() -> T) -> T {
    if ON.load(Ordering::Relaxed) && !INSIDE.get() {
        let begun = Instant::now();
        recorded(|clock| clock.recorder.gap(begun));
        let result = work();
        recorded(|clock| clock.recorder.region(name, [begun, Instant::now()]));
        result
    } else {
        work()
    }
}

/// Calls `write` with the clock, if a measurement is running.
fn recorded(write: impl FnOnce(&mut Clock)) {
    if let Some(clock) = lock().as_mut() {
        write(clock);
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Clock>> {
    CLOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread::sleep;

    use super::*;

    /// One after the other, since there is one clock.
    #[test]
    fn time_counts_once_and_for_its_kind() {
        let short = Duration::from_millis(2);
        let work = || {
            timed(Kind::Scan, || timed(Kind::Products, || sleep(short)));
            region("update", || {
                timed(Kind::Losses, || sleep(short));
                sleep(short);
            });
            7
        };
        let (seven, times) = measure(|| Ok::<_, ()>(()), work).unwrap();
        assert_eq!(seven, 7);
        assert_eq!(times.of(Kind::Products), Duration::ZERO);
        assert!(times.of(Kind::Scan) >= short && times.of(Kind::Losses) >= short);
        assert!(times.other() >= short);
        let kinds: Duration = Kind::ALL.map(|kind| times.of(kind)).iter().sum();
        assert_eq!(kinds + times.other(), times.total);

        // A span for each, with the op that is a part of another one, and none twice; other tests have other threads.
        let of_this_thread = times.spans().iter().filter(|span| span.thread == 0);
        let spans: Vec<&Span> = of_this_thread.collect();
        let of = |category: &'static str| {
            let spans = spans.iter().copied();
            spans.filter(move |span| span.category == category)
        };
        assert_eq!(of("scan").count() + of("losses").count(), 2);
        let scan = of("scan").next().unwrap();
        assert_eq!(scan.duration, times.of(Kind::Scan));
        assert_eq!(scan.name, "src/profile");
        let inner = of("part").find(|span| span.place.is_some()).unwrap();
        assert!(scan.begin <= inner.begin && inner.duration >= short);
        let region = of("region").next().unwrap();
        assert!(region.name == "update" && region.begin >= scan.begin + scan.duration);
        fn end(span: &Span) -> Duration {
            span.begin + span.duration
        }
        assert_eq!(spans.iter().map(|span| end(span)).max(), Some(times.total));
        let outermost = ["scan", "losses", "between"].into_iter().flat_map(of);
        let sum: Duration = outermost.map(|span| span.duration).sum();
        assert_eq!(sum, times.total);
        let mut around: Vec<&Span> = vec![];
        for span in spans.iter().copied() {
            around.retain(|outer| end(outer) > span.begin);
            assert!(around.iter().all(|outer| end(span) <= end(outer)));
            around.push(span);
        }
        // Nothing is measured any more.
        assert_eq!(work(), 7);
        assert!(lock().is_none());

        // The first failure is kept, though the wait after it finds none.
        let waits = AtomicUsize::new(0);
        let wait = move || match waits.fetch_add(1, Ordering::Relaxed) {
            2 => Err("lost"),
            _ => Ok(()),
        };
        assert_eq!(measure(wait, work).map(|_| ()), Err("lost"));
    }
}
