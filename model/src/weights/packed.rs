//! Weights in 8 and 4 bits in a folder's files.
//!
//! In the place of a weight `NAME [d_out, d_in]` a file has three tensors, named and packed as the library
//! compressed-tensors does in its format `pack-quantized`:
//!
//! - `NAME_packed`, i32, `[d_out, d_in / 4]` in 8 bits or `[d_out, d_in / 8]` in 4: numbers `q`, as `q + 128` or `q + 8`,
//!   several in 32 bits, the first in the lowest;
//! - `NAME_scale`, f32 `[d_out, 1]` for 8 bits, f16 `[d_out, d_in / 32]` for 4: the number is `scale * q`;
//! - `NAME_shape`, i64 `[2]`: `d_out` and `d_in`.
//!
//! [`join`] makes one tensor of the three, of which the numbers can be read as floats, as any other's, or as they are.
//! `config.json` says in `quantization_config` that there are such tensors.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData, f16};
use kernels::decode::projections::{Form, GROUP, Weight};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::stored::{Stored, Tensors, Values};
use super::{TensorFault, WeightsError};
use crate::config_error::ConfigError;

/// The key of a configuration.
const KEY: &str = "quantization_config";
const METHOD: &str = "compressed-tensors";
const FORMAT: &str = "pack-quantized";
/// What the names of the three tensors end with.
const PACKED: &str = "_packed";
const SCALE: &str = "_scale";
const SHAPE: &str = "_shape";
/// Between a number of 8 bits as a file has it and in two's complement, for all four of a word.
const SIGNS: u32 = 0x8080_8080;

/// A weight in bits, of which the values are not yet read.
pub(super) struct Packed {
    words: Stored,
    scales: Stored,
    form: Form,
    d_out: usize,
    d_in: usize,
}

/// Joins the three tensors of each packed weight to one, and returns the faults that it finds.
pub(super) fn join(tensors: &mut Tensors) -> Result<Vec<TensorFault>, WeightsError> {
    let names = tensors.keys();
    let names: Vec<String> = names
        .filter_map(|name| Some(name.strip_suffix(PACKED)?.to_owned()))
        .collect();
    let mut faults = Vec::new();
    for name in names {
        match Packed::take(&name, tensors)? {
            Ok(packed) if tensors.contains_key(&name) => {
                // As floats and in bits.
                let found = packed.words.shape;
                let name = name + PACKED;
                faults.push(TensorFault::Unexpected { name, found });
            }
            Ok(packed) => {
                let joined = packed.joined();
                tensors.insert(name, joined);
            }
            Err(fault) => faults.push(fault),
        }
    }
    Ok(faults)
}

impl Packed {
    /// Takes the parts of the weight `name` out of `tensors`.
    fn take(name: &str, tensors: &mut Tensors) -> Result<Result<Self, TensorFault>, WeightsError> {
        let mut take = |end: &str| {
            let name = format!("{name}{end}");
            tensors.remove(&name).ok_or(name)
        };
        let (words, scales, shape) = (take(PACKED), take(SCALE), take(SHAPE));
        let missing = |expected: Vec<usize>| move |name| TensorFault::Missing { name, expected };
        let both = || -> Result<(Stored, Stored), TensorFault> {
            let words = words.map_err(missing(vec![]))?;
            let shape = shape.map_err(missing(vec![2]))?;
            check(name, SHAPE, &shape, &[2], DType::I64)?;
            Ok((words, shape))
        };
        let (words, shape) = match both() {
            Ok(both) => both,
            Err(fault) => return Ok(Err(fault)),
        };
        let sizes: Vec<i64> = shape.read()?.0.iter().collect();
        Ok(Self::new(name, words, scales, [sizes[0], sizes[1]]))
    }

    fn new(
        name: &str,
        words: Stored,
        scales: Result<Stored, String>,
        sizes: [i64; 2],
    ) -> Result<Self, TensorFault> {
        let [d_out, d_in] = sizes.map(|size| usize::try_from(size).unwrap_or(0));
        let is_form = |form: &Form| words.shape == [d_out, d_in / form.in_element()];
        let form = [Form::Int4, Form::Int8].into_iter().find(is_form);
        let whole = |form: &Form| d_out > 0 && d_in > 0 && form.of_rows(d_in) == *form;
        let Some(form) = form.filter(whole) else {
            return Err(TensorFault::Shape {
                name: format!("{name}{PACKED}"),
                expected: vec![d_out, d_in / Form::Int4.in_element()],
                found: words.shape,
            });
        };
        check(name, PACKED, &words, &words.shape.clone(), DType::I32)?;
        let (shape, dtype) = match form {
            Form::Int4 => ([d_out, d_in / GROUP], DType::F16),
            Form::Int8 | Form::Float => ([d_out, 1], DType::F32),
        };
        let scales = scales.map_err(|name| TensorFault::Missing {
            name,
            expected: shape.to_vec(),
        })?;
        check(name, SCALE, &scales, &shape, dtype)?;
        Ok(Self {
            words,
            scales,
            form,
            d_out,
            d_in,
        })
    }

