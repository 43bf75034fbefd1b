//! The devices of this machine on which each backend can compute.

use super::backend::Backend;
use super::failure::{BackendError, first_words};
use crate::machine::Machine;

/// Every backend there is, in this build or not, the preferred ones first.
const NAMES: [&str; 4] = ["cuda", "wgpu", "flex", "ndarray"];

/// A backend and its devices, in this build and on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Its name, which is also the name of its cargo feature.
    pub backend: &'static str,
    /// Its devices; or why it has none, in a sentence.
    pub devices: Result<Vec<String>, String>,
}

/// Looks for the devices of every backend.
pub fn survey() -> Vec<Survey> {
    let look = |backend: &'static str| Survey {
        backend,
        devices: match backend.parse::<Backend>() {
            Err(_) => Err(format!(
                "not in this build; build with `--features {backend}`"
            )),
            Ok(built_in) => built_in.devices(),
        },
    };
    NAMES.map(look).into()
}

impl Backend {
    /// The devices it finds, once its default one has proved to work.
    fn devices(self) -> Result<Vec<String>, String> {
        self.probe().map_err(|error| match error {
            BackendError::NoDevice { backend, reason } => {
                let reason = first_words(&reason);
                format!(
                    "it needs {}, and does not start here: {reason}",
                    backend.needs()
                )
            }
            other => other.to_string(),
        })?;
        Ok(match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => cuda(),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => wgpu(),
            #[cfg(feature = "flex")]
            Self::Flex => vec![cpu()],
            #[cfg(feature = "ndarray")]
            Self::NdArray => vec![cpu()],
        })
    }
}

/// Bytes in use on `device` by all programs, and all that it has; `None` where that is not known.
pub(super) fn used_memory<B: Machine>(device: &B::Device) -> Option<(u64, u64)> {
    if B::queues() && B::name(device).contains("cuda") {
        cuda_memory()
    } else {
        None
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda_memory() -> Option<(u64, u64)> {
    None
}

#[cfg(feature = "cuda")]
fn cuda_memory() -> Option<(u64, u64)> {
    let device = cudarc::driver::CudaContext::new(0).ok()?;
    let (free, total) = device.mem_get_info().ok()?;
    Some((total.checked_sub(free)? as u64, total as u64))
}

#[cfg(any(feature = "flex", feature = "ndarray"))]
fn cpu() -> String {
    format!("the CPU, on {} threads", rayon::current_num_threads())
}

#[cfg(feature = "cuda")]
fn cuda() -> Vec<String> {
    use cudarc::driver::CudaContext;

    let count = CudaContext::device_count().unwrap_or(0);
    let name = |i| CudaContext::new(i).and_then(|device| device.name());
    (0..usize::try_from(count).unwrap_or(0))
        .map(|i| {
            name(i).unwrap_or_else(|error| format!("GPU {i}, whose name is not known: {error}"))
        })
        .collect()
}

#[cfg(feature = "wgpu")]
fn wgpu() -> Vec<String> {
    use wgpu::{Backends, Instance, InstanceDescriptor};

    let instance = Instance::new(InstanceDescriptor::new_without_display_handle());
    let adapters = instance.enumerate_adapters(Backends::all());
    let adapters = cubecl::future::block_on(adapters).into_iter();
    adapters
        .map(|adapter| {
            let info = adapter.get_info();
            format!("{} ({:?}, {:?})", info.name, info.backend, info.device_type)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_has_devices_or_a_reason() {
        let survey = survey();
        let known: Vec<&str> = survey.iter().map(|survey| survey.backend).collect();
        for name in Backend::names().split(", ").filter(|name| !name.is_empty()) {
            assert!(known.contains(&name), "{name}");
        }
        for Survey { backend, devices } in survey {
            let built_in = backend.parse::<Backend>().is_ok();
            match devices {
                Ok(devices) => assert!(built_in && !devices.is_empty(), "{backend}"),
                Err(reason) if built_in => assert!(reason.contains("it needs "), "{reason}"),
                Err(reason) => assert!(reason.contains("--features"), "{reason}"),
            }
        }
    }
}
