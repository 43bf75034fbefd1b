//! The device and the queue that CubeCL uses on wgpu. CubeCL opens them at their first use, and does not give them out.
//! Therefore they are opened here before that, and a copy of their handles is kept.

use std::sync::OnceLock;

use cubecl::wgpu::{AutoGraphicsApi, RuntimeOptions, WgpuDevice, WgpuSetup, init_setup};

use super::panics;

static SETUP: OnceLock<Option<WgpuSetup>> = OnceLock::new();

/// Opens the default device, once in a process. If that fails, because there is no device or because CubeCL uses it
/// already, nothing happens here; CubeCL reports the reason when it opens the device itself.
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
