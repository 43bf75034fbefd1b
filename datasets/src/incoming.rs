//! Text that is fetched and tokenised while it is read.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::error::{DataError, Result};
use crate::permutation::Permutation;
use crate::prepare::{Plan, PrepareOptions};
use crate::shards::TokenShards;
use crate::tokenizer::Tokenizer;
use crate::windows::TokenWindows;

/// The number of groups of files that are prepared ahead of the one that is read. So a corpus is fetched only as far as
/// it is used.
const AHEAD: usize = 2;

/// A corpus that a thread tokenises while it is read, one group of files after the other. The groups and their folders
/// are the same as those of [`TokenShards::prepare`], so that each of the two uses the results of the other.
///
/// The thread is two groups ahead of the last group that was asked for. It ends soon after this value is dropped; a
/// later call continues the unfinished group.
#[derive(Debug)]
pub struct IncomingShards {
    shared: Arc<Shared>,
    key: String,
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Progress {
    groups: Vec<Arc<TokenShards>>,
    /// The number of groups that were asked for.
    asked: usize,
    /// The result of the thread, after it has ended. After a panic there is no error value.
    end: Option<std::result::Result<(), Option<Arc<DataError>>>>,
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        let progress = self.progress.lock();
        progress.unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, progress: MutexGuard<'a, Progress>) -> MutexGuard<'a, Progress> {
        let progress = self.changed.wait(progress);
        progress.unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Makes the groups of the corpus, each when it is its time.
    fn make(&self, options: &PrepareOptions) -> Result<()> {
        let mut plan = Plan::of(options)?;
        for number in 0..plan.groups() {
            let mut progress = self.progress();
            while number >= progress.asked + AHEAD && !self.is_stopped() {
                progress = self.wait(progress);
            }
            drop(progress);
            if self.is_stopped() {
                return Err(DataError::Stopped);
            }
            let shards = TokenShards::of(vec![plan.group(number)?]);
            self.progress().groups.push(Arc::new(shards));
            self.changed.notify_all();
        }
        Ok(())
    }
}

impl IncomingShards {
    /// Starts the work that `options` describes. `options.stopped` is not called. `tokenizer` must be the tokenizer of
    /// `options`.
    ///
    /// # Errors
    ///
    /// Sources that do not exist or are in no known format; a tokenizer that has no end-of-text. What fails later is
    /// an error of the read that needs it.
    pub fn start(options: &PrepareOptions, tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let key = Plan::of(options)?.key();
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let (name, sources) = (options.name.to_owned(), options.sources.clone());
        let (split, cache) = (options.split, options.cache.clone());
        let (skip_bad_lines, drop_duplicates) = (options.skip_bad_lines, options.drop_duplicates);
        thread::spawn(move || {
            let options = PrepareOptions {
                name: &name,
                sources,
                split,
                tokenizer: &tokenizer,
                cache,
                skip_bad_lines,
                drop_duplicates,
                stopped: &|| theirs.is_stopped(),
            };
            // After a panic, whose message was already printed, readers must not wait for ever.
            let made = catch_unwind(AssertUnwindSafe(|| theirs.make(&options)));
            theirs.progress().end = Some(match made {
                Ok(made) => made.map_err(|error| Some(Arc::new(error))),
                Err(_) => Err(None),
            });
            theirs.changed.notify_all();
        });
        Ok(Self { shared, key })
    }

    /// The SHA-256 of everything that the ids depend on, in hexadecimal digits. It identifies the corpus before all of
    /// it is fetched.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Group `number`, for which this waits; `None` after the last.
    fn group(&self, number: usize) -> Result<Option<Arc<TokenShards>>> {
        let mut progress = self.shared.progress();
        if progress.asked <= number {
            progress.asked = number + 1;
            self.shared.changed.notify_all();
        }
        loop {
            if let Some(shards) = progress.groups.get(number) {
                return Ok(Some(Arc::clone(shards)));
            }
            match &progress.end {
                None => progress = self.shared.wait(progress),
                Some(Ok(())) => return Ok(None),
                Some(Err(None)) => return Err(DataError::Stopped),
                // Every reader gets this error, because the first one that meets it may only have read ahead.
                Some(Err(Some(error))) => return Err(DataError::Incoming(Arc::clone(error))),
            }
        }
    }
}

impl Drop for IncomingShards {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Takes the lock once before the notification. Otherwise the thread could already have read the flag but not
        // wait yet, and would miss the notification.
        drop(self.shared.progress());
        self.shared.changed.notify_all();
    }
}

/// The windows of a corpus that is tokenised while it is read.
///
/// Their order can be computed without the whole corpus: the groups of files follow one another, and the windows within
/// each group are shuffled by the seed and the number of the epoch. A window contains tokens of only one group; an
/// incomplete window at the end of a group is dropped.
#[derive(Debug, Clone)]
pub struct IncomingWindows {
    shards: Arc<IncomingShards>,
    context: usize,
}

impl IncomingWindows {
    /// Cuts `shards` into windows of `context` inputs.
    ///
    /// # Errors
    ///
    /// [`DataError::Zero`] if `context` is 0.
    pub fn new(shards: Arc<IncomingShards>, context: usize) -> Result<Self> {
        if context == 0 {
            return Err(DataError::Zero { what: "context" });
        }
        Ok(Self { shards, context })
    }

    /// The number of inputs in a window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The windows of the first group that has any, for which this waits.
    ///
    /// # Errors
    ///
    /// Those of [`TokenShards::prepare`], and [`DataError::TooShort`] if there is no window.
    pub fn first(&self) -> Result<TokenWindows> {
        let (windows, _) = self.nth(0, 0)?;
        Ok(windows)
    }

    /// Reads the window at place `number` of the endless sequence.
    pub(crate) fn read_nth(&self, number: u128, seed: u64, ids: &mut Vec<u32>) -> Result<()> {
        let (windows, index) = self.nth(number, seed)?;
        windows.read(index, ids)
    }

    /// The window at place `number` of the endless sequence: the windows of its group, and its index among them.
    fn nth(&self, number: u128, seed: u64) -> Result<(TokenWindows, u64)> {
        let (mut left, mut epoch, mut group) = (number, 0, 0);
        // The sums over all groups before.
        let (mut windows_before, mut tokens) = (0, 0);
        loop {
            let Some(shards) = self.shards.group(group)? else {
                if windows_before == 0 {
                    let context = self.context;
                    return Err(DataError::TooShort { tokens, context });
                }
                // What remains is a number of whole epochs, and a place in the epoch after them. All groups of the
                // corpus are available by now.
                epoch = 1 + (left / windows_before) as u64;
                left %= windows_before;
                group = 0;
                continue;
            };
            group += 1;
            tokens += shards.tokens();
            // A group may be too short for a window.
            let Ok(windows) = TokenWindows::new(shards, self.context) else {
                continue;
            };
            let count = windows.count();
            if left < u128::from(count) {
                let index = Permutation::new(count, seed, epoch).at(left as u64);
                return Ok((windows, index));
            }
            left -= u128::from(count);
            windows_before += u128::from(count);
        }
    }
}

#[cfg(test)]
mod tests;
