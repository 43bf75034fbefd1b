//! The methods by which an initialisation reads and sets the mixer's parameters.

use burn::tensor::Tensor;
use kernels::{KernelBackend, TransferParts};

use super::{DiscreteMamba2, Rows};
use crate::mixers::TokenMixer;
use crate::mixers::rotary::Positions;
use crate::precision::{to_dtype, widen};

/// A scale below this, alone or as a share of the other, is rounding.
const ROUNDING: f64 = 1e-6;

/// The scale of a head's columns of the output projection and its D, for which `columns * (scan + D x)` is
/// `of_scan * scan + of_x * x`. A head whose scales are nothing but rounding gives nothing, and no quotient of two of
/// them; beside x alone the scan keeps so little that D stays finite.
fn columns_and_d(of_scan: f64, of_x: f64) -> (f64, f64) {
    if of_scan.abs().max(of_x.abs()) < ROUNDING {
        return (0.0, 0.0);
    }
    let least = ROUNDING * of_x.abs();
    let columns = if of_scan.abs() < least {
        least
    } else {
        of_scan
    };
    (columns, of_x / columns)
}

impl<B: KernelBackend> DiscreteMamba2<B> {
    /// Of `u [b, l, d_model]`, the terms of which the mixer's output before the gate is a sum, `[b, l, h, p]` each:
    /// the scan, and x, which D scales. With `constant` also the scan with products of B and C that are 1
    /// everywhere.
    pub(crate) fn features(&self, u: Tensor<B, 3>, constant: bool) -> Vec<Tensor<B, 4>> {
        let first = Positions::From(0);
        let x = self.x_at(self.convolved(u.clone(), self.x_rows(), &None), first);
        let b = self.convolved(u.clone(), self.b_rows(), &None);
        let b = self.b_at(b, self.projected_gate(&u), first);
        let c = self.c_at(self.convolved(u.clone(), self.c_rows(), &None), first);
        let a_log = self.a_log(self.projected(u, self.a_log_rows()));
        let scan = |b: Tensor<B, 4>, c: Tensor<B, 4>| {
            let chunk = self.config.chunk_size;
            kernels::scan::ssd::ssd_scan(x.clone(), a_log.clone(), b, c, None, chunk).0
        };
        let mut features = vec![scan(b.clone(), c), x.clone()];
        if constant {
            let first = b.clone().narrow(3, 0, 1).ones_like();
            let n = b.dims()[3];
            let one = if n > 1 {
                let rest = b.narrow(3, 1, n - 1).zeros_like();
                Tensor::cat(vec![first, rest], 3)
            } else {
                first
            };
            features.push(scan(one.clone(), one));
        }
        features
    }

    /// Gives each head's terms these scales: of the scan and of x, in the order of [`features`](Self::features); and
    /// where there is a third, makes the freed channel give the constant times that.
    pub(crate) fn set_scales(&mut self, scales: &[Vec<f64>]) {
        let of = |i: usize| -> Vec<f64> { scales.iter().map(|scales| scales[i]).collect() };
        let (of_scan, of_x) = (of(0), of(1));
        if self.c_norm.is_some() || !self.config.feature_map.is_identity() {
            // A norm takes away the scale of C, and behind a map it is another one: the output projection gets it, whose
            // heads D then joins in.
            let weight = self.out_proj.weight.val();
            let each = self.d_inner / scales.len();
            let heads = of_scan.iter().zip(&of_x);
            let heads = heads.map(|(scan, x)| columns_and_d(*scan, *x));
            let (columns, d): (Vec<f64>, Vec<f64>) = heads.unzip();
            let columns = columns
                .iter()
                .flat_map(|scale| std::iter::repeat_n(*scale, each));
            let columns: Vec<f64> = columns.collect();
            let columns = self.numbers(&columns).reshape([1, self.d_inner]);
            set(&mut self.out_proj.weight, weight * columns);
            let d = self.numbers(&d);
            set(&mut self.d, d);
            return;
        }
        let n = self.config.d_state;
        let rows = of_scan
            .iter()
            .flat_map(|scale| std::iter::repeat_n(*scale, n));
        let rows = self.numbers(&rows.collect::<Vec<_>>());
        self.scale_rows(self.c_rows(), rows);
        let d = self.numbers(&of_x);
        set(&mut self.d, d);
        if scales[0].len() > 2 {
            self.set_constant_channel(&of(2));
        }
    }

