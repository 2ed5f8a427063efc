//! Build script: with the feature `cuda`, compiles `kernels/**/*.cu` to fatbins and writes the list that the crate
//! embeds. Without it there is nothing to do, and no compiler is asked for.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

/// Compute capabilities that get machine code; 90a holds Hopper's own instructions and runs on 9.0 alone.
const MACHINE_CODE: &str = "80,86,89,90a,100,120";

/// Compute capabilities that get PTX, which the driver compiles for cards that came later.
const PTX: &str = "80,120";

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for name in ["CUDA_HOME", "CUDA_PATH", "LANTERN_CUDA_MACHINE_CODE", "LANTERN_CUDA_PTX", "LANTERN_CUDA_FLAGS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources = Vec::new();
    find_sources(Path::new("kernels"), &mut sources);
    sources.sort();
    let queue = std::sync::Mutex::new(sources.iter());
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(2);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = { queue.lock().expect("no compiler panics").next() } {
                    compile(source, &out);
                }
            });
        }
    });
    let mut list = String::from("pub(super) static FATBINS: &[(&str, &[u8])] = &[\n");
    for source in &sources {
        let name = stem(source);
        writeln!(list, "    ({name:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.fatbin\"))),")
            .expect("a string");
    }
    fs::write(out.join("fatbins.rs"), list + "];\n").expect("OUT_DIR is writable");
}

fn find_sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the folder kernels is here") {
        let path = entry.expect("the folder kernels is readable").path();
        if path.is_dir() {
            find_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "cu") {
            found.push(path);
        }
    }
}

fn stem(source: &Path) -> String {
    source.file_stem().expect("a file has a name").to_string_lossy().into_owned()
}

fn nvcc() -> PathBuf {
    ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os)
        .map(|home| PathBuf::from(home).join("bin/nvcc"))
        .find(|path| path.exists())
        .unwrap_or_else(|| "nvcc".into())
}

fn compile(source: &Path, out: &Path) {
    let setting = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let mut command = Command::new(nvcc());
    command.env_remove("NVCC_APPEND_FLAGS").args([
        "-std=c++17",
        "-O3",
        "-fatbin",
        "-t",
        "2",
        "-I",
        "kernels/include",
        "-o",
    ]);
    command.arg(out.join(stem(source)).with_extension("fatbin")).arg(source);
    for arch in setting("LANTERN_CUDA_MACHINE_CODE", MACHINE_CODE).split(',').filter(|arch| !arch.is_empty()) {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    for arch in setting("LANTERN_CUDA_PTX", PTX).split(',').filter(|arch| !arch.is_empty()) {
        command.arg(format!("-gencode=arch=compute_{arch},code=compute_{arch}"));
    }
    command.args(setting("LANTERN_CUDA_FLAGS", "").split_whitespace());
    let status = command.status().unwrap_or_else(|error| {
        panic!("nvcc cannot be run ({error}): run `kernels/toolkit.sh FOLDER` and set CUDA_HOME=FOLDER")
    });
    assert!(status.success(), "nvcc failed on {}", source.display());
}
