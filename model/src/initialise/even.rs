//! A calibrated copy whose B and C have the same size.
//!
//! It computes the same function as a calibrated copy, but trains differently. Keys are large; queries, multiplied by
//! the scale of the attention and that of the scan, are small: 40 to 120 times smaller in the first layer of
//! SmolLM2-135M. Adam makes steps of the same size in B and in C. A step in one factor changes the product in
//! proportion to the other factor, so the step in the small C changes it most. If both have the same size, the largest
//! change is as small as possible.

use burn::tensor::{Int, Tensor};
use kernels::KernelBackend;

use super::calibrated::{self, Calibrated, options};
use super::{Fit, InitError, Initialise, Stop, each_layer, layers};
use crate::lm::CausalLm;
use crate::mixers::attention::AttentionConfig;
use crate::mixers::discrete_mamba2::{DiscreteMamba2, DiscreteMamba2Config};

/// The largest factor between B and C that is evened out.
const LARGEST: f64 = 1e3;

pub(super) struct Even;

impl Initialise for Even {
    fn options(
        &self,
        mixer: DiscreteMamba2Config,
        of_teacher: &AttentionConfig,
        d_model: usize,
    ) -> DiscreteMamba2Config {
        options(mixer, of_teacher, d_model)
    }

    fn reads_text(&self) -> bool {
        true
    }

    fn check<B: KernelBackend>(
        &self,
        student: &CausalLm<B>,
        teacher: &CausalLm<B>,
    ) -> Result<(), InitError> {
        calibrated::check_plain(student, teacher)
    }

    fn initialise<B: KernelBackend>(
        &self,
        student: &mut CausalLm<B>,
        teacher: &CausalLm<B>,
        text: &[Tensor<B, 2, Int>],
        stop: Stop<'_>,
    ) -> Result<Vec<Fit>, InitError> {
        let fits = Calibrated.initialise(student, teacher, text, stop)?;
        let layers = layers(student, teacher);
        // One piece of text says enough of two sizes.
        each_layer(teacher, text[0].clone(), stop, |layer, u| {
            if layers.contains(&layer) {
                let mamba = student.backbone.layers[layer].mixer.mamba_mut();
                even_out(mamba.expect("a layer"), u, &[]);
            }
        })?;
        Ok(fits)
    }
}

/// Gives B and C of each head the same mean square on `u [b, l, d_model]`, where C is to be scaled by its head's number
/// of `scales` afterwards; none says 1 for all. A mixer with norms of B and C stays as it is.
pub(super) fn even_out<B: KernelBackend>(
    mamba: &mut DiscreteMamba2<B>,
    u: Tensor<B, 3>,
    scales: &[f64],
) {
    if mamba.b_norm.is_some() || mamba.c_norm.is_some() {
        return;
    }
    let [of_b, of_c] = mamba.squares_of_b_and_c(u);
    let both = of_b.iter().zip(&of_c).enumerate();
    let factors = both.map(|(head, (b, c))| {
        let scale = scales.get(head).copied().unwrap_or(1.0);
        factor(*b, *c * scale * scale)
    });
    mamba.shift_from_b_to_c(&factors.collect::<Vec<_>>());
}

/// The factor by which C grows and B shrinks so that their mean squares, `of_b` and `of_c`, become the same. 1 where one
/// of them is nothing.
fn factor(of_b: f64, of_c: f64) -> f64 {
    let factor = (of_b / of_c).powf(0.25);
    if factor.is_finite() && factor > 0.0 {
        factor.clamp(1.0 / LARGEST, LARGEST)
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::{LARGEST, factor};

    #[test]
    fn sizes_become_the_same() {
        // Mean squares of 16 and 1: numbers of 4 and 1 become 2 and 2.
        let of_c = factor(16.0, 1.0);
        assert_eq!((of_c, 4.0 / of_c), (2.0, 2.0));
        assert_eq!(factor(0.0, 1.0), 1.0);
        assert_eq!(factor(1.0, 0.0), 1.0);
        assert_eq!(factor(0.0, 0.0), 1.0);
        assert_eq!(factor(1e30, 1e-30), LARGEST);
    }
}
