//! Steps that the device repeats.

use burn::tensor::{DType, Int, Tensor, TensorData};
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
        for (i, &pair) in rest[1..].iter().enumerate() {
            // One step among them is computed, on the same memory.
            let replayed = recording.as_ref().filter(|_| i != 2);
            let replayed = replayed.and_then(|recording| recording.replay(ids(pair)));
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
        assert!(recording.replay(ids([1, 1])).is_none());
        assert_eq!(held.into_data(), before);
        assert!(recording.replay(ids([1, 1])).is_some());
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

/// As many other launches as a device keeps back before it begins, too, of which a count shows nothing.
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
        let other = || recording.replay(ids([1, 1])).is_none();
        assert!(std::thread::scope(|scope| scope.spawn(other).join()).expect("a thread"));
        assert!(recording.replay(ids([1, 1])).is_some());
    });
}

/// Its launches are queued when all that it belongs to is dropped, and its memory is asked for.
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
        for pair in &TEXT[2..] {
            drop(last.take());
            last = recording.replay(ids(*pair));
        }
        drop((recording, network, state));
        poison();
        assert_eq!(last.map(read).as_ref(), computed.last());
    });
}