    /// How many scales there are.
    pub(super) fn scales(&self) -> usize {
        self.scales.shape.iter().product()
    }

    /// What they are stored as.
    pub(super) fn dtype_of_scales(&self) -> DType {
        self.scales.dtype
    }

    fn joined(self) -> Stored {
        let stored_as = match self.form {
            Form::Int4 => "int4",
            Form::Int8 | Form::Float => "int8",
        };
        let length = self.words.length + self.scales.length;
        let shape = vec![self.d_out, self.d_in];
        Stored::in_f32(shape, stored_as.into(), length, self)
    }

    /// The words, with numbers of 8 bits in two's complement, and how many scales are NaN or infinite.
    fn read_parts(&self) -> Result<(Vec<i32>, TensorData, usize), WeightsError> {
        let (words, _) = self.words.read()?;
        let (scales, bad) = self.scales.read()?;
        let signs = if self.form == Form::Int8 { SIGNS } else { 0 };
        let words = words.iter::<i32>().map(|word| word ^ signs as i32);
        Ok((words.collect(), scales, bad))
    }

    /// The weight as it is, on `device`, and how many of its scales are NaN or infinite.
    pub(super) fn weight<B: Backend>(
        &self,
        device: &B::Device,
    ) -> Result<(Weight<B>, usize), WeightsError> {
        let (words, scales, bad) = self.read_parts()?;
        let [d_out, width] = [self.d_out, self.d_in / self.form.in_element()];
        // As one row, which CubeCL does not pad.
        let row = |words: Vec<i32>| {
            let n = words.len();
            Tensor::<B, 1, Int>::from_data(TensorData::new(words, [n]), device)
        };
        let packed = row(words).reshape([d_out, width]);
        let weight = if self.form == Form::Int8 {
            let scales: Vec<f32> = scales.iter().collect();
            let scales = TensorData::new(scales, [d_out]);
            Weight::Int8 {
                packed,
                scales: Tensor::from_data(scales, (device, DType::F32)),
            }
        } else {
            let halves: Vec<u16> = scales.iter::<f16>().map(f16::to_bits).collect();
            let pair = |pair: &[u16]| {
                let upper = pair.get(1).copied().unwrap_or(0);
                (u32::from(pair[0]) | u32::from(upper) << 16) as i32
            };
            Weight::Int4 {
                packed,
                scales: row(halves.chunks(2).map(pair).collect()),
            }
        };
        Ok((weight, bad))
    }
}

impl Values for Packed {
    fn read(&self) -> Result<(TensorData, usize), WeightsError> {
        let (words, scales, _) = self.read_parts()?;
        let scales: Vec<f32> = scales.iter().collect();
        let (form, d_in) = (self.form, self.d_in);
        let mut values = vec![0.0_f32; self.d_out * d_in];
        let width = d_in / form.in_element();
        let rows = values.par_chunks_mut(d_in).zip(words.par_chunks(width));
        rows.zip(scales.par_chunks(scales.len() / self.d_out))
            .for_each(|((values, words), scales)| {
                let of_scale = d_in / scales.len();
                for (i, value) in values.iter_mut().enumerate() {
                    let word = words[i / form.in_element()];
                    let q = match form {
                        Form::Int4 => (word >> (4 * (i % 8)) & 15) - 8,
                        _ => i32::from(word.to_le_bytes()[i % 4] as i8),
                    };
                    *value = q as f32 * scales[i / of_scale];
                }
            });
        let bad = values.iter().filter(|value| !value.is_finite()).count();
        Ok((TensorData::new(values, [self.d_out, d_in]), bad))
    }

    fn packed(&self) -> Option<&Packed> {
        Some(self)
    }
}

/// Checks that a part of the weight `name` has this shape and dtype.
fn check(
    name: &str,
    end: &str,
    part: &Stored,
    shape: &[usize],
    dtype: DType,
) -> Result<(), TensorFault> {
    let name = format!("{name}{end}");
    if part.shape != shape {
        return Err(TensorFault::Shape {
            name,
            found: part.shape.clone(),
            expected: shape.to_vec(),
        });
    }
    if part.dtype != dtype {
        let said = |dtype: DType| format!("{dtype:?}").to_lowercase();
        return Err(TensorFault::Packed {
            name,
            dtype: said(part.dtype),
            expected: said(dtype),
        });
    }
    Ok(())
}

