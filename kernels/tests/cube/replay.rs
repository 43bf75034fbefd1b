//! Steps that the device repeats.

use burn::tensor::{DType, Int, Tensor, TensorData};
use kernels::Window;
use kernels::decode::attention_step::{Cache, NewToken, attention_step_within};
use kernels::decode::projections::rows;
use kernels::decode::replay::record;
use kernels::scan::causal_conv::Activation;
use kernels::{StepParameters, StepState, recurrent_step};

use crate::support::*;

type Ids = Tensor<Cube, 1, Int>;

fn ids(ids: [i32; 2]) -> Ids {
    Tensor::from_ints(ids, &Default::default())
}

fn read(logits: Tensor<Cube, 2>) -> TensorData {
    logits.into_data()
}

/// A network of one recurrent step, which reads its tokens from a table.
struct Network {
    table: Tensor<Cube, 2>,
    parameters: StepParameters<Cube>,
}

impl Network {
    const SIZES: [usize; 4] = [2, 2, 8, 8];

    fn random() -> Self {
        let mut random = Random::new(3);
        let [_, h, p, n] = Self::SIZES;
        let c = h * p + 2 * h * n;
        let mut values = |shape| random.values(shape, 1.0, DType::F32).cube();
        let width = c + h * p + h;
        // Without padding, or each step would copy it.
        let table = values([5, width]).reshape([5 * width]).reshape([5, width]);
        let (taps, d) = (
            values([c, 4]).reshape([c, 1, 4]),
            values([1, h]).reshape([h]),
        );
        Self {
            table,
            parameters: StepParameters {
                taps,
                bias: None,
                activation: Activation::Identity,
                d,
                z_bias: None,
                a_log_bias: None,
                bc_norms: None,
                turn: None,
            },
        }
    }

    fn empty(&self) -> Option<StepState<Cube>> {
        let [b, h, p, n] = Self::SIZES;
        let device = Default::default();
        Some(StepState {
            conv: Tensor::zeros([b, h * p + 2 * h * n, 4], &device),
            ssm: Tensor::zeros([b, h, p, n], &device),
        })
    }

    fn step(&self, ids: Ids, state: &mut Option<StepState<Cube>>) -> Tensor<Cube, 2> {
        let before = state.take().expect("a state");
        let projected = rows(self.table.clone(), ids);
        let (output, after) = recurrent_step(projected, self.parameters.clone(), before);
        *state = Some(after);
        output
    }
}

/// Two tokens a step.
const TEXT: [[i32; 2]; 8] = [
    [0, 1],
    [4, 4],
    [2, 3],
    [1, 0],
    [3, 3],
    [0, 2],
    [4, 1],
    [2, 2],
];

#[test]
fn a_step_that_is_repeated_gives_what_it_gives_computed() {
    with_device(|| {
        let network = Network::random();
        let mut state = network.empty();
        let computed = TEXT.map(|pair| read(network.step(ids(pair), &mut state)));
        let after = state.expect("a state").ssm.into_data();

        let mut state = network.empty();
        let mut repeated = vec![];
        let (first, rest) = TEXT.split_at(2);
        repeated.extend(
            first
                .iter()
                .map(|&pair| read(network.step(ids(pair), &mut state))),
        );
        let (logits, recording) = record(ids(rest[0]), &mut |ids| network.step(ids, &mut state));
        repeated.push(read(logits));
        assert!(recording.is_some());
        for (i, &pair) in (0..).zip(&rest[1..]) {
            // One step among them is computed, on the same memory.
            let replayed = recording.as_ref().filter(|_| i != 2);
            let replayed = replayed.and_then(|recording| recording.replay(ids(pair), i + 1));
            assert_eq!(replayed.is_some(), i != 2);
            let logits = replayed.unwrap_or_else(|| network.step(ids(pair), &mut state));
            repeated.push(read(logits));
        }
        assert_eq!(repeated, computed);
        assert_eq!(state.expect("a state").ssm.into_data(), after);
    });
}

#[test]
fn a_step_is_not_repeated_over_logits_that_are_held() {
    with_device(|| {
        let network = Network::random();
        let mut state = network.empty();
        drop(network.step(ids([0, 1]), &mut state));
        let (held, recording) = record(ids([2, 3]), &mut |ids| network.step(ids, &mut state));
        let Some(recording) = recording else { return };
        let before = held.to_data();
        assert!(recording.replay(ids([1, 1]), 1).is_none());
        assert_eq!(held.into_data(), before);
        assert!(recording.replay(ids([1, 1]), 1).is_some());
    });
}

#[test]
fn a_state_that_is_held_elsewhere_is_not_recorded() {
    with_device(|| {
        let network = Network::random();
        let mut state = network.empty();
        drop(network.step(ids([0, 1]), &mut state));
        let other = state.clone().expect("a state");
        let before = other.ssm.to_data();
        let (_, recording) = record(ids([2, 3]), &mut |ids| network.step(ids, &mut state));
        assert!(recording.is_none());
        assert_eq!(other.ssm.into_data(), before);
    });
}

/// Also for as many foreign launches as the device holds back before it submits them, which a count alone would not
/// show.
#[test]
fn a_step_with_launches_of_others_is_not_recorded() {
    with_device(|| {
        let network = Network::random();
        let mut state = network.empty();
        drop(network.step(ids([0, 1]), &mut state));
        for others in [1, 32, 64] {
            let mut other: Tensor<Cube, 1> = Tensor::zeros([4], &Default::default());
            let (_, recording) = record(ids([2, 3]), &mut |ids| {
                for _ in 0..others {
                    other = other.clone() + 1.0;
                }
                network.step(ids, &mut state)
            });
            assert!(recording.is_none(), "{others}");
        }
    });
}

