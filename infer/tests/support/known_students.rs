//! A student and a hybrid whose weights follow from a rule, so that other programs can make the same
//! weights and their results can be recorded. All weights but the mixers' are the bundled teacher's.
//!
//! A new mixer is close to the identity, which would hide mistakes. In these mixers no weight is 0 or 1: the taps of
//! the convolution differ, the gate is half closed, and some tokens stay in the state for long while others clear it.

use std::fs;
use std::path::Path;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

use super::support::{copy_tokenizer, student};

/// The heads of each mixer.
const HEADS: usize = 3;

/// Writes the folder of the student that has the teacher's attention in `attention_layers`.
pub fn write(folder: &Path, attention_layers: &[usize]) {
    let (config, student) = student(attention_layers);
    model::save(&config, &student, folder).unwrap();
    fill_mixers(&folder.join("model.safetensors"));
    model::manifest::add(folder, &["model.safetensors"]).unwrap();
    copy_tokenizer(folder);
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

/// The largest value of a mixer's tensor; `None` for the teacher's tensors.
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

/// The 24 highest bits of the numbers of a SplitMix64, scaled to `-bound..bound`, which is exact in f32.
/// Its state starts where number `i` is the mix of `(hash + i) * STEP`, with the name's FNV-1a hash.
fn fill(name: &str, n: usize, bound: f32) -> Vec<f32> {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random = SplitMix64::seed_from_u64(hash.wrapping_sub(1).wrapping_mul(STEP));
    let value = |_| ((random.next_u64() >> 40) as f32 / (1 << 23) as f32 - 1.0) * bound;
    (0..n).map(value).collect()
}
