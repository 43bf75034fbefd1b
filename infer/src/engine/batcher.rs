//! The engine's loop: which requests get a slot, and what is computed next.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use datasets::Tokenizer;
use kernels::KernelBackend;
use model::CausalLm;
use tokio::sync::mpsc::UnboundedReceiver;

use super::gauges::Gauges;
use super::reader::{ReadOutcome, Reader};
use super::request::Moment;
use super::sequence::{Job, Sequence};
use super::tile::{ROWS, Tile};
use super::turns::Turns;

/// The loop of the engine's thread, with the model that it runs.
pub(super) struct Batcher<'m, B: KernelBackend> {
    pub model: &'m CausalLm<B>,
    pub device: B::Device,
    pub tokenizer: &'m Tokenizer,
    /// The tokens that end a text.
    pub end_tokens: &'m [u32],
    pub max_positions: Option<usize>,
    /// The most sequences at a time.
    pub slots: usize,
    pub gauges: &'m Gauges,
    /// The moment at which every text ends, if there is one.
    pub last_moment: &'m OnceLock<Instant>,
}

/// The sequences being computed: those whose prompt is being read, and those that make tokens.
struct Sequences<'m, B: KernelBackend> {
    reading: Turns<Reader<'m, B>>,
    writing: Vec<Tile<'m, B>>,
}

impl<B: KernelBackend> Sequences<'_, B> {
    fn len(&self) -> usize {
        let reading = self.reading.iter().map(Reader::len);
        reading.chain(self.writing.iter().map(Tile::len)).sum()
    }

    fn bytes(&self) -> usize {
        let reading = self.reading.iter().map(Reader::bytes);
        let writing = self.writing.iter().map(Tile::bytes);
        reading.chain(writing).sum()
    }

    /// How many sequences each owner has.
    fn held(&self) -> HashMap<u64, usize> {
        let mut held = HashMap::new();
        let reading = self.reading.iter().flat_map(Reader::owners);
        for owner in reading.chain(self.writing.iter().flat_map(Tile::owners)) {
            *held.entry(owner).or_default() += 1;
        }
        held
    }
}

/// Whether an owner that has `held` slots may take another one of the `free` slots. It may always take its first slot.
/// It may take more if slots are not `shared`, or as long as it then has at most twice as many slots as are still free.
/// So the next owner finds a free slot, and need not wait until long texts end.
fn may_take(held: usize, free: usize, shared: bool) -> bool {
    free > 0 && (held == 0 || !shared || held < 2 * (free - 1))
}

/// How long slots are shared after an owner has come while another one was there: a third owner is then likely.
const SHARED: Duration = Duration::from_secs(1);

/// Whether slots are shared among several owners. A single owner may have all slots.
#[derive(Debug, Default)]
struct Sharing {
    /// When an owner last came while another one was there.
    met: Option<Instant>,
}

impl Sharing {
    /// Notes that an owner has come; `another_is_there` says whether another one had sequences or was waiting.
    fn comes(&mut self, another_is_there: bool, now: Instant) {
        if another_is_there {
            self.met = Some(now);
        }
    }

    /// Whether slots are shared now, while this number of owners wait.
    fn holds(&self, waiting: usize, now: Instant) -> bool {
        let lately = |met| now.saturating_duration_since(met) < SHARED;
        waiting > 1 || self.met.is_some_and(lately)
    }
}

impl<'m, B: KernelBackend> Batcher<'m, B> {
    /// Works until the queue is closed and all jobs are done.
    pub(super) fn run(&self, mut jobs: UnboundedReceiver<Vec<Job>>) {
        let mut waiting = Turns::default();
        let mut sequences = Sequences {
            reading: Turns::default(),
            writing: Vec::new(),
        };
        let mut sharing = Sharing::default();
        let queue = |waiting: &mut Turns<Job>, more: Vec<Job>| {
            for job in more {
                waiting.push(job.owner, job);
            }
        };
        loop {
            // Wait only if there is nothing else to do.
            if sequences.len() == 0 && waiting.is_empty() {
                match jobs.blocking_recv() {
                    Some(more) => queue(&mut waiting, more),
                    None => return,
                }
            }
            while let Ok(more) = jobs.try_recv() {
                let another_is_there = sequences.len() > 0 || !waiting.is_empty();
                sharing.comes(another_is_there, Instant::now());
                queue(&mut waiting, more);
            }
            let now = Moment::now(self.last_moment.get().copied());
            // A request whose answer was dropped, or whose time is up, leaves the queue.
            waiting.retain(|job| !job.ends(now));
            let is_shared = sharing.holds(waiting.owners(), Instant::now());
            self.let_in(&mut waiting, &mut sequences, is_shared);
            self.gauges.sequences.store(sequences.len(), Relaxed);
            self.round(&mut sequences, now);
            self.gauges.sequences.store(sequences.len(), Relaxed);
            self.gauges.state_bytes.store(sequences.bytes(), Relaxed);
        }
    }

