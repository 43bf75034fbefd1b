//! Computes passes over different sequences in parallel on a CPU.
//!
//! If all cores share every op of one pass, they wait at the end of each op for the slowest core, some hundred times a
//! pass. If each core computes its own pass, they wait for each other once. So a CPU computes as many passes at the
//! same time as it has cores; a GPU, which one pass fills, computes them one after the other. Results are handed over
//! in the order of the passes in both cases, so that sums over them do not depend on which pass ends first.
//!
//! Each pass has its own thread pool. In a common pool, a thread that waits for its part of an op would begin another
//! pass meanwhile, inside the first one, whose graph it holds locked.

use std::panic::resume_unwind;
use std::thread;

use kernels::KernelBackend;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// A thread pool for each pass that runs at the same time. Empty on a GPU, where passes run one after the other on the
/// caller's thread.
pub struct ParallelPasses(Vec<ThreadPool>);

impl ParallelPasses {
    /// The best choice for backend `B` and steps of so many passes.
    pub fn new<B: KernelBackend>(passes: usize) -> Self {
        let cores = B::lanes();
        let pools = cores.min(passes);
        if pools < 2 {
            return Self(vec![]);
        }
        let pool = |number| {
            let threads = cores / pools + usize::from(number < cores % pools);
            // One pool fewer if the system refuses threads; without any pool, passes run one after the other.
            ThreadPoolBuilder::new().num_threads(threads).build().ok()
        };
        Self((0..pools).filter_map(pool).collect())
    }

    /// Whether passes run one after the other.
    pub fn is_in_a_row(&self) -> bool {
        self.0.is_empty()
    }

    /// Calls `work` on each item and gives the results to `then`, in the order of the items. An item is taken only when
    /// a pool is free for it.
    pub fn run<I: Send, T: Send>(
        &self,
        items: impl IntoIterator<Item = I>,
        work: impl Fn(I) -> T + Sync,
        mut then: impl FnMut(T),
    ) {
        let mut items = items.into_iter();
        if self.0.is_empty() {
            items.for_each(|item| then(work(item)));
            return;
        }
        loop {
            let round: Vec<I> = items.by_ref().take(self.0.len()).collect();
            if round.is_empty() {
                return;
            }
            let done: Vec<T> = thread::scope(|scope| {
                let work = &work;
                let threads: Vec<_> = (self.0.iter().zip(round))
                    .map(|(pool, item)| scope.spawn(move || pool.install(|| work(item))))
                    .collect();
                let results = threads.into_iter().map(|thread| thread.join());
                results
                    .map(|result| result.unwrap_or_else(|panic| resume_unwind(panic)))
                    .collect()
            });
            done.into_iter().for_each(&mut then);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_come_in_order() {
        let pool = |threads| {
            ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
        };
        for pools in [vec![], vec![pool(1)], vec![pool(2), pool(1), pool(1)]] {
            let mut squares = vec![];
            ParallelPasses(pools).run(0..10, |i| i * i, |square| squares.push(square));
            assert_eq!(squares, (0..10).map(|i| i * i).collect::<Vec<_>>());
        }
    }

    /// Only the passes under way use memory.
    #[test]
    fn items_wait_for_their_pool() {
        let pool = || ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let taken = AtomicUsize::new(0);
        let items = (0..7).inspect(|_| {
            taken.fetch_add(1, Ordering::SeqCst);
        });
        let mut done = 0;
        ParallelPasses(vec![pool(), pool()]).run(
            items,
            |i| i,
            |_| {
                done += 1;
                assert!(taken.load(Ordering::SeqCst) <= done + 2);
            },
        );
        assert_eq!(done, 7);
    }
}
