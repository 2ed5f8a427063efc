//! Finding cuBLASLt: in folders that the linker does not search, and then where it does.

use std::path::{Path, PathBuf};

use cudarc::cublaslt::sys;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::BlasMissing;

/// File names of the library, the newest first. All have the functions that are called here.
const NAMES: [&str; 3] = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// Where installers put it.
const FOLDERS: [&str; 5] = [
    "/usr/local/cuda/lib64",
    "/usr/local/cuda-13/lib64",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/opt/cuda/lib64",
    "/usr/local/cuda-12/lib64",
];

/// Opens the library and says from where. `folders` come first, then those of installers, then a folder `lib` beside
/// the program, then the loader's own search.
///
/// The declarations in use open it by name when they are first called; a library that is loaded already answers to
/// its soname wherever it lies, so that opening it by path here is enough. It stays loaded to the program's end.
pub(super) fn open(folders: &[PathBuf]) -> Result<String, BlasMissing> {
    let mut tried = Vec::new();
    let beside = std::env::current_exe().ok().and_then(|program| Some(program.parent()?.join("lib")));
    let installed = FOLDERS.iter().map(PathBuf::from);
    let opened = folders.iter().cloned().chain(installed).chain(beside).find_map(|folder| from(&folder, &mut tried));
    // SAFETY: runs the initialisers of NVIDIA's library, as using it does; looks for it by its names and returns
    // false where there is none.
    if unsafe { sys::is_culib_present() } {
        return Ok(opened.map_or_else(|| "the loader's search path".to_owned(), |path| path.display().to_string()));
    }
    let broken = if tried.is_empty() { String::new() } else { format!(" ({})", tried.join("; ")) };
    Err(BlasMissing(format!("libcublasLt.so.13 is neither in a known folder nor on the loader's path{broken}")))
}

/// Loads the first of the names that `folder` holds, for good; notes in `tried` what is there and cannot be loaded.
fn from(folder: &Path, tried: &mut Vec<String>) -> Option<PathBuf> {
    NAMES.iter().map(|name| folder.join(name)).filter(|path| path.exists()).find_map(|path| {
        // SAFETY: runs the initialisers of NVIDIA's library, as using it does.
        match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                std::mem::forget(library);
                Some(path)
            }
            Err(error) => {
                tried.push(error.to_string());
                None
            }
        }
    })
}
