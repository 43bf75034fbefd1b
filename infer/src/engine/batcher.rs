//! The engine's loop: who comes in, and what is computed next.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use datasets::Tokenizer;
use kernels::KernelBackend;
use model::CausalLm;
use tokio::sync::mpsc::UnboundedReceiver;

use super::gauges::Gauges;
use super::reader::{Read, Reader};
use super::sequence::{Job, Sequence};
use super::tile::{ROWS, Tile};

/// All sequences at work, and the model that serves them.
pub(super) struct Batcher<'m, B: KernelBackend> {
    pub model: &'m CausalLm<B>,
    pub device: B::Device,
    pub tokenizer: &'m Tokenizer,
    pub max_positions: Option<usize>,
    /// The most sequences at work.
    pub slots: usize,
    pub gauges: &'m Gauges,
}

/// The sequences themselves: those that read their prompts, in the order of their turns, and those
/// that write.
struct Sequences<'m, B: KernelBackend> {
    reading: VecDeque<Reader<'m, B>>,
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
}

impl<'m, B: KernelBackend> Batcher<'m, B> {
    /// Works until all jobs are done and no more can come.
    pub(super) fn run(&self, mut jobs: UnboundedReceiver<Vec<Job>>) {
        let mut waiting = VecDeque::new();
        let mut sequences = Sequences {
            reading: VecDeque::new(),
            writing: Vec::new(),
        };
        loop {
            // With nothing else to do, this waits.
            if sequences.len() == 0 && waiting.is_empty() {
                match jobs.blocking_recv() {
                    Some(more) => waiting.extend(more),
                    None => return,
                }
            }
            while let Ok(more) = jobs.try_recv() {
                waiting.extend(more);
            }
            // Whoever has left gives the place in the queue away.
            waiting.retain(|job| !job.answer.is_closed());
            let mut at_work = sequences.len();
            while at_work < self.slots
                && let Some(job) = waiting.pop_front()
            {
                self.let_in(job, &mut sequences);
                at_work = sequences.len();
            }
            self.gauges.sequences.store(at_work, Relaxed);
            self.round(&mut sequences);
            self.gauges.sequences.store(sequences.len(), Relaxed);
            self.gauges.state_bytes.store(sequences.bytes(), Relaxed);
        }
    }

    fn let_in(&self, job: Job, sequences: &mut Sequences<'m, B>) {
        let sequence = Sequence::begin(job, self.tokenizer, self.max_positions, self.gauges);
        let Some(sequence) = sequence else { return };
        // The texts of a request come one behind the other.
        let newest = sequences.reading.back_mut();
        match newest.filter(|it| it.suits(&sequence)) {
            Some(reader) => reader.join(sequence),
            None => {
                let state = self.model.new_state(1, &self.device);
                sequences.reading.push_back(Reader::new(sequence, state));
            }
        }
    }

    /// One piece of one prompt, and one step of every sequence that writes.
    fn round(&self, sequences: &mut Sequences<'m, B>) {
        let now = Instant::now();
        let reading = std::mem::take(&mut sequences.reading).into_iter();
        sequences.reading = reading.filter_map(|reader| reader.clear(now)).collect();
        for tile in &mut sequences.writing {
            tile.clear(now);
        }
        if let Some(reader) = sequences.reading.pop_front() {
            self.read(reader, sequences);
        }
        for tile in &mut sequences.writing {
            tile.step(self.model, &self.device);
        }
    }

    fn read(&self, reader: Reader<'m, B>, sequences: &mut Sequences<'m, B>) {
        let (begun, state) = match reader.read(self.model, &self.device) {
            Read::Reads(reader) => return sequences.reading.push_back(reader),
            Read::Writes(begun, state) => (begun, state),
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
