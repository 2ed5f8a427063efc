//! The driver's library, found and opened at run time: nothing of CUDA is linked.
//!
//! cudarc opens a library by its bare name when one of its functions is first called, and panics where there is none.
//! So everybody goes through here first. What was opened by its path is what a later search by the same soname finds,
//! which is how a library outside the usual folders comes in.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use cudarc::driver::sys;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The driver's library, as its makers name it.
const DRIVER: &str = "libcuda.so.1";
/// Where Windows puts its driver's library for Linux programs. It goes first: another libcuda there drives nothing.
const WSL_DRIVER: &str = "/usr/lib/wsl/lib/libcuda.so.1";

/// Opens the driver's library for the rest of the process and returns its path.
///
/// # Errors
/// What the loader says.
pub fn open_driver() -> Result<PathBuf, String> {
    let wsl = Path::new(WSL_DRIVER);
    let opened = if wsl.exists() { open(wsl) } else { open(Path::new(DRIVER)) };
    opened?;
    // SAFETY: opens libraries of NVIDIA's names, whose initialisers are made for being opened by anybody.
    let is_found = unsafe { sys::is_culib_present() };
    if !is_found {
        return Err(format!("{DRIVER} was opened and is not found again"));
    }
    // SAFETY: it is present, as was just seen.
    let library = unsafe { sys::culib() };
    let needed: [&CStr; 4] = [c"cuInit", c"cuDriverGetVersion", c"cuGetErrorName", c"cuGetErrorString"];
    for name in needed {
        // SAFETY: the symbol is looked for and not used.
        if unsafe { library.get::<unsafe extern "C" fn()>(name) }.is_err() {
            return Err(format!("it has no function {}", name.to_string_lossy()));
        }
    }
    Ok(path_of("libcuda.so").unwrap_or_else(|| DRIVER.into()))
}

/// Opens a library, by its path or its soname, for the rest of the process.
fn open(name: &Path) -> Result<(), String> {
    // SAFETY: opens a library of NVIDIA's name, whose initialisers are made for being opened by anybody.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }.map_err(|error| reason(&error))?;
    // Functions that cudarc has looked up must stay.
    std::mem::forget(library);
    Ok(())
}

/// The loader's own words, without the layers around them.
fn reason(error: &libloading::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

/// The file of an opened library whose name begins like this.
fn path_of(prefix: &str) -> Option<PathBuf> {
    find_mapped(&std::fs::read_to_string("/proc/self/maps").ok()?, prefix)
}

/// Source: proc_pid_maps(5). The path is the sixth field and may hold spaces.
fn find_mapped(maps: &str, prefix: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let mut found =
        paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    found.next().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opened_library_is_found_by_its_name() {
        let maps = "55e0-55e1 r-xp 00000000 08:01 12  /usr/bin/lantern\n\
                    7f00-7f01 r-xp 00000000 00:00 0\n\
                    7f02-7f03 r-xp 00000000 08:01 13  /usr/lib/my drivers/libcuda.so.580.95.05\n\
                    7f04-7f05 r-xp 00000000 08:01 14  /usr/lib/libcudart.so.13\n";
        assert_eq!(find_mapped(maps, "libcuda.so"), Some("/usr/lib/my drivers/libcuda.so.580.95.05".into()));
        assert_eq!(find_mapped(maps, "libcublasLt.so"), None);
    }

    #[test]
    fn a_library_that_is_not_there_is_an_error_in_the_loaders_words() {
        let error = open(Path::new("liblantern_test_nowhere.so.1")).expect_err("not there");
        assert!(error.contains("liblantern_test_nowhere.so.1") && error.contains("No such file"), "{error}");
    }
}
