//! Rotary position embedding.

use burn::tensor::{DType, Tensor};
use kernels::dense::rotary::{Rotary, reference};

use crate::support::*;

/// How the heads lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Rows,
    Sliced,
    /// As `[b, h, l, p]`.
    ByHead,
}

struct Case {
    /// `[b, l, h, p]`.
    shape: [usize; 4],
    r: usize,
    layout: Layout,
    dtype: DType,
}

impl Case {
    fn random(random: &mut Random) -> Self {
        let p = random.of(&[2, 5, 16, 40, 64]);
        let shape = [
            random.size(1, 3),
            random.of(&[1, 3, 33, 257]),
            random.size(1, 5),
            p,
        ];
        Self {
            shape,
            r: random.size(1, p / 2),
            layout: random.of(&[Layout::Rows, Layout::Sliced, Layout::ByHead]),
            dtype: random.of(&dtypes()),
        }
    }

    fn check(&self, random: &mut Random) {
        let ([b, l, h, p], r) = (self.shape, self.r);
        let by_head = self.layout == Layout::ByHead;
        let shape = if by_head { [b, h, l, p] } else { self.shape };
        let x = random.values(shape, 2.0, self.dtype);
        let cos = random.values([l, r], 1.0, DType::F32);
        let sin = random.values([l, r], 1.0, DType::F32);
        let exact = if by_head {
            x.exact().swap_dims(1, 2)
        } else {
            x.exact()
        };
        let heads = random.size(0, h);
        let exact_heads = reference::of_heads(exact.clone(), cos.exact(), sin.exact(), heads);
        let exact = reference::forward(exact, cos.exact(), sin.exact());
        let exact = vec![output("y", exact), output("of heads", exact_heads)];
        let run = || {
            let x = || -> Tensor<Cube, 4> {
                match self.layout {
                    Layout::Rows => x.cube(),
                    Layout::Sliced => x.sliced(),
                    Layout::ByHead => x.cube().swap_dims(1, 2),
                }
            };
            let y = Cube::rotary_forward(x(), cos.cube(), sin.cube());
            assert_eq!(y.dtype(), self.dtype);
            // Of a tensor that is nothing else's, and of one that must stay as it is.
            let turned = Cube::rotary_of_heads(x(), cos.cube(), sin.cube(), heads);
            let kept = x();
            let copy = Cube::rotary_of_heads(kept.clone(), cos.cube(), sin.cube(), heads);
            assert_eq!(copy.into_data(), turned.clone().into_data());
            assert_eq!(kept.into_data(), x().into_data());
            vec![output("y", y), output("of heads", turned)]
        };
        let name = format!(
            "rotary {:?}, {r} pairs, {:?}, {:?}",
            self.shape, self.layout, self.dtype
        );
        check(&name, tolerance(self.dtype), exact, run);
    }
}

#[test]
fn rotary_is_right() {
    with_device(|| {
        for dtype in dtypes() {
            for (shape, r, layout) in [
                ([1, 1, 1, 2], 1, Layout::Rows),
                ([2, 300, 4, 64], 16, Layout::Rows),
                ([2, 3, 4, 64], 16, Layout::ByHead),
                ([1, 7, 3, 64], 32, Layout::Sliced),
                ([3, 5, 2, 20], 3, Layout::Rows),
            ] {
                let case = Case {
                    shape,
                    r,
                    layout,
                    dtype,
                };
                case.check(&mut Random::new(r as u64));
            }
        }
    });
}

#[test]
fn rotary_is_right_on_random_shapes() {
    with_device(|| {
        for mut random in random_cases() {
            Case::random(&mut random).check(&mut random);
        }
    });
}
