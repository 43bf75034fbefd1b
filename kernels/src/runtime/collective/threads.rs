//! Ranks that are threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::Place;
use super::on_host::{Exchange, sum};

/// A rank that is a thread of this process, for tests of collective code without other processes.
///
/// If a rank is dropped while others wait for it, the others panic with its number. This corresponds to a process that
/// ends and takes the other processes with it.
pub struct Threads {
    place: Place,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// An exchange: all ranks arrive with what they give, and leave with what all gave.
struct State {
    given: Vec<Option<Vec<f32>>>,
    all: Arc<Vec<Vec<f32>>>,
    /// Ranks that have not left the last exchange.
    leaving: usize,
    /// A rank that was dropped.
    gone: Option<usize>,
}

impl Threads {
    /// All ranks of a new world.
    ///
    /// # Panics
    /// If `world` is 0.
    pub fn new(world: usize) -> Vec<Self> {
        assert!(world > 0, "a world has at least one rank");
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                given: vec![None; world],
                all: Arc::default(),
                leaving: 0,
                gone: None,
            }),
            changed: Condvar::new(),
        });
        let rank = |rank| Self {
            place: Place { rank, world },
            shared: shared.clone(),
        };
        (0..world).map(rank).collect()
    }

    /// What all ranks gave, by rank.
    fn exchange(&self, given: Vec<f32>) -> Arc<Vec<Vec<f32>>> {
        let mut state = self.lock();
        while state.leaving > 0 {
            state = self.wait(state);
        }
        state.given[self.place.rank] = Some(given);
        if state.given.iter().all(Option::is_some) {
            let all: Vec<_> = state.given.iter_mut().filter_map(Option::take).collect();
            let length = all[0].len();
            assert!(
                all.iter().all(|given| given.len() == length),
                "the ranks exchange tensors of different lengths"
            );
            state.all = Arc::new(all);
            state.leaving = self.place.world;
            self.shared.changed.notify_all();
        }
        while state.leaving == 0 {
            state = self.wait(state);
        }
        let all = state.all.clone();
        state.leaving -= 1;
        self.shared.changed.notify_all();
        all
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if let Some(rank) = state.gone {
            drop(state);
            panic!("rank {rank} has ended");
        }
        let waited = self.shared.changed.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.lock().gone = Some(self.place.rank);
        self.shared.changed.notify_all();
    }
}

impl Exchange for Threads {
    fn place(&self) -> Place {
        self.place
    }

    fn name(&self) -> String {
        "threads".into()
    }

    fn reduce_scatter(&self, x: &[f32]) -> Vec<f32> {
        let length = x.len() / self.place.world;
        let all = self.exchange(x.to_vec());
        let start = self.place.rank * length;
        sum(length, all.iter().map(|x| &x[start..start + length]))
    }

    fn all_gather(&self, x: &[f32]) -> Vec<f32> {
        self.exchange(x.to_vec()).concat()
    }

    fn broadcast(&self, x: &mut [f32]) {
        let all = self.exchange(x.to_vec());
        x.copy_from_slice(&all[0]);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;

    use super::*;

    /// What `act` returns on each of `world` ranks.
    fn on_each<T: Send>(world: usize, act: impl Fn(Threads) -> T + Sync) -> Vec<T> {
        thread::scope(|scope| {
            let act = &act;
            let ranks = Threads::new(world).into_iter();
            let threads: Vec<_> = ranks.map(|rank| scope.spawn(move || act(rank))).collect();
            let results = threads.into_iter().map(|thread| thread.join().unwrap());
            results.collect()
        })
    }

    #[test]
    fn sums_and_copies_go_by_rank() {
        // Rank r has r + 1 times 1, 10, 100, ...
        let found = on_each(3, |rank| {
            let factor = rank.place().rank as f32 + 1.0;
            let x: Vec<f32> = (0..6).map(|i| factor * 10f32.powi(i)).collect();
            let part = rank.reduce_scatter(&x);
            let all = rank.all_gather(&x[..1]);
            let mut first = x;
            rank.broadcast(&mut first);
            (part, all, first[1])
        });
        for (rank, (part, all, first)) in found.into_iter().enumerate() {
            let i = 2 * rank as i32;
            assert_eq!(part, [6.0 * 10f32.powi(i), 6.0 * 10f32.powi(i + 1)]);
            assert_eq!(all, [1.0, 2.0, 3.0]);
            assert_eq!(first, 10.0);
        }
    }

    /// 1e8 + 1 is 1e8 in f32, so that another order has another sum.
    #[test]
    fn sums_are_made_in_the_order_of_the_ranks() {
        for _ in 0..20 {
            let found = on_each(3, |rank| {
                rank.reduce_scatter(&[[1e8, 1.0, -1e8][rank.place().rank]; 3])
            });
            assert_eq!(found, [[0.0], [0.0], [0.0]]);
        }
    }

    #[test]
    fn a_rank_that_is_gone_is_named() {
        let found = on_each(2, |rank| {
            if rank.place().rank == 1 {
                return None;
            }
            let waits = catch_unwind(AssertUnwindSafe(|| rank.all_gather(&[1.0])));
            let panic = waits.expect_err("nobody comes");
            panic.downcast_ref::<String>().cloned()
        });
        assert_eq!(found, [Some("rank 1 has ended".to_owned()), None]);
    }
}
