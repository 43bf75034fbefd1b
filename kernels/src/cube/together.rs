//! Many tensors in one launch. Most parameters of a network are so small that a launch for each takes longer than its
//! work. Each cube of such a launch works on one tensor; the tensors' cubes follow each other.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

/// Tensors of a launch, at most.
const MOST: usize = 16;

/// How many tensors a launch may take, if it binds `arrays` buffers for each and `others` besides. One buffer is
/// CubeCL's own.
pub(crate) fn most<R: CubeRuntime>(like: &CubeTensor<R>, arrays: usize, others: usize) -> usize {
    let bindings = like.client.properties().hardware.max_bindings as usize;
    (bindings.saturating_sub(others + 1) / arrays).clamp(1, MOST)
}

/// `items` in groups of one key each, of at most `most`; groups and their items in the order in which they came.
pub(crate) fn groups<T, K: PartialEq>(
    items: impl IntoIterator<Item = T>,
    most: usize,
    key: impl Fn(&T) -> K,
) -> Vec<Vec<T>> {
    let mut groups: Vec<(K, Vec<T>)> = vec![];
    for item in items {
        let own = key(&item);
        let open = groups.iter_mut().rev().find(|(key, _)| *key == own);
        match open {
            Some((_, group)) if group.len() < most => group.push(item),
            _ => groups.push((own, vec![item])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// For each tensor of a launch, the cube behind its last, from the cubes that each has.
pub(crate) fn ends(cubes: impl IntoIterator<Item = usize>) -> Vec<u32> {
    let sum = |end: &mut u32, cubes: usize| {
        *end += cubes as u32;
        Some(*end)
    };
    cubes.into_iter().scan(0, sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_keep_the_order() {
        let items = [1, 2, 11, 3, 12, 4, 5];
        let found = groups(items, 3, |item| item / 10);
        assert_eq!(found, [vec![1, 2, 3], vec![11, 12], vec![4, 5]]);
        assert_eq!(groups(items, 1, |_| ()).len(), 7);
        assert!(groups([0; 0], 3, |_| ()).is_empty());
    }

    #[test]
    fn cubes_follow_each_other() {
        assert_eq!(ends([2, 1, 5]), [2, 3, 8]);
    }
}
