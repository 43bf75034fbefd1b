//! How a backend gets an op by the default bodies of the op's trait alone.

/// `by_default!(Op for ndarray, flex, cube)`: these backends compute `Op` by its reference.
macro_rules! by_default {
    ($op:ident for $($backend:ident),+) => {
        $(by_default!(@ $backend $op);)+
    };
    (@ ndarray $op:ident) => {
        #[cfg(feature = "reference")]
        impl<E, I, Q> $op for burn_ndarray::NdArray<E, I, Q>
        where
            E: burn_ndarray::FloatNdArrayElement,
            I: burn_ndarray::IntNdArrayElement,
            Q: burn_ndarray::QuantElement,
            burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<E>>,
            burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<I>>,
        {
        }
    };
    (@ flex $op:ident) => {
        #[cfg(feature = "flex")]
        impl $op for burn_flex::Flex {}
    };
    (@ cube $op:ident) => {
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        impl<R, F, I, T> $op for burn_cubecl::CubeBackend<R, F, I, T>
        where
            R: burn_cubecl::CubeRuntime,
            F: burn_cubecl::FloatElement,
            I: burn_cubecl::IntElement,
            T: burn_cubecl::BoolElement,
        {
        }
    };
    (@ autodiff $op:ident) => {
        impl<B, C> $op for burn::backend::Autodiff<B, C>
        where
            B: $op,
            C: burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy,
        {
        }
    };
}
