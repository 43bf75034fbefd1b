//! Reads the directory of a zip archive, as far as `torch.save` uses the format: uncompressed entries, also larger than
//! 4 GiB. The numbers in the directory are checked against the length of the file before anything is allocated, so that
//! a damaged directory cannot request more memory than the file has bytes.

use std::collections::BTreeMap;

use super::error::WeightsError;
use super::file::WeightFile;

/// One entry: where its bytes are, and what they were.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) crc32: u32,
}

/// A directory's record in its file.
const RECORD: usize = 46;
/// The record at the end of the file, without its comment, and the two before it in a large archive.
const END: usize = 22;
const LOCATOR: usize = 20;
const LARGE_END: usize = 56;

/// The entries of an archive by their names.
pub(super) fn entries(file: &WeightFile) -> Result<BTreeMap<String, Entry>, WeightsError> {
    let not_whole = |reason: &str| {
        file.damaged(format!(
            "not a whole archive as torch.save writes it: {reason}"
        ))
    };
    let tail = file
        .len()
        .min((END + LOCATOR + LARGE_END + usize::from(u16::MAX)) as u64);
    let tail_start = file.len() - tail;
    let tail = file.bytes(tail_start, tail)?;
    let (end, at) = (0..=tail.len().saturating_sub(END))
        .rev()
        .find_map(|at| {
            let end = Fields(&tail[at..]);
            let is_end = end.0.starts_with(b"PK\x05\x06");
            // A comment reaches to the end.
            (is_end && end.u16(20)? as usize + END == end.0.len()).then_some((end, at))
        })
        .ok_or_else(|| not_whole("its directory is not there"))?;
    let mut place = (end.u16(10), end.u32(12), end.u32(16));
    // A large archive says so by all bits set, and has the numbers before.
    if let Some(locator) = at.checked_sub(LOCATOR)
        && tail[locator..].starts_with(b"PK\x06\x07")
    {
        let large = Fields(&tail[locator..]).u64(8);
        let large = large
            .and_then(|at| at.checked_sub(tail_start))
            .and_then(|at| tail.get(usize::try_from(at).ok()?..))
            .filter(|large| large.starts_with(b"PK\x06\x06"))
            .ok_or_else(|| not_whole("its directory is not where the file says"))?;
        let large = Fields(large);
        place = (large.u64(32), large.u64(40), large.u64(48));
    }
    let (Some(count), Some(length), Some(start)) = place else {
        return Err(not_whole("its end is cut"));
    };
    if start.checked_add(length).is_none_or(|end| end > file.len()) {
        return Err(not_whole("its directory is not where the file says"));
    }
    let directory = file.bytes(start, length)?;
    let mut entries = BTreeMap::new();
    let mut rest = &*directory;
    let mut found = 0;
    while !rest.is_empty() {
        let (name, entry, length) =
            entry(file, rest).ok_or_else(|| not_whole("its directory is damaged"))??;
        rest = &rest[length..];
        found += 1;
        if entries.insert(name.clone(), entry).is_some() {
            return Err(not_whole(&format!("it has {name:?} twice")));
        }
    }
    if found != count {
        return Err(not_whole(
            "its directory has another number of entries than it says",
        ));
    }
    Ok(entries)
}

/// The entry of the first record of `rest`, and the record's length; none if it is no record.
fn entry(file: &WeightFile, rest: &[u8]) -> Option<Result<(String, Entry, usize), WeightsError>> {
    let record = Fields(rest);
    if !rest.starts_with(b"PK\x01\x02") {
        return None;
    }
    let [name, extra, comment] = [28, 30, 32].map(|at| record.u16(at).map(|n| n as usize));
    let (name, extra, comment) = (name?, extra?, comment?);
    let all = RECORD + name + extra + comment;
    let mut more = rest.get(RECORD + name..RECORD + name + extra)?;
    let name = rest.get(RECORD..RECORD + name)?;
    rest.get(..all)?;
    let (mut length, mut packed, mut start) = (record.u32(24)?, record.u32(20)?, record.u32(42)?);
    // In a large archive the numbers that have all bits set follow elsewhere, in this order.
    while let (Some(kind), Some(n)) = (Fields(more).u16(0), Fields(more).u16(2)) {
        let n = n as usize;
        let mut numbers = more.get(4..4 + n)?;
        more = &more[4 + n..];
        if kind != 1 {
            continue;
        }
        for number in [&mut length, &mut packed, &mut start] {
            if *number == u64::from(u32::MAX) {
                *number = Fields(numbers).u64(0)?;
                numbers = &numbers[8..];
            }
        }
    }
    let name = String::from_utf8_lossy(name).into_owned();
    let (flags, method, crc32) = (record.u16(8)?, record.u16(10)?, record.u32(16)?);
    if method != 0 || flags & 1 != 0 || length != packed {
        return Some(Err(file.damaged(format!(
            "{name:?} in it is compressed, which torch.save does not do: save the model again"
        ))));
    }
    // Names may be longer here.
    let header = match file.bytes(start, 30) {
        Ok(header) => header,
        Err(error) => return Some(Err(error)),
    };
    let header = Fields(&header);
    if !header.0.starts_with(b"PK\x03\x04") {
        return None;
    }
    let start = start + 30 + header.u16(26)? + header.u16(28)?;
    if start.checked_add(length).is_none_or(|end| end > file.len()) {
        return None;
    }
    let entry = Entry {
        start,
        length,
        crc32: crc32 as u32,
    };
    Some(Ok((name, entry, all)))
}

/// Numbers at their places in a record, the lowest byte first.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn number<const N: usize>(&self, at: usize) -> Option<u64> {
        let bytes = self.0.get(at..)?.first_chunk::<N>()?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |n, byte| (n << 8) | u64::from(*byte)),
        )
    }

    fn u16(&self, at: usize) -> Option<u64> {
        self.number::<2>(at)
    }

    fn u32(&self, at: usize) -> Option<u64> {
        self.number::<4>(at)
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.number::<8>(at)
    }
}
