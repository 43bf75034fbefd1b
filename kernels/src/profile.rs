//! Where the time of queued work goes, by kind of work.
//!
//! A device that queues does not report when an op is done. While [`measure`] works, each op waits for
//! the device before it begins and after it has queued its own, and the time between counts for its kind.
//! All together then take longer than they do otherwise, since nothing is prepared while something else is
//! computed; the shares are what to look at. At all other times an op reads one flag.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Products => "products",
            Self::Scan => "scan",
            Self::Convolution => "convolution",
            Self::Attention => "attention",
            Self::Elementwise => "elementwise",
            Self::Losses => "losses",
            Self::Optimizer => "optimizer",
            Self::Embedding => "embedding",
        })
    }
}

/// What [`measure`] has found.
#[derive(Clone, Debug)]
pub struct Times {
    /// From the beginning to the end, with all the waiting.
    pub total: Duration,
    kinds: [Duration; Kind::ALL.len()],
}

impl Times {
    /// The time of one kind.
    pub fn of(&self, kind: Kind) -> Duration {
        self.kinds[kind as usize]
    }

    /// What no kind has taken: ops that are Burn's own, and the host.
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
}

/// Does `work` and returns where its time went; `wait` waits for all that this thread has queued. One
/// measurement is made at a time: another that begins meanwhile takes what is left of the first.
///
/// # Errors
/// The first of `wait`.
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
    *lock() = Some(Clock {
        wait: wait.clone(),
        kinds: Default::default(),
    });
    ON.store(true, Ordering::Relaxed);
    // Also if the work panics.
    let off = OnDrop(|| ON.store(false, Ordering::Relaxed));
    let begun = Instant::now();
    let result = work();
    wait();
    let total = begun.elapsed();
    drop(off);
    let kinds = lock().take().map(|clock| clock.kinds).unwrap_or_default();
    let failure = failure
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    match failure {
        Some(failure) => Err(failure),
        None => Ok((result, Times { total, kinds })),
    }
}

/// Calls a function when it is dropped.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Does `work`; while something is measured, its time counts for `kind`, unless it is a part of other work
/// that counts already.
#[inline]
pub fn timed<T>(kind: Kind, work: impl FnOnce() -> T) -> T {
    if ON.load(Ordering::Relaxed) {
        clocked(kind, work)
    } else {
        work()
    }
}

#[cold]
fn clocked<T>(kind: Kind, work: impl FnOnce() -> T) -> T {
    thread_local! {
        static INSIDE: Cell<bool> = const { Cell::new(false) };
    }
    let wait = lock().as_ref().map(|clock| clock.wait.clone());
    let Some(wait) = wait.filter(|_| !INSIDE.get()) else {
        return work();
    };
    INSIDE.set(true);
    // Also if the work panics.
    let outside = OnDrop(|| INSIDE.set(false));
    wait();
    let begun = Instant::now();
    let result = work();
    wait();
    let spent = begun.elapsed();
    drop(outside);
    if let Some(clock) = lock().as_mut() {
        clock.kinds[kind as usize] += spent;
    }
    result
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
            timed(Kind::Losses, || sleep(short));
            sleep(short);
            7
        };
        let (seven, times) = measure(|| Ok::<_, ()>(()), work).unwrap();
        assert_eq!(seven, 7);
        assert_eq!(times.of(Kind::Products), Duration::ZERO);
        assert!(times.of(Kind::Scan) >= short && times.of(Kind::Losses) >= short);
        assert!(times.other() >= short);
        let kinds: Duration = Kind::ALL.map(|kind| times.of(kind)).iter().sum();
        assert_eq!(kinds + times.other(), times.total);
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
