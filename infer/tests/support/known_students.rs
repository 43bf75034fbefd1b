//! A student and a hybrid whose every weight is known beforehand, so that what other programs make of
//! them can be recorded: the bundled teacher's around mixers that a written rule fills.
//!
//! A mixer that was drawn for training starts near the identity, and what it does wrong would hardly
//! show. In one of these nothing is 0 or 1: its taps differ, its gate is half shut, and some tokens
//! are kept for long while others clear the state.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use kernels::backends::Flex;
use model::{CausalLm, DiscreteMamba2Config, PhiMambaConfig};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

const HEADS: usize = 3;

/// Writes the folder of the student that has the teacher's attention in `attention_layers`.
pub fn write(folder: &Path, attention_layers: &[usize]) {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/phi-tiny");
    let device = Device::<Flex>::default();
    let (teacher_config, teacher) = model::load_teacher::<Flex>(&bundled, &device).unwrap();
    let mixer = DiscreteMamba2Config {
        n_v_heads: HEADS,
        n_qk_heads: HEADS,
        ..DiscreteMamba2Config::default()
    };
    let config = PhiMambaConfig::student_of(&teacher_config, &mixer, attention_layers).unwrap();
    let mut student = CausalLm::<Flex>::init(&config, 0, &device);
    model::transfer_weights(&mut student, &teacher).unwrap();
    model::save_student(&config, &student, folder).unwrap();
    fill_mixers(&folder.join("model.safetensors"));
    let tokenizer = "tokenizer.json";
    fs::copy(bundled.join(tokenizer), folder.join(tokenizer)).unwrap();
}

fn fill_mixers(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let filled = tensors.into_iter().map(|(name, tensor)| {
        let shape = tensor.shape().to_vec();
        let bytes = match bound(&name) {
            Some(bound) => {
                let mut values = fill(&name, shape.iter().product(), bound);
                if name.ends_with("in_proj.weight") {
                    // The decays' rows: a sigmoid of them is near 0 for some tokens and near 1 for others.
                    let (n, d) = (values.len(), shape[1]);
                    for value in &mut values[n - HEADS * d..] {
                        *value *= 4.0;
                    }
                }
                values.into_iter().flat_map(f32::to_le_bytes).collect()
            }
            None => tensor.data().to_vec(),
        };
        (name, shape, bytes)
    });
    let filled: Vec<(String, Vec<usize>, Vec<u8>)> = filled.collect();
    let views = filled.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    serialize_to_file(views, None, path).unwrap();
}

/// The largest value of a mixer's tensor; `None` for what the teacher gives.
fn bound(name: &str) -> Option<f32> {
    let bounds = [
        (".mixer.in_proj.weight", 0.125),
        (".mixer.conv1d.weight", 0.5),
        (".mixer.conv1d.bias", 0.25),
        (".mixer.z_bias", 1.0),
        (".mixer.D", 1.0),
        (".mixer.out_proj.weight", 0.125),
    ];
    let named = bounds.into_iter().find(|(end, _)| name.ends_with(end));
    named.map(|(_, bound)| bound)
}

/// Value `i` of a tensor is the 24 highest bits of SplitMix64's mix of its name's FNV-1a hash plus
/// `i`, from `-bound` to `bound`. All are exact in f32.
fn fill(name: &str, n: usize, bound: f32) -> Vec<f32> {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let value = |i: u64| {
        let mut x = hash.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        ((x >> 40) as f32 / (1 << 23) as f32 - 1.0) * bound
    };
    (0..n as u64).map(value).collect()
}