    /// What the gate multiplies, of `u [b, l, d_model]`: the scan and D x, `[b, l, h, p]`.
    pub(crate) fn ungated(&self, u: Tensor<B, 3>) -> Tensor<B, 4> {
        let mut terms = self.features(u, false).into_iter();
        let (scan, x) = (terms.next().expect("two"), terms.next().expect("two"));
        let h = x.dims()[2];
        scan + x * self.d.val().reshape([1, 1, h, 1])
    }

    /// Adds to what the gate of each head reads a product with u, and a constant behind it: `gates` has `d_model + 1`
    /// numbers for each head. Every gate must have a bias.
    pub(crate) fn add_to_gates(&mut self, gates: &[Vec<f64>]) {
        let [all, d] = self.in_proj.weight.dims();
        let z = self.z_rows();
        let p = z.n / gates.len();
        let each = gates.iter().flat_map(|gate| std::iter::repeat_n(gate, p));
        let rows: Vec<f64> = each
            .clone()
            .flat_map(|gate| gate[..d].iter().copied())
            .collect();
        let biases: Vec<f64> = each.map(|gate| gate[d]).collect();
        let end = z.start + z.n;
        let weight = self.in_proj.weight.val();
        let own = weight.clone().narrow(0, z.start, z.n) + self.numbers(&rows).reshape([z.n, d]);
        let before = weight.clone().narrow(0, 0, z.start);
        let after = weight.narrow(0, end, all - end);
        let rows = Tensor::cat(vec![before, own, after], 0);
        set(&mut self.in_proj.weight, rows);
        let biases = self.numbers(&biases);
        match (&mut self.z_bias, &mut self.in_proj.bias) {
            (Some(bias), _) => {
                let value = bias.val() + biases;
                set(bias, value);
            }
            (None, Some(bias)) => {
                let all_biases = bias.val();
                let own = all_biases.clone().narrow(0, z.start, z.n) + biases;
                let before = all_biases.clone().narrow(0, 0, z.start);
                let after = all_biases.narrow(0, end, all - end);
                set(bias, Tensor::cat(vec![before, own, after], 0));
            }
            (None, None) => {}
        }
    }

    /// Of `u [b, l, d_model]`, the mean square of the numbers of B and of those of C, of each head.
    pub(crate) fn squares_of_b_and_c(&self, u: Tensor<B, 3>) -> [Vec<f64>; 2] {
        let TransferParts { b, c, .. } = self.transfer_parts(u).expect("a state-space mixer");
        [b, c].map(|x_blgn| {
            let x_blgn = widen(x_blgn);
            let [b, l, g, n] = x_blgn.dims();
            let squares = x_blgn.powi_scalar(2).sum_dim(3).sum_dim(1).sum_dim(0);
            let squares = squares.into_data();
            let numbers = (b * l * n) as f64;
            let squares: Vec<f64> = squares.iter::<f64>().map(|sum| sum / numbers).collect();
            debug_assert_eq!(squares.len(), g);
            squares
        })
    }

    /// Multiplies each head's C by its factor, and divides its B by that: their products stay as they are. For a mixer
    /// without norms of B and C.
    pub(crate) fn shift_from_b_to_c(&mut self, factors: &[f64]) {
        let n = self.config.d_state;
        let each = |of: fn(f64) -> f64| -> Vec<f64> {
            let heads = factors.iter().map(|factor| of(*factor));
            heads
                .flat_map(|factor| std::iter::repeat_n(factor, n))
                .collect()
        };
        let (of_c, of_b) = (each(|factor| factor), each(f64::recip));
        let (of_c, of_b) = (self.numbers(&of_c), self.numbers(&of_b));
        self.scale_rows(self.c_rows(), of_c);
        self.scale_rows(self.b_rows(), of_b);
    }

    /// Multiplies some rows of the input projection that the convolution reads, and their biases, by `scales`, one a
    /// row.
    fn scale_rows(&mut self, of: Rows, scales: Tensor<B, 1>) {
        let weight = self.in_proj.weight.val();
        let scaled = |all: Tensor<B, 2>| {
            let n = all.dims()[0];
            let own = all.clone().narrow(0, of.start, of.n);
            let own = own * scales.clone().reshape([of.n, 1]);
            let mut parts = vec![all.clone().narrow(0, 0, of.start), own];
            if of.start + of.n < n {
                let end = of.start + of.n;
                parts.push(all.narrow(0, end, n - end));
            }
            Tensor::cat(parts, 0)
        };
        set(&mut self.in_proj.weight, scaled(weight));
        let biases = [&mut self.in_proj.bias, &mut self.conv1d.bias];
        for bias in biases.into_iter().flatten() {
            let all = bias.val();
            let n = all.dims()[0];
            let value = scaled(all.reshape([n, 1])).reshape([n]);
            set(bias, value);
        }
    }