    /// Gives the free slots to waiting requests, owner by owner.
    fn let_in(&self, waiting: &mut Turns<Job>, sequences: &mut Sequences<'m, B>, is_shared: bool) {
        if waiting.is_empty() {
            return;
        }
        let mut held = sequences.held();
        loop {
            let free = self.slots.saturating_sub(sequences.len());
            let held_by = |owner: u64| held.get(&owner).copied().unwrap_or(0);
            let Some(job) = waiting.take(|owner| may_take(held_by(owner), free, is_shared)) else {
                return;
            };
            *held.entry(job.owner).or_default() += 1;
            self.begin(job, sequences);
        }
    }

    fn begin(&self, job: Job, sequences: &mut Sequences<'m, B>) {
        let (tokenizer, end_tokens) = (self.tokenizer, self.end_tokens);
        let sequence = Sequence::begin(job, tokenizer, end_tokens, self.max_positions, self.gauges);
        let Some(sequence) = sequence else { return };
        let owner = sequence.owner;
        let mut readers = sequences.reading.of(owner);
        match readers.find(|reader| reader.suits(&sequence)) {
            Some(reader) => reader.join(sequence),
            None => {
                drop(readers);
                let state = self.model.new_state(1, &self.device);
                let reader = Reader::new(sequence, state);
                sequences.reading.push(owner, reader);
            }
        }
    }

    /// Reads one piece of one prompt, and takes one step of every tile.
    fn round(&self, sequences: &mut Sequences<'m, B>, now: Moment) {
        sequences.reading.retain(|reader| reader.clear(now));
        for tile in &mut sequences.writing {
            tile.clear(now);
        }
        if let Some(reader) = sequences.reading.take(|_| true) {
            self.read(reader, sequences);
        }
        for tile in &mut sequences.writing {
            tile.step(self.model, &self.device);
        }
    }

    fn read(&self, reader: Reader<'m, B>, sequences: &mut Sequences<'m, B>) {
        let owner = reader.owner();
        let (begun, state) = match reader.read(self.model, &self.device) {
            ReadOutcome::Reads(reader) => return sequences.reading.push(owner, reader),
            ReadOutcome::Writes(begun, state) => (begun, state),
        };
        let tiles = &mut sequences.writing;
        for sequence in begun {
            let room = tiles.iter().position(|tile| tile.len() < ROWS);
            let tile = room.unwrap_or(tiles.len());
            if room.is_none() {
                let vocab_size = self.tokenizer.vocab_size();
                tiles.push(Tile::new(self.model, vocab_size, &self.device));
            }
            tiles[tile].join(sequence, state.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Sharing, may_take};

    /// In this order, the number of slots that each owner gets, if each wants all slots.
    fn shares(slots: usize, owners: usize, is_shared: bool) -> Vec<usize> {
        let mut free = slots;
        let share = |_| {
            let mut held = 0;
            while may_take(held, free, is_shared) {
                held += 1;
                free -= 1;
            }
            held
        };
        (0..owners).map(share).collect()
    }

    #[test]
    fn a_slot_is_left_for_the_next_where_slots_are_shared() {
        assert_eq!(shares(1, 1, true), [1]);
        assert_eq!(shares(2, 1, true), [1]);
        assert_eq!(shares(8, 1, true), [5]);
        assert_eq!(shares(32, 4, true), [21, 7, 2, 1]);
        // The first of each has a slot as long as there are any.
        assert_eq!(shares(4, 4, true), [2, 1, 1, 0]);
        assert_eq!(shares(32, 2, false), [32, 0]);
    }

    #[test]
    fn slots_are_shared_while_owners_meet() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut sharing = Sharing::default();
        // One request after the other, each when the last is done.
        for now in [0, 100, 200] {
            sharing.comes(false, at(now));
            assert!(!sharing.holds(1, at(now)));
        }
        // Two wait, whenever they came.
        assert!(sharing.holds(2, at(250)));
        sharing.comes(true, at(300));
        assert!(sharing.holds(1, at(300)) && sharing.holds(0, at(1299)));
        sharing.comes(false, at(400));
        assert!(!sharing.holds(1, at(1300)));
    }
}
