//! Files that are tokenised together.

use super::Input;

/// Files are taken together until they have this size on disk. It makes one group of a folder of small files, and one
/// of each file of a published data set, which have some hundred megabytes.
pub(crate) const GROUP_BYTES: u64 = 256 << 20;

/// `inputs` in groups of consecutive files, each of `group_bytes` or just above, the last of what is left. A file that
/// is fetched is a group.
///
/// The groups depend on nothing but the sizes of the files and their order, so that processes which share the work
/// make the same.
pub(crate) fn groups(inputs: Vec<Input>, group_bytes: u64) -> Vec<Vec<Input>> {
    let mut groups: Vec<Vec<Input>> = Vec::new();
    let mut room = 0;
    for input in inputs {
        let bytes = if input.is_remote() {
            u64::MAX
        } else {
            input.file.bytes
        };
        match groups.last_mut() {
            Some(group) if room > 0 && !input.is_remote() => group.push(input),
            _ => {
                groups.push(vec![input]);
                room = group_bytes.max(1);
            }
        }
        room = room.saturating_sub(bytes);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::super::{Remote, Source, SourceFile, inputs};
    use super::*;

    fn local(bytes: u64) -> Input {
        SourceFile {
            path: "a.txt".into(),
            bytes,
            modified_ns: 0,
            column: "text".into(),
        }
        .into()
    }

    #[test]
    fn small_files_are_taken_together() {
        let sizes = [1, 2, 0, 3, 100, 7, 7];
        let groups = groups(sizes.map(local).into(), 6);
        let sizes: Vec<Vec<u64>> = groups
            .iter()
            .map(|group| group.iter().map(|input| input.file.bytes).collect())
            .collect();
        assert_eq!(sizes, [vec![1, 2, 0, 3], vec![100], vec![7], vec![7]]);
    }

    #[test]
    fn what_is_fetched_is_alone() {
        let remote = Source::remote(Remote {
            names: vec!["hub:a/1.txt".into(), "hub:a/2.txt".into()],
            fetch: Box::new(|_| Err("no".into())),
        });
        let mut all = vec![local(1)];
        all.extend(inputs(&[remote]).unwrap());
        all.push(local(1));
        let lengths: Vec<usize> = groups(all, 100).iter().map(Vec::len).collect();
        assert_eq!(lengths, [1, 1, 1, 1]);
    }
}
