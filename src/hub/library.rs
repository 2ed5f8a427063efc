//! Libraries of others that make Lantern faster and that it runs without: out of a Python package into the store.
//! Knows nothing of what they compute.

use std::fs;
use std::path::PathBuf;

use super::catalog::Package;
use super::checksum::{Checksum, sha256_if_promised};
use super::error::{HubError, io};
use super::store::Store;
use super::{HubOptions, PackageSource, Pip, Progress, package};

/// A library that can be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// The name of its file.
    pub file: String,
    /// The package that carries it.
    pub package: Package,
}

impl Library {
    /// NVIDIA's matrix products for CUDA 13, for x86_64 Linux.
    pub fn cublas() -> Self {
        Self {
            file: "libcublasLt.so.13".into(),
            package: Package {
                name: "nvidia-cublas".into(),
                version: "13.0.2.14".into(),
                wheel_sha256: "0cf238ffdbe46c00cb9aa98e7bca745c223a5ca5a53e686ac8b3e5a08fe80d6c".into(),
                member: "nvidia/cu13/lib/libcublasLt.so.13".into(),
                sha256: "4c15f403ac2a8040a3291d07f6c351b5c1f730b45f2ea41f302e415e9600655b".into(),
                bytes: 539_533_072,
            },
        }
    }
}

/// Brings a library to the store and returns its path. One that is there already, whole, stays.
///
/// # Errors
/// As [`HubError`] says; [`HubError::Package`] where the network is needed and switched off.
pub fn install(
    library: &Library,
    store: &Store,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, HubError> {
    install_with(&Pip, library, store, options, progress)
}

/// [`install`] with another source of packages than this machine's pip.
///
/// # Errors
/// As [`install`].
pub fn install_with(
    packages: &dyn PackageSource,
    library: &Library,
    store: &Store,
    options: &HubOptions,
    progress: &mut dyn Progress,
) -> Result<PathBuf, HubError> {
    let folder = store.libraries();
    let place = folder.join(&library.file);
    let promise = Checksum::Sha256(library.package.sha256.clone());
    if sha256_if_promised(&place, &promise, library.package.bytes)?.is_some() {
        return Ok(place);
    }
    if options.offline {
        let (package, reason) = (library.package.name.clone(), "downloads are switched off".to_owned());
        return Err(HubError::Package { package, reason });
    }
    // Two at once would write over each other's files; a process of its own has a folder of its own.
    let arriving = folder.join(format!("arriving-{}", std::process::id()));
    fs::create_dir_all(&arriving).map_err(io("create", &arriving))?;
    let outcome = package::extract(packages, &library.package, &arriving, progress)
        .and_then(|file| fs::rename(&file, &place).map_err(io("rename", &file)));
    // What arrived is in its place, or is of no use.
    if let Err(error) = fs::remove_dir_all(&arriving) {
        tracing::warn!(path = %arriving.display(), "cannot delete what a download left: {error}");
    }
    outcome.map(|()| place)
}
