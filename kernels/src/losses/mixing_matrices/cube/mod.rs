//! As CubeCL kernels, tile by tile: device memory linear in the length.
//!
//! With `X = T - A`, the gradients are sums over `X` times terms that depend only on one element, except for one factor
//! of each head, `1 / (||X|| b h)`, which is known only after all of `X` has been computed. So the kernels are:
//!
//! 1. the running sums of the log-decays, and the softmax's denominators;
//! 2. a pass over the tiles of each block of rows: squares, the gradient to C, sums along rows;
//! 3. a pass over the tiles of each block of columns: the gradient to B, sums along columns;
//! 4. each head's distance and factor, the gradients to a_log and D, and the heads of a group together.
//!
//! The student's matrix is computed twice and the teacher's three times. This costs less than to write one of them to
//! memory once.

mod decay;
mod launch;
mod mma;
mod normaliser;
mod tiles;
mod variant;

use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};

use self::launch::{forward, with_gradients};
use super::{AttentionParts, MixingMatrices, TransferParts, reference};
use crate::cube::documents::{read, starts};
use crate::cube::{computes_in_f32, in_vectors, inner, tensor};

/// Units of a cube.
const UNITS: usize = 256;
/// Statistics of a row that the passes read.
const STATS: usize = 4;
/// Sums along a row or column that they write.
const SUMS: usize = 4;

impl<R, F, I, T> MixingMatrices for CubeBackend<R, F, I, T>
where
    R: CubeRuntime,
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn mixing_distance_forward(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> Tensor<Self, 1> {
        if fits(&student, &teacher) && read(&teacher.documents) {
            tensor(forward(Operands::new(student, teacher)))
        } else {
            reference::forward(student, teacher)
        }
    }

    fn mixing_distance_with_gradients(
        student: TransferParts<Self>,
        teacher: AttentionParts<Self>,
    ) -> (Tensor<Self, 1>, TransferParts<Self>) {
        if !fits(&student, &teacher) || !read(&teacher.documents) {
            return reference::with_gradients(student, teacher);
        }
        let (loss, gradients) = with_gradients(Operands::new(student, teacher));
        let gradients = TransferParts {
            a_log: tensor(gradients.a_log),
            b: tensor(gradients.b),
            c: tensor(gradients.c),
            d: tensor(gradients.d),
        };
        (tensor(loss), gradients)
    }
}

/// Whether the kernels support these inputs: B and C of one dtype, q and k of one, and no window.
fn fits<B: Backend>(student: &TransferParts<B>, teacher: &AttentionParts<B>) -> bool {
    let (b, q) = (student.b.dtype(), teacher.q.dtype());
    let all = [student.a_log.dtype(), student.d.dtype(), b, q];
    let alike = student.c.dtype() == b && teacher.k.dtype() == q;
    all.into_iter().all(computes_in_f32) && alike && teacher.window.is_none()
}

/// The op's inputs on the device.
struct Operands<R: CubeRuntime> {
    a_log: CubeTensor<R>,
    b: CubeTensor<R>,
    c: CubeTensor<R>,
    /// Without gaps.
    d: CubeTensor<R>,
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    /// The starts of documents, `[b, l]`.
    starts: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Operands<R> {
    fn new<B>(student: TransferParts<B>, teacher: AttentionParts<B>) -> Self
    where
        B: Backend<FloatTensorPrimitive = CubeTensor<R>, IntTensorPrimitive = CubeTensor<R>>,
    {
        Self {
            a_log: inner(student.a_log),
            b: inner(student.b),
            c: inner(student.c),
            d: into_contiguous(inner(student.d)),
            q: inner(teacher.q),
            k: inner(teacher.k),
            starts: starts(teacher.documents),
        }
    }

    /// With rows that are read 16 bytes at a time.
    fn in_vectors(self) -> Self {
        Self {
            b: in_vectors(self.b),
            c: in_vectors(self.c),
            q: in_vectors(self.q),
            k: in_vectors(self.k),
            ..self
        }
    }
}

#[cfg(all(test, feature = "reference"))]
mod tests {
    use burn_ndarray::NdArray;

    use super::*;

    fn fits_on<B: Backend>() -> bool {
        let device = Default::default();
        let four = || Tensor::<B, 4>::zeros([1, 2, 1, 2], &device);
        let student = TransferParts {
            a_log: Tensor::zeros([1, 2, 1], &device),
            b: four(),
            c: four(),
            d: Tensor::zeros([1], &device),
        };
        let teacher = AttentionParts {
            q: four(),
            k: four(),
            window: None,
            documents: None,
        };
        fits(&student, &teacher)
    }

    #[test]
    fn only_what_is_computed_in_f32_fits() {
        assert!(fits_on::<NdArray<f32>>());
        assert!(!fits_on::<NdArray<f64>>());
    }
}
