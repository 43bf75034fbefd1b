//! Recall with changed heads, against networks that were changed by hand.

use ::tests::networks::Exact;
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use kernels::Window;
use model::{CausalLm, HeadSight, LlamaConfig, LlamaFamily, Mixer};

use super::changes::{Question, Sights, Unit};
use super::questions::{Answer, Reading};
use super::ranking::{By, Ranking, UnitKind, best, units};
use super::recall::Recall;

const WINDOW: Window = Window {
    window: 3,
    sinks: 1,
};

fn teacher() -> CausalLm<Exact> {
    let mut config = LlamaConfig {
        vocab_size: 40,
        hidden_size: 24,
        intermediate_size: 32,
        num_hidden_layers: 3,
        ..LlamaConfig::default_of(LlamaFamily::Llama)
    };
    config.attention.n_heads = 4;
    config.attention.n_kv_heads = 2;
    config.attention.head_dim = Some(6);
    let mut model = CausalLm::init(&config, 3, &Default::default());
    // Far from the initial weights, with which attention adds next to nothing.
    for block in &mut model.backbone.layers {
        let Mixer::Attention(attention) = &mut block.mixer else {
            panic!("attention");
        };
        for linear in [
            &mut attention.q_proj,
            &mut attention.k_proj,
            &mut attention.v_proj,
            &mut attention.dense,
        ] {
            linear.weight = Param::from_tensor(linear.weight.val() * 12.0);
        }
    }
    model
}

/// Two rows of tokens, of unlike lengths, and three answers of two sets.
fn readings() -> Vec<Reading<Exact>> {
    let device = Default::default();
    let ids: Vec<i32> = (0..20).map(|i| (7 * i + i * i) % 40).collect();
    let targets = vec![ids[5], ids[6], ids[9], ids[13], 3];
    // In row 0 the tokens 5, 6 and 9 are scored, in row 1 the token 3 and the one after its eighth, which is its last.
    let places = [4, 5, 8, 12, 17];
    let answer = |set, tokens| Answer { set, tokens };
    vec![Reading {
        ids_bl: Tensor::from_data(TensorData::new(ids, [2, 10]), &device),
        places_n: Tensor::from_data(TensorData::new(places.to_vec(), [5]), &device),
        targets,
        answers: vec![answer(0, 0..2), answer(1, 2..3), answer(0, 3..5)],
    }]
}

/// The recall of a whole network, from its logits.
fn by_hand(model: &CausalLm<Exact>) -> Vec<Recall> {
    let reading = &readings()[0];
    let logits = model.logits(model.features(reading.ids_bl.clone()));
    let logits: Vec<f64> = logits.into_data().iter().collect();
    let places: Vec<i64> = reading.places_n.to_data().iter().collect();
    let token = |i: usize| {
        let row = &logits[places[i] as usize * 40..][..40];
        let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
        let target = row[reading.targets[i] as usize];
        (target - sum.ln(), row.iter().all(|logit| *logit <= target))
    };
    let mut sets = vec![Recall::default(); 2];
    for answer in &reading.answers {
        let tokens: Vec<(f64, bool)> = answer.tokens.clone().map(token).collect();
        let set = &mut sets[answer.set];
        let mean = tokens.iter().map(|(log, _)| log).sum::<f64>() / tokens.len() as f64;
        set.log_likelihood += mean;
        set.accuracy += f64::from(u8::from(tokens.iter().all(|(_, right)| *right)));
        set.answers += 1;
    }
    for set in &mut sets {
        set.log_likelihood /= set.answers as f64;
        set.accuracy /= set.answers as f64;
    }
    sets
}

/// The network without these heads: the columns of the output projection that read them are zero.
fn without(model: &CausalLm<Exact>, units: &[&Unit]) -> CausalLm<Exact> {
    let mut model = model.clone();
    for unit in units {
        let Mixer::Attention(attention) = &mut model.backbone.layers[unit.layer].mixer else {
            panic!("attention");
        };
        for head in &unit.heads {
            let weight = attention.dense.weight.val();
            let zeros = Tensor::zeros([24, 6], &Default::default());
            let weight = weight.slice_assign([0..24, head * 6..head * 6 + 6], zeros);
            attention.dense.weight = Param::from_tensor(weight);
        }
    }
    model
}

fn assert_recalls(name: &str, found: &[Recall], expected: &[Recall]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let error = (found.log_likelihood - expected.log_likelihood).abs();
        assert!(error < 1e-11, "{name}: {found:?} and {expected:?}");
        assert_eq!(
            (found.accuracy, found.answers),
            (expected.accuracy, expected.answers),
            "{name}"
        );
    }
}

