//! The device and the queue that CubeCL computes with on wgpu. CubeCL opens them when they are first used, and keeps them
//! to itself; here they are opened before that, and kept too.

use std::sync::OnceLock;

use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuDevice, WgpuSetup, init_setup};

use super::panics;

static SETUP: OnceLock<Option<WgpuSetup>> = OnceLock::new();

/// Opens the default device, once in a process. Where that fails, because there is none or because it is in use already,
/// CubeCL's own way to open it is left to say why.
pub(super) fn open() {
    SETUP.get_or_init(|| {
        let open =
            || init_setup::<AutoGraphicsApi>(&WgpuDevice::default(), RuntimeOptions::default());
        panics::quietly(open).ok()
    });
}

/// The default device, if it was opened here.
pub(crate) fn setup() -> Option<&'static WgpuSetup> {
    SETUP.get()?.as_ref()
}