    /// The channel of each head's B and C that means least: the last one where the state has more than the attention's
    /// heads, which turns nothing, or else the one that turns slowest.
    fn constant_channel(&self) -> usize {
        let (n, p) = (self.config.d_state, self.d_inner / self.config.n_v_heads);
        match &self.config.rotary {
            Some(rotary) if n <= p => rotary.dim / 2 - 1,
            _ => n - 1,
        }
    }

    /// 1 everywhere but for [`constant_channel`](Self::constant_channel), in the rows of B and C alone: `[conv_dim]`.
    fn without_channel(&self) -> Vec<f64> {
        let (channel, n) = (self.constant_channel(), self.config.d_state);
        let keep = |i: usize| {
            let is_freed = i >= self.d_inner && (i - self.d_inner) % n == channel;
            if is_freed { 0.0 } else { 1.0 }
        };
        (0..self.conv_dim()).map(keep).collect()
    }

    /// Makes the channel of B and C that means least zero. It can become a constant where B and C have no norms
    /// and the convolution has a bias.
    pub(crate) fn free_constant_channel(&mut self) {
        let kept = self.without_channel();
        let rest = self.in_proj.weight.dims()[0] - kept.len();
        let all: Vec<f64> = kept
            .iter()
            .copied()
            .chain(std::iter::repeat_n(1.0, rest))
            .collect();
        let rows = self.numbers(&all);
        let weight = self.in_proj.weight.val() * rows.clone().reshape([all.len(), 1]);
        set(&mut self.in_proj.weight, weight);
        if let Some(bias) = &mut self.in_proj.bias {
            let value = bias.val() * rows;
            set(bias, value);
        }
        let kept = self.numbers(&kept);
        if let Some(bias) = &mut self.conv1d.bias {
            let value = bias.val() * kept;
            set(bias, value);
        }
    }

    /// Gives the freed channel a constant product of B and C in each head.
    fn set_constant_channel(&mut self, of_heads: &[f64]) {
        let (channel, n) = (self.constant_channel(), self.config.d_state);
        let mut values = vec![0.0; self.conv_dim()];
        for (head, product) in of_heads.iter().enumerate() {
            let root = product.abs().sqrt();
            values[self.b_rows().start + head * n + channel] = root;
            values[self.c_rows().start + head * n + channel] = root * product.signum();
        }
        let values = self.numbers(&values);
        if let Some(bias) = &mut self.conv1d.bias {
            let value = bias.val() + values;
            set(bias, value);
        }
    }

    /// `values` in the dtype and on the device of the parameters.
    fn numbers(&self, values: &[f64]) -> Tensor<B, 1> {
        let d = self.d.val();
        let data = burn::tensor::TensorData::new(values.to_vec(), [values.len()]);
        Tensor::from_data(data, (&d.device(), d.dtype()))
    }
}

/// Puts `value` into `parameter`, which keeps its id and its dtype.
fn set<B: KernelBackend, const D: usize>(
    parameter: &mut burn::module::Param<Tensor<B, D>>,
    value: Tensor<B, D>,
) {
    let dtype = parameter.val().dtype();
    *parameter = burn::module::Param::initialized(parameter.id, to_dtype(value, dtype));
}

#[cfg(test)]
mod tests {
    use super::columns_and_d;

    #[test]
    fn what_is_rounding_gives_no_noise() {
        assert_eq!(columns_and_d(0.5, -2.0), (0.5, -4.0));
        assert_eq!(columns_and_d(0.0, 0.0), (0.0, 0.0));
        assert_eq!(columns_and_d(3e-17, -2e-16), (0.0, 0.0));
        // x alone, and next to nothing of the scan.
        let (columns, d) = columns_and_d(0.0, -2.0);
        assert!(columns > 0.0 && columns < 1e-5, "{columns}");
        assert!((columns * d + 2.0).abs() < 1e-12, "{d}");
    }
}
