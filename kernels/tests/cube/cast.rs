//! Many tensors in another dtype.

use crate::support::*;

/// More tensors than a launch takes, of every dtype, some of them of the one that is asked for.
#[test]
fn casts_are_those_of_each_tensor() {
    with_device(|| {
        let mut random = Random::new(19);
        let dtypes = dtypes();
        let sizes = (0..45).map(|i| [1, 8, 33, 4096, 100_003][i % 5]);
        let values: Vec<Values<1>> = sizes
            .enumerate()
            .map(|(i, size)| random.values([size], 1.0, dtypes[i % dtypes.len()]))
            .collect();
        for &dtype in &dtypes {
            let xs = || values.iter().map(Values::cube);
            let expected: Vec<_> = xs().map(|x| x.cast(dtype).into_data()).collect();
            let xs = xs().collect();
            poison();
            let found = kernels::cast_all::<Cube>(xs, dtype);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.into_iter().zip(expected) {
                assert_eq!(found.into_data(), expected, "to {dtype:?}");
            }
        }
    });
}