/// The tensors that a file has for the weight `name`, each with its dtype, shape and bytes.
///
/// # Panics
/// If the device fails, or the weight is in floats.
pub(super) fn parts<B: Backend>(name: &str, weight: Weight<B>) -> [(String, Part); 3] {
    let shape = weight.dims();
    let [d_out, d_in] = shape;
    let (packed, scales, signs) = match weight {
        Weight::Int8 { packed, scales } => {
            let scales = scales.into_data().convert::<f32>();
            let bytes = scales.iter::<f32>().flat_map(f32::to_le_bytes);
            let scales = Part::new(safetensors::Dtype::F32, [d_out, 1], bytes.collect());
            (packed, scales, SIGNS)
        }
        Weight::Int4 { packed, scales } => {
            let pairs = scales.into_data();
            let bytes = pairs.iter::<i32>().flat_map(i32::to_le_bytes);
            // Without the half word behind an odd number of groups.
            let bytes = bytes.take(d_out * d_in / GROUP * 2);
            let shape = [d_out, d_in / GROUP];
            let scales = Part::new(safetensors::Dtype::F16, shape, bytes.collect());
            (packed, scales, 0)
        }
        Weight::Float(_) => panic!("`{name}` is in floats"),
    };
    let words = packed.into_data();
    let shape_of_words = [words.shape[0], words.shape[1]];
    let bytes = words.iter::<i32>().map(|word| word ^ signs as i32);
    let bytes = bytes.flat_map(i32::to_le_bytes);
    let words = Part::new(safetensors::Dtype::I32, shape_of_words, bytes.collect());
    let bytes = shape
        .into_iter()
        .flat_map(|size| (size as i64).to_le_bytes());
    let shape = Part::new(safetensors::Dtype::I64, [2], bytes.collect());
    [
        (format!("{name}{PACKED}"), words),
        (format!("{name}{SCALE}"), scales),
        (format!("{name}{SHAPE}"), shape),
    ]
}

/// One tensor to be written.
pub(super) struct Part {
    pub(super) dtype: safetensors::Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Vec<u8>,
}

impl Part {
    fn new<const D: usize>(dtype: safetensors::Dtype, shape: [usize; D], bytes: Vec<u8>) -> Self {
        let shape = shape.to_vec();
        Self {
            dtype,
            shape,
            bytes,
        }
    }
}

/// Adds to the text of a `config.json` the key which says that the modules `packed`, given by name for each form, have
/// packed weights.
///
/// # Errors
/// If `config` is not a JSON object.
pub(super) fn with_key(
    config: &str,
    packed: &[(Form, Vec<String>)],
) -> Result<String, ConfigError> {
    let mut root: Map<String, Value> = serde_json::from_str(config)?;
    let groups = packed.iter().enumerate().map(|(i, (form, modules))| {
        let mut weights = json!({ "type": "int", "symmetric": true, "dynamic": false });
        let more = match form {
            Form::Int4 => json!({ "num_bits": 4, "strategy": "group", "group_size": GROUP }),
            _ => json!({ "num_bits": 8, "strategy": "channel" }),
        };
        for (key, value) in more.as_object().into_iter().flatten() {
            weights[key] = value.clone();
        }
        let group = json!({ "targets": modules, "weights": weights });
        (format!("group_{i}"), group)
    });
    let groups: Map<String, Value> = groups.collect();
    let value = json!({
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
    });
    root.insert(KEY.into(), value);
    Ok(format!("{:#}\n", Value::Object(root)))
}

/// Removes from the text of a `config.json` the key which says that weights are packed.
///
/// # Errors
/// [`ConfigError::Unsupported`] if they are packed in a format other than the one above.
pub(super) fn without_key(text: String) -> Result<String, ConfigError> {
    // What is no object is refused elsewhere.
    let Ok(Value::Object(mut root)) = serde_json::from_str(&text) else {
        return Ok(text);
    };
    let Some(value) = root.shift_remove(KEY).filter(|value| !value.is_null()) else {
        return Ok(text);
    };
    only(&value, KEY, "quant_method", &[json!(METHOD)])?;
    only(&value, KEY, "format", &[json!(FORMAT)])?;
    let groups = value.get("config_groups").and_then(Value::as_object);
    for (name, group) in groups.into_iter().flatten() {
        let path = format!("{KEY}.config_groups.{name}");
        for key in ["input_activations", "output_activations"] {
            only(group, &path, key, &[Value::Null])?;
        }
        let (path, weights) = (format!("{path}.weights"), &group["weights"]);
        only(weights, &path, "type", &[json!("int")])?;
        only(weights, &path, "symmetric", &[json!(true)])?;
        only(weights, &path, "num_bits", &[json!(4), json!(8)])?;
        let size = if weights["num_bits"] == 4 {
            json!(GROUP)
        } else {
            Value::Null
        };
        only(weights, &path, "group_size", &[size])?;
    }
    Ok(Value::Object(root).to_string())
}

/// Checks that the member `key` of `value`, which is at `path`, is one of `accepted`.
fn only(value: &Value, path: &str, key: &str, accepted: &[Value]) -> Result<(), ConfigError> {
    let found = &value[key];
    if accepted.contains(found) {
        return Ok(());
    }
    let supported: Vec<String> = accepted.iter().map(Value::to_string).collect();
    Err(ConfigError::Unsupported {
        key: format!("{path}.{key}"),
        value: found.to_string(),
        supported: supported.join(", "),
    })
}
