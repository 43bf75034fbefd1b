//! Compiled kernels, kept on disk, so that a machine compiles each of them once.
//!
//! CubeCL can keep what CUDA's compiler (PTX) or its own (SPIR-V for Vulkan) has compiled, but
//! knows it by its name and its options alone, not by what it says or which GPU it is for. So each build of
//! a program has one folder for each kind of GPU, and the oldest are removed.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use cubecl::config::cache::CacheConfig;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

use super::backend::Backend;

/// Folders that are kept.
const KEPT: usize = 8;
/// The file of a folder that its program holds a lock on.
const LOCK: &str = "lock";

/// Whether the program has asked for the folder.
static ASKED: AtomicBool = AtomicBool::new(false);
/// The lock on this process's folder, which ends with the process.
static HELD: Mutex<Option<File>> = Mutex::new(None);

/// See [`keep_kernels`](super::keep_kernels).
pub(super) fn ask() {
    ASKED.store(true, Ordering::Relaxed);
}

/// If the program has asked for a cache, keeps the kernels that are compiled for `backend` from now on in the user's
/// cache folder. Does nothing if CubeCL is already in use, or if there is a `cubecl.toml` or `burn.toml`, which then
/// says where kernels are kept.
///
/// Two processes that write to the same file would damage it. So only one process at a time uses the folder; a second
/// process of the same program runs without a cache.
///
/// # Panics
/// If the backend's library is missing, as any use of the backend does.
pub(super) fn keep(backend: Backend) {
    if !ASKED.load(Ordering::Relaxed) {
        return;
    }
    let mut settings = CubeClRuntimeConfig::storage().lock();
    if settings.is_some() || has_settings() {
        return;
    }
    let mut config = CubeClRuntimeConfig::default().override_from_env();
    if let Some((folder, lock)) = folder(&gpu(backend)).and_then(|folder| claimed(folder).ok()) {
        config.compilation.cache = Some(CacheConfig::File(folder));
        *HELD.lock().unwrap_or_else(PoisonError::into_inner) = Some(lock);
    }
    *settings = Some(Arc::new(config));
}

/// Whether CubeCL would find settings, in the current folder or one above it.
fn has_settings() -> bool {
    let files = CubeClRuntimeConfig::file_names().iter();
    let sections = CubeClRuntimeConfig::section_file_names().iter();
    let names: Vec<_> = files.chain(sections.map(|(name, _)| name)).collect();
    let here = std::env::current_dir().unwrap_or_default();
    here.ancestors()
        .any(|folder| names.iter().any(|name| folder.join(name).exists()))
}

/// What compiled kernels depend on beside the program: CUDA's are for one architecture, in the language of
/// one compiler, which not every driver knows.
fn gpu(backend: Backend) -> String {
    #[cfg(feature = "cuda")]
    if backend == Backend::Cuda {
        use cudarc::driver::result::{device, init};
        let name = init()
            .and_then(|()| device::get(0))
            .and_then(device::get_name);
        let (mut driver, mut major, mut minor) = (0, 0, 0);
        // SAFETY: both write the numbers that they are asked for, or nothing.
        unsafe {
            let _ = cudarc::driver::sys::cuDriverGetVersion(&mut driver);
            let _ = cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor);
        }
        // If there is no name, CubeCL is about to fail for the same reason, and reports it.
        let name = name.unwrap_or_default();
        return format!("{name}, driver {driver}, compiler {major}.{minor}");
    }
    backend.name().into()
}

/// The folder for this build of this program and for `gpu`.
fn folder(gpu: &str) -> Option<PathBuf> {
    let program = fs::metadata(std::env::current_exe().ok()?).ok()?;
    let mut hasher = DefaultHasher::new();
    (program.len(), program.modified().ok()?, gpu).hash(&mut hasher);
    let name = format!("{:016x}", hasher.finish());
    // A relative one, of a relative `HOME`, would be another in every working directory.
    let users = dirs::cache_dir().filter(|folder| folder.is_absolute())?;
    Some(users.join("mohawk").join("kernels").join(name))
}

/// `folder`, made if need be, with the lock that keeps other processes out; removes the oldest beside it.
fn claimed(folder: PathBuf) -> io::Result<(PathBuf, File)> {
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join(LOCK))?;
    lock.try_lock()?;
    // By this the folder's age is known.
    lock.set_modified(SystemTime::now())?;
    if let Some(all) = folder.parent() {
        remove_oldest(all)?;
    }
    Ok((folder, lock))
}

/// Removes all but the [`KEPT`] folders in `all` that were used last, and those in use.
fn remove_oldest(all: &Path) -> io::Result<()> {
    let mut found = vec![];
    for entry in fs::read_dir(all)? {
        let folder = entry?.path();
        // What is not of this module's making is left alone.
        if let Ok(lock) = File::open(folder.join(LOCK)) {
            let used = lock.metadata().and_then(|data| data.modified())?;
            found.push((used, folder, lock));
        }
    }
    found.sort_by_key(|(used, _, _)| *used);
    let old = found.len().saturating_sub(KEPT);
    for (_, folder, lock) in found.into_iter().take(old) {
        if lock.try_lock().is_ok() {
            fs::remove_dir_all(folder)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner_and_the_oldest_go() {
        let all = std::env::temp_dir().join(format!("mohawk-kernels-{}", std::process::id()));
        let (first, lock) = claimed(all.join("0")).unwrap();
        assert!(claimed(first.clone()).is_err(), "taken");
        // Older than the others, whatever the clock's steps.
        lock.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        for i in 1..=KEPT + 1 {
            claimed(all.join(i.to_string())).unwrap();
        }
        assert!(first.exists(), "in use");
        drop(lock);
        claimed(all.join("last")).unwrap();
        assert!(!first.exists() && all.join("last").exists());
        fs::remove_dir_all(all).unwrap();
    }
}