#[test]
fn a_step_is_repeated_by_its_thread_alone() {
    with_device(|| {
        let network = Network::random();
        let mut state = network.empty();
        drop(network.step(ids([0, 1]), &mut state));
        let (logits, recording) = record(ids([2, 3]), &mut |ids| network.step(ids, &mut state));
        drop(logits);
        let Some(recording) = recording else { return };
        let other = || recording.replay(ids([1, 1]), 1).is_none();
        assert!(std::thread::scope(|scope| scope.spawn(other).join()).expect("a thread"));
        assert!(recording.replay(ids([1, 1]), 1).is_some());
    });
}

/// The recording and everything that it belongs to are dropped, and their memory is requested again, while the launches
/// of a step are still queued.
#[test]
fn a_recording_may_be_dropped_after_a_step() {
    with_device(|| {
        let network = Network::random();
        let mut state = network.empty();
        let computed = TEXT.map(|pair| read(network.step(ids(pair), &mut state)));

        let mut state = network.empty();
        drop(network.step(ids(TEXT[0]), &mut state));
        let (logits, recording) = record(ids(TEXT[1]), &mut |ids| network.step(ids, &mut state));
        drop(logits);
        let Some(recording) = recording else { return };
        let mut last = None;
        for (since, pair) in (1..).zip(&TEXT[2..]) {
            drop(last.take());
            last = recording.replay(ids(*pair), since);
        }
        drop((recording, network, state));
        poison();
        assert_eq!(last.map(read).as_ref(), computed.last());
    });
}

/// A network of attention alone, which reads queries, keys and values from tables.
struct Attending {
    tables: [Tensor<Cube, 2>; 3],
    angles: Tensor<Cube, 2>,
    window: Option<Window>,
}

impl Attending {
    const SIZES: [usize; 4] = [2, 4, 2, 16];
    /// Tokens that are there at first.
    const BEFORE: usize = 30;

    fn new(window: Option<Window>) -> Self {
        let mut random = Random::new(4);
        let [_, h, g, p] = Self::SIZES;
        let mut values = |n, width| {
            let values = random.values([n, width], 1.0, DType::F32).cube();
            values.reshape([n * width]).reshape([n, width])
        };
        Self {
            tables: [values(5, h * p), values(5, g * p), values(5, g * p)],
            angles: values(64, 4),
            window,
        }
    }

    fn cache(&self) -> Cache<Cube> {
        let [b, _, g, p] = Self::SIZES;
        let mut random = Random::new(5);
        let mut values = || {
            let shape = [b, Self::BEFORE, g, p];
            random.values(shape, 1.0, DType::F32).cube()
        };
        let all = Cache::of(values(), values());
        self.window.map_or(all.clone(), |window| all.kept(window))
    }

    /// The `n`th step.
    fn step(&self, n: usize, ids: Ids, cache: &mut Option<Cache<Cube>>) -> Tensor<Cube, 2> {
        let [q, k, v] = self
            .tables
            .each_ref()
            .map(|table| rows(table.clone(), ids.clone()));
        let token = NewToken {
            q,
            k,
            v,
            cos: self.angles.clone(),
            sin: self.angles.clone(),
            angle: n,
        };
        let [_, h, ..] = Self::SIZES;
        let (y, after) = attention_step_within(token, cache.take(), h, self.window);
        *cache = Some(after);
        y
    }
}

#[test]
fn attention_that_is_repeated_sees_the_tokens_of_all_steps() {
    with_device(|| {
        let window = |window, sinks| Some(Window { window, sinks });
        // All tokens, a window that is full, with and without sinks, and one that is not.
        for window in [None, window(9, 2), window(9, 0), window(60, 1)] {
            let network = Attending::new(window);
            let pairs = || (0..).zip(TEXT.into_iter().chain(TEXT));
            let mut cache = Some(network.cache());
            let computed: Vec<_> = pairs()
                .map(|(n, pair)| read(network.step(n, ids(pair), &mut cache)))
                .collect();
            let after = cache.expect("a cache").filled();

            let mut cache = Some(network.cache());
            let mut found = vec![];
            let mut recording = None;
            for (n, pair) in pairs() {
                if n < 3 {
                    found.push(read(network.step(n, ids(pair), &mut cache)));
                    continue;
                }
                if n == 3 {
                    let before = cache.as_ref().map(|cache| (cache.len, cache.gap));
                    let alike = cache.as_ref().map(|cache| cache.steps_alike(window));
                    assert!(alike > Some(16), "{alike:?} steps alike within {window:?}");
                    let (y, recorded) = record(ids(pair), &mut |ids| {
                        let (len, gap) = before.expect("a cache");
                        let again = cache.take();
                        cache = again.map(|cache| Cache { len, gap, ..cache });
                        network.step(n, ids, &mut cache)
                    });
                    found.push(read(y));
                    assert!(recorded.is_some(), "{window:?}");
                    recording = recorded;
                    continue;
                }
                // One step among them is computed.
                let recorded = recording.as_ref().filter(|_| n != 7);
                let y = recorded.and_then(|recording| recording.replay(ids(pair), n as u32 - 3));
                assert_eq!(y.is_some(), n != 7);
                match y {
                    Some(y) => {
                        cache = cache.map(|cache| cache.advanced(window));
                        found.push(read(y));
                    }
                    None => found.push(read(network.step(n, ids(pair), &mut cache))),
                }
            }
            assert_eq!(found, computed, "{window:?}");
            let (keys, values) = cache.expect("a cache").filled();
            assert_eq!(keys.into_data(), after.0.into_data());
            assert_eq!(values.into_data(), after.1.into_data());
        }
    });
}
