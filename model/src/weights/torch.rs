//! The tensors of a file that `torch.save` wrote: a zip archive of a pickle, which says what the tensors are,
//! and of the storages that they are views of.
//!
//! A tensor may be any view: transposed, a part of a larger tensor, or several views of one storage. If the pickle
//! describes a tensor in a way that is not known here, this is an error that names the tensor, because its numbers
//! could be read wrongly. The memory for tensors is bounded by a multiple of the file's size.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::rc::Rc;

use burn::tensor::{BoolStore, DType};

use super::archive::{self, Entry};
use super::error::WeightsError;
use super::file::WeightFile;
use super::pickle::{Object, Pickle, Value};
use super::stored::{Storage, Stored, Tensors};

/// Bytes of a pickle, at most: those of the largest models have some millions.
const PICKLE: u64 = 16 << 20;

/// Dictionaries inside each other, and a tensor's wrappers, at most.
const DEPTH: usize = 16;

/// A tensor's dimensions, at most: as many as PyTorch allows.
const DIMENSIONS: usize = 64;

/// Times the file's bytes that its tensors may have, since some share a storage.
const SHARED: u64 = 64;

pub(super) fn open(path: &Path) -> Result<Tensors, WeightsError> {
    let file = Rc::new(WeightFile::open(path)?);
    let old = file.bytes(0, file.len().min(4))?;
    if old.starts_with(&[0x80, 0x02, 0x8a]) {
        return Err(file.damaged(
            "it is in PyTorch's format from before version 1.6, which is not read: load and save it \
             once with a later version",
        ));
    }
    let entries = archive::entries(&file)?;
    let mut pickles = entries
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"));
    let (Some(folder), None) = (pickles.next(), pickles.next()) else {
        return Err(file.damaged("not a whole archive as torch.save writes it: no pickle in it"));
    };
    let order = text(&file, &entries, &format!("{folder}byteorder"))?;
    if order.is_some_and(|order| order == b"big") {
        return Err(file.damaged("its numbers are in big-endian order, which is not read"));
    }
    let Some(pickle) = text(&file, &entries, &format!("{folder}data.pkl"))? else {
        return Err(file.damaged(format!("its pickle has more than {PICKLE} bytes")));
    };
    let length = pickle.len();
    let pickle = Pickle::read(&pickle).map_err(|reason| file.damaged(reason))?;
    let reader = Reader {
        folder,
        length,
        pickle,
        entries: &entries,
        file: &file,
        storages: HashMap::new(),
    };
    let tensors = reader.tensors().map_err(|reason| file.damaged(reason))?;
    let needed = tensors.values().map(|tensor| tensor.length);
    let needed = needed.fold(0, u64::saturating_add);
    if needed > file.len().saturating_mul(SHARED) {
        return Err(file.damaged(format!(
            "its tensors need {needed} bytes, but it has {}",
            file.len()
        )));
    }
    Ok(tensors)
}

/// A small entry's bytes, if there is one and it is small.
fn text(
    file: &WeightFile,
    entries: &BTreeMap<String, Entry>,
    name: &str,
) -> Result<Option<Vec<u8>>, WeightsError> {
    let Some(entry) = entries.get(name).filter(|entry| entry.length <= PICKLE) else {
        return Ok(None);
    };
    let bytes = file.bytes(entry.start, entry.length)?;
    if is_checked(entry) && crc32fast::hash(&bytes) != entry.crc32 {
        return Err(file.damaged(format!("{name} in it is damaged: its CRC-32 is another")));
    }
    Ok(Some(bytes))
}

/// Whether the checksum was computed: `torch.serialization.set_crc32_options(False)` leaves it out.
fn is_checked(entry: &Entry) -> bool {
    entry.crc32 != 0
}

/// A dictionary's items, and the pairs that it was made of.
type Mapping<'a> = (&'a [(Value, Value)], &'a [Value]);

struct Reader<'a> {
    folder: &'a str,
    pickle: Pickle,
    /// Bytes of the pickle.
    length: usize,
    entries: &'a BTreeMap<String, Entry>,
    file: &'a Rc<WeightFile>,
    /// By their names in the archive.
    storages: HashMap<String, Rc<Storage>>,
}