/// Each head and each group, of a network that is whole and of one that lacks a head already.
#[test]
fn a_removed_head_is_columns_of_zeros() {
    let model = teacher();
    let whole = by_hand(&model);
    let removed = Unit {
        layer: 1,
        heads: vec![2],
    };
    for (kind, count) in [(UnitKind::Head, 12), (UnitKind::Group, 6)] {
        let units = units(&model, kind);
        assert_eq!(units.len(), count);
        for before in [vec![], vec![&removed]] {
            let all = Sights::all(&model, HeadSight::Own);
            let question = Question {
                base: &all.with(before.iter().copied(), HeadSight::Nothing),
                units: &units,
                sight: HeadSight::Nothing,
                window: WINDOW,
            };
            let measured = question.measure(&model, &readings(), 2, &|| false);
            let measured = measured.expect("a device").expect("not stopped");
            assert_recalls("base", &measured.base, &by_hand(&without(&model, &before)));
            for (unit, found) in units.iter().zip(&measured.changed) {
                let both: Vec<&Unit> = before.iter().copied().chain([unit]).collect();
                let expected = by_hand(&without(&model, &both));
                assert_recalls(&unit.to_string(), found, &expected);
                assert_ne!(expected, whole, "{unit} does nothing");
            }
        }
        let question = Question {
            base: &Sights::all(&model, HeadSight::Own),
            units: &units,
            sight: HeadSight::Nothing,
            window: WINDOW,
        };
        let stopped = question.measure(&model, &readings(), 2, &|| true);
        assert!(stopped.expect("a device").is_none());
    }
}

/// With every head restored the teacher is itself, and with none it is the teacher within the window.
#[test]
fn the_curve_ends_at_the_teacher() {
    let model = teacher();
    let units = units(&model, UnitKind::Head);
    let narrow = Sights::all(&model, HeadSight::Window);
    let measure = |base: &Sights| {
        let question = Question {
            base,
            units: &[],
            sight: HeadSight::Own,
            window: WINDOW,
        };
        let measured = question.measure(&model, &readings(), 2, &|| false);
        measured.expect("a device").expect("not stopped").base
    };
    let within = model.clone().with_attention_within(WINDOW).expect("one");
    assert_recalls("none", &measure(&narrow), &by_hand(&within));
    let all = narrow.clone().with(&units, HeadSight::Own);
    assert_recalls("all", &measure(&all), &by_hand(&model));
    assert_ne!(by_hand(&within), by_hand(&model));
}

/// A ranking in rounds measures each round on the network without those that were chosen before.
#[test]
fn rounds_go_on_from_the_first_heads() {
    let model = teacher();
    let ranking = |by, rounds| {
        let ranking = Ranking {
            by,
            rounds,
            wanted: 4,
            window: WINDOW,
        };
        let units = units(&model, UnitKind::Head);
        let ranked = ranking.rank(&model, units, &readings(), 2, &|| false);
        let ranks = ranked.expect("a device").expect("not stopped");
        (ranks.before, ranks.ranked)
    };
    let mean = |recalls: &[Recall]| {
        recalls.iter().map(|r| r.log_likelihood).sum::<f64>() / recalls.len() as f64
    };
    let (before, once) = ranking(By::Removal, 1);
    assert_recalls("before", &before, &by_hand(&model));
    assert!(once.is_sorted_by(|a, b| a.effect >= b.effect));
    for ranked in &once {
        let lost = mean(&before) - mean(&by_hand(&without(&model, &[&ranked.unit])));
        assert!((ranked.effect - lost).abs() < 1e-11);
    }
    let (_, twice) = ranking(By::Removal, 2);
    assert_eq!(twice.len(), 12);
    assert_eq!(twice[..2].iter().map(|r| r.round).max(), Some(1));
    assert_eq!(&twice[..2], &once[..2]);
    let first = best(&twice, 2);
    let base = mean(&by_hand(&without(&model, &first)));
    for ranked in &twice[2..] {
        assert_eq!(ranked.round, 2);
        let three = [first[0], first[1], &ranked.unit];
        let lost = base - mean(&by_hand(&without(&model, &three)));
        assert!((ranked.effect - lost).abs() < 1e-11, "{}", ranked.unit);
    }
    // A restoration begins with all heads within the window, and heads that see all then change something.
    let (within, restored) = ranking(By::Restoration, 1);
    let narrow = model.clone().with_attention_within(WINDOW).expect("one");
    assert_recalls("within", &within, &by_hand(&narrow));
    assert!(restored.iter().any(|ranked| ranked.effect.abs() > 1e-6));
}
