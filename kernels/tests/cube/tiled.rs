//! The product in tiles by itself, on whichever CubeCL backend this build has, and whichever product its layers take.

use burn::tensor::{DType, Tensor};
use kernels::dense::linear::tiled;

use crate::support::*;

/// What a factor `[rows, depth]` is to the product.
#[derive(Clone, Copy, Debug)]
enum View {
    /// As it lies.
    Rows,
    /// The transpose of what lies in memory.
    Turned,
    /// One row that stands for all of them.
    Repeated,
}

impl View {
    fn exact(self, x: &Values<2>) -> Tensor<Exact, 2> {
        let [rows, depth] = x.exact().dims();
        match self {
            Self::Rows | Self::Turned => x.exact(),
            Self::Repeated => x.exact().narrow(0, 0, 1).expand([rows, depth]),
        }
    }

    fn cube(self, x: &Values<2>) -> Tensor<Cube, 2> {
        let [rows, depth] = x.exact().dims();
        match self {
            Self::Rows => x.cube(),
            Self::Turned => {
                let turned = x.cube().transpose().reshape([rows * depth]);
                turned.reshape([depth, rows]).transpose()
            }
            Self::Repeated => x.cube().narrow(0, 0, 1).expand([rows, depth]),
        }
    }
}

fn check_product([m, k, n]: [usize; 3], views: [View; 2], dtype: DType, random: &mut Random) {
    let (a, b) = (
        random.values([m, k], 1.0, dtype),
        random.values([n, k], 1.0, dtype),
    );
    let exact = views[0].exact(&a).matmul(views[1].exact(&b).transpose());
    let name = format!("{m} x {k} x {n}, {views:?}, {dtype:?}");
    check(&name, tolerance(dtype), vec![output("y", exact)], || {
        let y = tiled::product(views[0].cube(&a), views[1].cube(&b));
        vec![output("y", y.expect("it takes these dtypes"))]
    });
}

#[test]
fn factors_are_read_where_they_lie() {
    with_device(|| {
        let mut random = Random::new(1);
        for dtype in dtypes() {
            for a in [View::Rows, View::Turned] {
                for b in [View::Rows, View::Turned, View::Repeated] {
                    check_product([72, 40, 36], [a, b], dtype, &mut random);
                }
            }
            // No four of these are neighbours.
            check_product([67, 33, 35], [View::Turned, View::Rows], dtype, &mut random);
            check_product([1, 5, 1], [View::Rows; 2], dtype, &mut random);
        }
    });
}

/// The contracted axis is cut where an output has few tiles, at a multiple of a kernel's depth.
#[test]
fn shares_are_added_up() {
    with_device(|| {
        let mut random = Random::new(2);
        for dtype in dtypes() {
            check_product([8, 520, 12], [View::Rows; 2], dtype, &mut random);
            check_product([7, 1031, 5], [View::Rows; 2], dtype, &mut random);
        }
    });
}

/// Large tiles are taken where there are many of them; the first of these has more rows of tiles than follow each
/// other, and the second one row of them.
#[test]
fn many_tiles_are_right() {
    with_device(|| {
        let mut random = Random::new(3);
        for dtype in dtypes() {
            let turned = [View::Turned; 2];
            check_product([1096, 20, 1900], turned, dtype, &mut random);
            check_product([3, 36, 16_300], [View::Rows; 2], dtype, &mut random);
        }
    });
}

#[test]
fn other_dtypes_are_left_to_others() {
    with_device(|| {
        let ones = || Tensor::<Cube, 2>::ones([2, 0], &Default::default());
        assert!(
            tiled::product(ones(), ones()).is_none(),
            "nothing to contract"
        );
    });
}