impl Reader<'_> {
    /// The tensors of a dictionary, and of those inside of it, with the keys on the way joined by dots.
    fn tensors(mut self) -> Result<Tensors, String> {
        if self.mapping(self.pickle.root).is_none() {
            return Err(
                "it holds no dictionary of tensors; a model's `state_dict()` is what can be read"
                    .into(),
            );
        }
        let mut tensors = Tensors::new();
        // A dictionary may be contained in many others, or in itself, so following all references might never end; and
        // one tensor may have many names. Therefore the bytes of everything that is built from the pickle are counted
        // and limited.
        let mut left = self.length.saturating_mul(DEPTH);
        let mut take = |n: usize| {
            left = left
                .checked_sub(n)
                .ok_or("its dictionaries hold each other, or the same tensors under many names")?;
            Ok::<_, String>(())
        };
        let mut open = vec![(String::new(), 0, self.pickle.root)];
        while let Some((prefix, depth, value)) = open.pop() {
            if depth > DEPTH {
                return Err(format!("`{prefix:.200}` is nested too deep"));
            }
            // Of equal keys the last counts.
            let mut named = BTreeMap::new();
            for (key, value) in self.items(value) {
                take(1)?;
                if let Some(key) = self.name(key) {
                    take(prefix.len() + key.len())?;
                    named.insert(key, value);
                }
            }
            for (key, value) in named {
                let name = if prefix.is_empty() {
                    key
                } else {
                    format!("{prefix}.{key}")
                };
                if self.mapping(value).is_some() {
                    open.push((name, depth + 1, value));
                    continue;
                }
                let tensor = self.tensor(value);
                let tensor = tensor.map_err(|reason| format!("`{name:.200}` {reason}"))?;
                let Some(tensor) = tensor else { continue };
                // Its sizes and its strides.
                take(2 * size_of_val(&*tensor.shape))?;
                if tensors.insert(name.clone(), tensor).is_some() {
                    return Err(format!("`{name:.200}` is in it twice"));
                }
            }
        }
        Ok(tensors)
    }

    /// A name that is written as a text or a number.
    fn name(&self, value: Value) -> Option<String> {
        match value {
            Value::Int(number) => Some(number.to_string()),
            _ => self.pickle.text(value).map(str::to_owned),
        }
    }

    /// What a dictionary holds, of whatever class it is: items that were put in, and pairs that it was made of, as
    /// Python 2 does it.
    fn mapping(&self, value: Value) -> Option<Mapping<'_>> {
        let call = match self.pickle.object(value)? {
            Object::Dict(items) => return Some((items, &[])),
            Object::Call(call) => call,
            _ => return None,
        };
        if self.pickle.global(call.function) != Some(("collections", "OrderedDict")) {
            return Some((&*call.items, &[] as &[Value])).filter(|(items, _)| !items.is_empty());
        }
        let first = self
            .pickle
            .values(call.arguments)
            .and_then(|all| all.first());
        let pairs = first.and_then(|first| self.pickle.values(*first));
        Some((&call.items, pairs.unwrap_or_default()))
    }

    /// All of a dictionary's items.
    fn items(&self, value: Value) -> impl Iterator<Item = (Value, Value)> {
        let (items, pairs) = self.mapping(value).unwrap_or_default();
        let pairs = pairs
            .iter()
            .filter_map(|pair| match self.pickle.values(*pair)? {
                [key, value] => Some((*key, *value)),
                _ => None,
            });
        pairs.chain(items.iter().copied())
    }

    /// A tensor, if the value is one. Errors are words that follow its name.
    fn tensor(&mut self, mut value: Value) -> Result<Option<Stored>, String> {
        // What is wrapped around it: a parameter, a class of its own.
        for _ in 0..DEPTH {
            let Some(call) = self.pickle.call(value) else {
                return Ok(None);
            };
            let function = self.pickle.global(call.function).unwrap_or_default();
            let arguments = self.pickle.values(call.arguments).unwrap_or_default();
            let (mut function, mut arguments) = (function, arguments);
            if function == ("torch._tensor", "_rebuild_from_type_v2") {
                let [inner, _, inner_arguments, ..] = arguments else {
                    return Err("is damaged: a tensor's class without its arguments".into());
                };
                function = self.pickle.global(*inner).unwrap_or_default();
                arguments = self.pickle.values(*inner_arguments).unwrap_or_default();
            }
            match function {
                ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                    value = *arguments
                        .first()
                        .ok_or("is damaged: a parameter of no tensor")?;
                }
                (
                    "torch._utils",
                    name @ ("_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3"),
                ) => {
                    // Others than the first eight mean nothing.
                    let arguments = arguments[..arguments.len().min(8)].to_vec();
                    let is_third = name.ends_with("v3");
                    return self.view(&arguments, is_third).map(Some);
                }
                (module, name) if module.starts_with("torch") && name.starts_with("_rebuild") => {
                    return Err(format!(
                        "is of a kind that is not read ({module:.200}.{name:.200})"
                    ));
                }
                // Something else that was saved beside the tensors.
                _ => return Ok(None),
            }
        }
        Err("is nested too deep".into())
    }

    /// The tensor that the arguments of `_rebuild_tensor_v2` make: storage, offset, shape, strides, whether it has
    /// a gradient, hooks, and what else is to be done with it. Version 3 has the dtype before the last.
    fn view(&mut self, arguments: &[Value], is_third: bool) -> Result<Stored, String> {
        let [storage, Value::Int(offset), shape, strides, rest @ ..] = arguments else {
            return Err("is damaged: a tensor without a place".into());
        };
        let sizes = |value: &Value| {
            let values = self.pickle.values(*value)?;
            let values = values.iter().take(DIMENSIONS + 1);
            let sizes = values.map(|value| match value {
                Value::Int(n) => usize::try_from(*n).ok(),
                _ => None,
            });
            sizes.collect::<Option<Vec<usize>>>()
        };
        let (Some(shape), Some(strides), Ok(offset)) =
            (sizes(shape), sizes(strides), usize::try_from(*offset))
        else {
            return Err("is damaged: its sizes are not numbers".into());
        };
        if shape.len() > DIMENSIONS {
            return Err(format!("has more than {DIMENSIONS} dimensions"));
        }
        let (dtype, metadata) = match (is_third, rest) {
            (true, [_, _, dtype, metadata @ ..]) => (Some(*dtype), metadata),
            (true, _) => return Err("is damaged: a tensor without a dtype".into()),
            (false, rest) => (None, rest.get(2..).unwrap_or_default()),
        };
        // Numbers to be negated or conjugated before they are used.
        let has_more =
            |value: &Value| *value != Value::None && self.mapping(*value) != Some((&[], &[]));
        if metadata.iter().any(has_more) {
            return Err(
                "is a view of a kind that is not read; save a copy of it (`clone()`)".into(),
            );
        }
        let (storage, class) = self.storage(*storage)?;
        let class = self.pickle.global(dtype.unwrap_or(class));
        let (_, class) = class.unwrap_or_default();
        let dtype =
            dtype_of(class).ok_or_else(|| format!("holds {class:.200}, which is not read"))?;
        Stored::new(storage, dtype, shape, strides, offset)
    }

    /// The storage that a persistent id names, `('storage', CLASS, NAME, DEVICE, LENGTH)`, and its class.
    fn storage(&mut self, value: Value) -> Result<(Rc<Storage>, Value), String> {
        const DAMAGED: &str = "is damaged: a tensor without a storage";
        let Some(Object::Persistent(id)) = self.pickle.object(value) else {
            return Err(DAMAGED.into());
        };
        let Some([kind, class, key, ..]) = self.pickle.values(*id) else {
            return Err(DAMAGED.into());
        };
        let (Some(key), class) = (self.name(*key), *class) else {
            return Err(DAMAGED.into());
        };
        // Longer than an archive's names are.
        let is_storage =
            self.pickle.text(*kind) == Some("storage") && self.pickle.global(class).is_some();
        if !is_storage || key.len() > usize::from(u16::MAX) {
            return Err(DAMAGED.into());
        }
        let name = format!("{}data/{key}", self.folder);
        if let Some(storage) = self.storages.get(&name) {
            return Ok((storage.clone(), class));
        }
        let Some(entry) = self.entries.get(&name) else {
            return Err(format!(
                "has its numbers in {name:.200}, which is not there"
            ));
        };
        let storage = Rc::new(Storage {
            file: self.file.clone(),
            name: name.clone(),
            start: entry.start,
            length: entry.length,
            checksum: Cell::new(is_checked(entry).then_some(entry.crc32)),
        });
        self.storages.insert(name, storage.clone());
        Ok((storage, class))
    }
}

/// By the names of PyTorch's storages and dtypes.
fn dtype_of(class: &str) -> Option<DType> {
    Some(match class {
        "DoubleStorage" | "float64" => DType::F64,
        "FloatStorage" | "float32" => DType::F32,
        "HalfStorage" | "float16" => DType::F16,
        "BFloat16Storage" | "bfloat16" => DType::BF16,
        "LongStorage" | "int64" => DType::I64,
        "IntStorage" | "int32" => DType::I32,
        "ShortStorage" | "int16" => DType::I16,
        "CharStorage" | "int8" => DType::I8,
        "ByteStorage" | "uint8" => DType::U8,
        "uint64" => DType::U64,
        "uint32" => DType::U32,
        "uint16" => DType::U16,
        "BoolStorage" | "bool" => DType::Bool(BoolStore::Native),
        _ => return None,
    })
}
