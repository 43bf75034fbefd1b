//! The engine's loop: which requests are let in, and what is computed next.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use datasets::Tokenizer;
use kernels::KernelBackend;
use model::CausalLm;
use tokio::sync::mpsc::UnboundedReceiver;

use super::gauges::Gauges;
use super::reader::{ReadOutcome, Reader};
use super::sequence::{Job, Sequence};
use super::tile::{ROWS, Tile};

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
}

/// The sequences being computed: those whose prompt is being read, in the order of their turns, and those
/// that make tokens.
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
    /// Works until all jobs are done and the queue is closed.
    pub(super) fn run(&self, mut jobs: UnboundedReceiver<Vec<Job>>) {
        let mut waiting = VecDeque::new();
        let mut sequences = Sequences {
            reading: VecDeque::new(),
            writing: Vec::new(),
        };
        loop {
            // Wait only if there is nothing else to do.
            if sequences.len() == 0 && waiting.is_empty() {
                match jobs.blocking_recv() {
                    Some(more) => waiting.extend(more),
                    None => return,
                }
            }
            while let Ok(more) = jobs.try_recv() {
                waiting.extend(more);
            }
            // A request whose answer was dropped frees its place in the queue.
            waiting.retain(|job| !job.answer.is_closed());
            while sequences.len() < self.slots
                && let Some(job) = waiting.pop_front()
            {
                self.let_in(job, &mut sequences);
            }
            self.gauges.sequences.store(sequences.len(), Relaxed);
            self.round(&mut sequences);
            self.gauges.sequences.store(sequences.len(), Relaxed);
            self.gauges.state_bytes.store(sequences.bytes(), Relaxed);
        }
    }

    fn let_in(&self, job: Job, sequences: &mut Sequences<'m, B>) {
        let (tokenizer, end_tokens) = (self.tokenizer, self.end_tokens);
        let sequence = Sequence::begin(job, tokenizer, end_tokens, self.max_positions, self.gauges);
        let Some(sequence) = sequence else { return };
        // The texts of one request are next to each other in the queue.
        let newest = sequences.reading.back_mut();
        match newest.filter(|reader| reader.suits(&sequence)) {
            Some(reader) => reader.join(sequence),
            None => {
                let state = self.model.new_state(1, &self.device);
                sequences.reading.push_back(Reader::new(sequence, state));
            }
        }
    }

    /// Reads one piece of one prompt, and takes one step of every tile.
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
            ReadOutcome::Reads(reader) => return sequences.reading.push_back(reader),
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
