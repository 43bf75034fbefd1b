//! Single attention heads: as columns of the output projection, and beside a state-space mixer.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use kernels::{KernelBackend, Window};
use model::mixers::beside_attention::HeadsStudent;
use model::mixers::discrete_mamba2::Mamba2Student;
use model::{
    Block, CausalLm, Family, HeadOutputs, HeadSight, Initialisation, Joined, Mixer, ModelConfig,
    StudentMixer, TokenMixer, transfer_weights,
};
use tests::assert_close;
use tests::networks::*;

use crate::block_orders::{networks, random, tokens};
use crate::starts::normed_teacher;

/// The layer in whose output projection all columns are zero but for those of the heads `kept`.
fn only<B: KernelBackend>(block: &Block<B>, kept: &[usize]) -> Block<B> {
    let mut block = block.clone();
    let Mixer::Attention(attention) = &mut block.mixer else {
        panic!("attention");
    };
    let weight = attention.dense.weight.val();
    let width = weight.dims()[1];
    let p = width / attention.config().n_heads;
    let mask: Vec<f32> = (0..width)
        .map(|column| f32::from(u8::from(kept.contains(&(column / p)))))
        .collect();
    let options = (&weight.device(), weight.dtype());
    let mask = Tensor::<B, 2>::from_data(TensorData::new(mask, [1, width]), options);
    attention.dense.weight = Param::from_tensor(weight * mask);
    block
}

/// The layer behind its mixer, written out; `mixed` is the input and what the mixer adds.
fn behind<B: KernelBackend>(
    block: &Block<B>,
    x: Tensor<B, 3>,
    mixed: Tensor<B, 3>,
) -> Tensor<B, 3> {
    match &block.post_mixer_layernorm {
        None => mixed + block.mlp.forward(block.input_layernorm.forward(x)),
        Some(norm) => mixed.clone() + block.mlp.forward(norm.forward(mixed)),
    }
}

fn heads_are_columns<B: KernelBackend>(tolerance: f64) {
    use HeadSight::{Nothing, Own, Window as Narrow};
    let window = Window {
        window: 4,
        sinks: 1,
    };
    for (name, network) in networks() {
        let model = random::<B>(&network);
        let x = model.backbone.embedding.forward(tokens::<B>());
        for block in &model.backbone.layers {
            let asked = [Own, Narrow];
            let Some(outputs) = HeadOutputs::new(block, x.clone(), &asked, window) else {
                assert_eq!((block.attention_heads(), block.attention_group()), (0, 0));
                continue;
            };
            assert_eq!((block.attention_heads(), block.attention_group()), (2, 2));
            let with = |sights: [HeadSight; 2]| {
                values(block.forward_with_heads(x.clone(), &outputs, &sights))
            };
            let as_it_is = values(block.forward(x.clone()));
            assert_eq!(with([Own, Own]), as_it_is, "{name}");
            let u = block.input_layernorm.forward(x.clone());
            let mut narrow = block.clone();
            assert!(narrow.mixer.narrow_attention(window));
            let terms: [(_, Vec<Block<B>>); 4] = [
                ([Own, Nothing], vec![only(block, &[0])]),
                ([Narrow, Nothing], vec![only(&narrow, &[0])]),
                ([Narrow, Own], vec![only(&narrow, &[0]), only(block, &[1])]),
                ([Nothing, Nothing], vec![]),
            ];
            for (sights, terms) in terms {
                let mixed = terms.iter().fold(x.clone(), |sum, term| {
                    // No network here has a bias of this projection.
                    sum + term.mixer.forward(u.clone())
                });
                let expected = values(behind(block, x.clone(), mixed));
                let name = format!("{name}: {sights:?}");
                assert_close(&name, with(sights), expected, tolerance);
            }
        }
    }
}

on_both! {
    heads_are_columns(1e-12, 2e-4);
}

/// A student that starts as a copy, with these heads of `taught` beside its mixers.
fn student((config, teacher): &(ModelConfig, CausalLm<Exact>), heads: &[&str]) -> CausalLm<Exact> {
    let network = config.network();
    let options = StudentMixer::Mamba2Heads(HeadsStudent {
        mamba: Mamba2Student {
            d_state: 12,
            n_qk_heads: 4,
            n_v_heads: 4,
            bc_norm: true,
            ..Mamba2Student::default()
        },
        heads: heads.iter().map(|head| (*head).to_owned()).collect(),
        joined: Joined::Sum,
    });
    let how = Initialisation::Copy;
    let mixers = network.mixers.iter().enumerate().map(|(layer, of)| {
        let mixer = options.mixer(layer, of, network.d_model).expect("heads");
        how.options_of(mixer, of, network.d_model)
    });
    let student = config.student_with(mixers.collect()).expect("a student");
    // As a file says it.
    let student = ModelConfig::from_json(&student.to_json()).expect("its own file");
    let mut made = CausalLm::init(&student, 5, &Default::default());
    transfer_weights(&mut made, teacher).expect("the sizes fit");
    how.apply(&mut made, teacher, &[], &|| false)
        .expect("a start");
    made
}

/// With every head beside mixers that add nothing, a student is its teacher.
#[test]
fn all_heads_are_the_teacher() {
    let taught = normed_teacher();
    let all: Vec<String> = (0..2)
        .flat_map(|layer| (0..4).map(move |head| format!("{layer}/{head}")))
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let student = student(&taught, &all).without_ssm().expect("mixers");
    let logits = |model: &CausalLm<Exact>| values(model.logits(model.features(tokens())));
    assert_close("all heads", logits(&student), logits(&taught.1), 1e-12);
}

/// What kept heads add is what the same heads of the teacher add; keys and values that they share there are shared here.
#[test]
fn a_kept_head_gives_what_it_gave() {
    let taught = normed_teacher();
    let student = student(&taught, &["0/0", "0/1", "1/3", "1/0"]);
    let x = taught.1.backbone.embedding.forward(tokens());
    let kept = [(vec![0, 1], 1), (vec![0, 3], 2)];
    let layers = student
        .backbone
        .layers
        .iter()
        .zip(&taught.1.backbone.layers);
    for ((own, theirs), (heads, kv_heads)) in layers.zip(kept) {
        let u = theirs.input_layernorm.forward(x.clone());
        let Mixer::BesideAttention(both) = &own.mixer else {
            panic!("two mixers");
        };
        let attention = both.attention.as_ref().expect("heads");
        assert_eq!(both.config().heads, heads);
        assert_eq!(attention.config().n_kv_heads, kv_heads);
        let expected = values(only(theirs, &heads).mixer.forward(u.clone()));
        let name = format!("{heads:?}");
        assert_close(&name, values(attention.forward(u)), expected, 1e-12);
    }
}
