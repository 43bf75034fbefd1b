//! How cuBLASLt solves a problem: descriptors of the operation and its matrices, and the algorithm that the
//! library's heuristic puts first.

use std::ffi::c_void;
use std::ptr;

use burn::tensor::DType;
use cudarc::cublaslt::result as lt;
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t::CUBLAS_COMPUTE_32F, cublasLtEpilogue_t::*,
    cublasLtMatmulDescAttributes_t::*, cublasLtMatmulPreferenceAttributes_t::*,
    cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, cudaDataType,
};
use cudarc::driver::sys as cuda;

use super::super::column_major::{Epilogue, Problem};
use super::queue::{WORKSPACE, failed};

/// How a problem is solved.
pub(super) struct Plan {
    operation: Operation,
    a: Layout,
    b: Layout,
    c: Layout,
    d: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    /// For products that use the workspace and no more.
    ///
    /// # Errors
    /// What the library says if it has no algorithm for the problem.
    pub(super) fn new(
        handle: sys::cublasLtHandle_t,
        problem: &Problem,
        workspace: cuda::CUdeviceptr,
    ) -> Result<Self, lt::CublasError> {
        let Problem { m, n, epilogue, .. } = *problem;
        let dtype = match problem.dtype {
            DType::F32 => cudaDataType::CUDA_R_32F,
            DType::F16 => cudaDataType::CUDA_R_16F,
            DType::BF16 => cudaDataType::CUDA_R_16BF,
            _ => return Err(unsupported()),
        };
        let operation = Operation::new()?;
        // The library's `cublasOperation_t`: 0 is as it is, 1 transposed.
        operation.set(
            CUBLASLT_MATMUL_DESC_TRANSA,
            &i32::from(problem.a.transposed),
        )?;
        operation.set(
            CUBLASLT_MATMUL_DESC_TRANSB,
            &i32::from(problem.b.transposed),
        )?;
        // To the library a bias has an element for each row of D, which is a column in rows; its GELU is
        // the tanh form; and the sums of B over the contracted axis have one for each column of D.
        let epilogue = match epilogue {
            Epilogue::None => CUBLASLT_EPILOGUE_DEFAULT,
            Epilogue::Bias => CUBLASLT_EPILOGUE_BIAS,
            Epilogue::Gelu => CUBLASLT_EPILOGUE_GELU,
            Epilogue::BiasGelu => CUBLASLT_EPILOGUE_GELU_BIAS,
            Epilogue::SumLeft => CUBLASLT_EPILOGUE_BGRADB,
        };
        operation.set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        let [align_a, align_b, align_c, align_d, align_vector] = problem.alignments;
        if problem.epilogue.has_vector() {
            // For the heuristic alone, an address that is aligned as the vector will be.
            let example = workspace + u64::from(align_vector % 256);
            operation.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &example)?;
        }
        let layout = |sizes, distance| Layout::new(dtype, sizes, distance);
        let a = layout(problem.stored_a(), problem.a.distance)?;
        let b = layout(problem.stored_b(), problem.b.distance)?;
        let c = layout([m, n], problem.c.unwrap_or(problem.d))?;
        let d = layout([m, n], problem.d)?;

        let preference = Preference::new()?;
        preference.set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        let scheme = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme)?;
        preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &align_a)?;
        preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &align_b)?;
        preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &align_c)?;
        preference.set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &align_d)?;
        // SAFETY: all of these are alive.
        let found = unsafe {
            lt::get_matmul_algo_heuristic(handle, operation.0, a.0, b.0, c.0, d.0, preference.0)
        }?;
        if found.workspaceSize > WORKSPACE {
            return Err(unsupported());
        }
        Ok(Self {
            operation,
            a,
            b,
            c,
            d,
            algorithm: found.algo,
        })
    }

    /// Gives the product to the stream: A, B, D and, where the problem has them, C and the vector.
    ///
    /// # Errors
    /// What the library says, in words.
    pub(super) fn queue(
        &self,
        (handle, stream, workspace): (sys::cublasLtHandle_t, cuda::CUstream, cuda::CUdeviceptr),
        pointers: [Option<u64>; 5],
    ) -> Result<(), String> {
        let [Some(a), Some(b), c, Some(d), vector] = pointers else {
            return Err("a buffer is missing".into());
        };
        if let Some(vector) = vector {
            self.operation
                .set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &vector)
                .map_err(|error| failed("cublasLtMatmulDescSetAttribute", error))?;
        }
        let (one, keep) = (1.0f32, if c.is_some() { 1.0f32 } else { 0.0 });
        // SAFETY: the buffers hold matrices of the plan's layouts (what `Product` asks for), on the device
        // whose context is current; they and what the plan holds stay as the head of `cublaslt` says; the
        // factors are f32 on the host, as the scale type and the pointer mode are; the workspace is as
        // large as it is said to be.
        unsafe {
            lt::matmul(
                handle,
                self.operation.0,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&keep).cast(),
                a as *const c_void,
                self.a.0,
                b as *const c_void,
                self.b.0,
                c.unwrap_or(d) as *const c_void,
                self.c.0,
                d as *mut c_void,
                self.d.0,
                &self.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(|error| failed("cublasLtMatmul", error))
    }
}

fn unsupported() -> lt::CublasError {
    lt::CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)
}

/// What is multiplied how: sums in f32, factors in f32 on the host.
struct Operation(sys::cublasLtMatmulDesc_t);

impl Operation {
    fn new() -> Result<Self, lt::CublasError> {
        lt::create_matmul_desc(CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F).map(Self)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), lt::CublasError> {
        // SAFETY: the description is alive, and as many bytes are read as the value has.
        unsafe {
            let value = ptr::from_ref(value).cast();
            lt::set_matmul_desc_attribute(self.0, attribute, value, size_of::<T>())
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and destroyed once. A failure here changes no result, so it is ignored.
        let _ = unsafe { lt::destroy_matmul_desc(self.0) };
    }
}

/// A matrix in columns.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(
        dtype: cudaDataType,
        [rows, columns]: [usize; 2],
        distance: usize,
    ) -> Result<Self, lt::CublasError> {
        lt::create_matrix_layout(dtype, rows as u64, columns as u64, distance as i64).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and destroyed once. A failure here changes no result, so it is ignored.
        let _ = unsafe { lt::destroy_matrix_layout(self.0) };
    }
}

/// What the heuristic may choose from.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, lt::CublasError> {
        lt::create_matmul_pref().map(Self)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), lt::CublasError> {
        // SAFETY: the preference is alive, and as many bytes are read as the value has.
        unsafe {
            let value = ptr::from_ref(value).cast();
            lt::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>())
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and destroyed once. A failure here changes no result, so it is ignored.
        let _ = unsafe { lt::destroy_matmul_pref(self.0) };
    }
}
