//! Files as `torch.save` writes them: a zip archive, whose entries are not compressed, of a pickle and of storages.

/// A tensor as PyTorch has it: a view of a storage, counted in numbers.
#[derive(Clone)]
pub struct View {
    pub storage: usize,
    pub class: &'static str,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// The instructions of a pickle, protocol 2.
#[derive(Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    pub fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Self {
        self.put(b"X").put(&(text.len() as u32).to_le_bytes());
        self.put(text.as_bytes())
    }

    pub fn int(&mut self, number: i64) -> &mut Self {
        self.put(&[0x8a, 8]).put(&number.to_le_bytes())
    }

    pub fn global(&mut self, module: &str, name: &str) -> &mut Self {
        self.put(format!("c{module}\n{name}\n").as_bytes())
    }

    fn tuple(&mut self, numbers: &[usize]) -> &mut Self {
        self.put(b"(");
        for number in numbers {
            self.int(*number as i64);
        }
        self.put(b"t")
    }

    /// The arguments of `_rebuild_tensor_v2`, without the end of their tuple.
    pub fn arguments(&mut self, view: &View) -> &mut Self {
        self.put(b"((").text("storage").global("torch", view.class);
        self.text(&view.storage.to_string())
            .text("cpu")
            .int(1)
            .put(b"tQ");
        self.int(view.offset as i64)
            .tuple(&view.shape)
            .tuple(&view.strides);
        self.put(b"\x89")
            .global("collections", "OrderedDict")
            .put(b")R")
    }

    pub fn tensor(&mut self, view: &View) -> &mut Self {
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.arguments(view).put(b"tR")
    }
}

/// The pickle of a dictionary of tensors.
pub fn dictionary<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a View)>) -> Vec<u8> {
    let mut pickle = Pickle::default();
    pickle.put(b"\x80\x02}(");
    for (name, view) in tensors {
        pickle.text(name).tensor(view);
    }
    pickle.put(b"u.");
    pickle.0
}

/// A whole file of a pickle and its storages.
pub fn file(pickle: &[u8], storages: &[Vec<u8>]) -> Vec<u8> {
    let names = (0..storages.len()).map(|i| format!("data/{i}"));
    let mut entries = vec![
        ("data.pkl".to_owned(), pickle),
        ("byteorder".to_owned(), b"little"),
    ];
    entries.extend(names.zip(storages.iter().map(Vec::as_slice)));
    archive(&entries)
}

/// A whole file of f32 tensors, each with a storage of its own.
#[allow(dead_code, reason = "not every test program writes these")]
pub fn of_contents<T>(all: &[(String, T, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let views: Vec<View> = all
        .iter()
        .enumerate()
        .map(|(storage, (_, _, shape, _))| View {
            storage,
            class: "FloatStorage",
            offset: 0,
            strides: row_major(shape),
            shape: shape.clone(),
        })
        .collect();
    let names = all.iter().map(|(name, ..)| name.as_str());
    let storages: Vec<Vec<u8>> = all.iter().map(|(.., bytes)| bytes.clone()).collect();
    file(&dictionary(names.zip(&views)), &storages)
}

/// The strides of a tensor whose numbers follow each other.
pub fn row_major(shape: &[usize]) -> Vec<usize> {
    let after = |i: usize| shape[i + 1..].iter().product();
    (0..shape.len()).map(after).collect()
}

/// An archive of entries by their names in its one folder.
pub fn archive(entries: &[(String, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let name = format!("archive/{name}");
        let start = bytes.len() as u32;
        let length = content.len() as u32;
        let mut common = Vec::new();
        // The format's version, no flags, no compression, no time.
        common.extend([20, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        common.extend(crc32(content).to_le_bytes());
        common.extend([length, length].map(u32::to_le_bytes).concat());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(*content);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    let count = entries.len() as u16;
    bytes.extend([count, count].map(u16::to_le_bytes).concat());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

/// Bit by bit, as the format defines it.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ (0xedb8_8320 * (crc & 1));
    let all = bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
    });
    !all
}
