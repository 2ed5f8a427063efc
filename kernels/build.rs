//! Build script: with the feature `cuda`, compiles `kernels/**/*.cu` to fatbins and writes the list that the crate
//! embeds. Without it there is nothing to do, and no compiler is asked for.
//!
//! What was compiled once is taken from a folder, by a hash of the source, all files it includes, the flags and the
//! compiler's version: LANTERN_CUDA_CACHE names one that outlives this build.
//! A file named `*_sm90a.cu` uses Hopper's own instructions: it gets machine code for 90a alone, and is left out where
//! that is not asked for.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, thread};

/// Compute capabilities that get machine code; 90a holds Hopper's own instructions and runs on 9.0 alone.
const MACHINE_CODE: &str = "80,86,89,90a,100,120";

/// Compute capabilities that get PTX, which the driver compiles for cards that came later.
const PTX: &str = "80,120";

const INCLUDE: &str = "kernels/include";

/// The environment that this script reads.
const VARIABLES: [&str; 6] = [
    "CUDA_HOME",
    "CUDA_PATH",
    "LANTERN_CUDA_CACHE",
    "LANTERN_CUDA_FLAGS",
    "LANTERN_CUDA_MACHINE_CODE",
    "LANTERN_CUDA_PTX",
];

fn main() {
    println!("cargo:rerun-if-changed=kernels/build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=kernels");
    for name in VARIABLES {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let compiler = Compiler::from_environment(&out);
    let mut sources = Vec::new();
    find_sources(Path::new("kernels"), &mut sources);
    sources.retain(|source| !is_for_hopper(source) || compiler.machine_code.iter().any(|arch| arch == "90a"));
    sources.sort();
    let queue = Mutex::new(sources.iter());
    let jobs = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(2);
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = { queue.lock().expect("no compiler panics").next() } {
                    compiler.compile(source, &out);
                }
            });
        }
    });
    write_list(&compiler, &sources, &out);
}

/// The Rust file that embeds the fatbins, and the compiler's word on what each kernel uses, for a test.
fn write_list(compiler: &Compiler, sources: &[PathBuf], out: &Path) {
    let mut list = String::from("pub(super) static FATBINS: &[(&str, &[u8])] = &[\n");
    let mut resources = String::new();
    for source in sources {
        let name = stem(source);
        writeln!(list, "    ({name:?}, include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}.fatbin\"))),")
            .expect("a string");
        let report = fs::read_to_string(out.join(&name).with_extension("txt")).expect("written by `compile`");
        write!(resources, "module {name}\n{report}").expect("a string");
    }
    writeln!(list, "];\npub(super) static MACHINE_CODE: &[&str] = &{:?};", compiler.machine_code).expect("a string");
    writeln!(list, "pub(super) static PTX: &[&str] = &{:?};", compiler.ptx).expect("a string");
    fs::write(out.join("fatbins.rs"), list).expect("OUT_DIR is writable");
    fs::write(out.join("resources.txt"), resources).expect("OUT_DIR is writable");
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

fn is_for_hopper(source: &Path) -> bool {
    stem(source).ends_with("_sm90a")
}

struct Compiler {
    nvcc: PathBuf,
    version: Vec<u8>,
    machine_code: Vec<String>,
    ptx: Vec<String>,
    flags: String,
    cache: PathBuf,
}

impl Compiler {
    fn from_environment(out: &Path) -> Self {
        let setting = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
        let list = |name, default| {
            setting(name, default).split(',').filter(|arch| !arch.is_empty()).map(str::to_owned).collect()
        };
        let nvcc = ["CUDA_HOME", "CUDA_PATH"]
            .into_iter()
            .filter_map(env::var_os)
            .map(|home| PathBuf::from(home).join("bin/nvcc"))
            .find(|path| path.exists())
            .unwrap_or_else(|| "nvcc".into());
        let version = Command::new(&nvcc).arg("--version").output().unwrap_or_else(|error| {
            panic!("nvcc cannot be run ({error}): run `kernels/toolkit.sh FOLDER` and set CUDA_HOME=FOLDER")
        });
        let cache = env::var_os("LANTERN_CUDA_CACHE").map_or_else(|| out.join("cache"), PathBuf::from);
        fs::create_dir_all(&cache).unwrap_or_else(|error| panic!("{}: {error}", cache.display()));
        Self {
            nvcc,
            version: version.stdout,
            machine_code: list("LANTERN_CUDA_MACHINE_CODE", MACHINE_CODE),
            ptx: list("LANTERN_CUDA_PTX", PTX),
            flags: setting("LANTERN_CUDA_FLAGS", ""),
            cache,
        }
    }

    /// All flags but the names of files.
    fn flags(&self, source: &Path) -> Vec<String> {
        let mut flags: Vec<String> =
            ["-std=c++17", "-O3", "-fatbin", "--resource-usage", "-t", "2", "-I", INCLUDE].map(str::to_owned).into();
        let (machine_code, ptx) = match is_for_hopper(source) {
            true => (&["90a".to_owned()][..], &[][..]),
            false => (&self.machine_code[..], &self.ptx[..]),
        };
        flags.extend(machine_code.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}")));
        flags.extend(ptx.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=compute_{arch}")));
        flags.extend(self.flags.split_whitespace().map(str::to_owned));
        flags
    }

    /// Puts `STEM.fatbin`, and in `STEM.txt` what its kernels use, into `out`.
    fn compile(&self, source: &Path, out: &Path) {
        let flags = self.flags(source);
        let mut hasher = DefaultHasher::new();
        (&self.version, &flags).hash(&mut hasher);
        hash_source(source, &mut BTreeSet::new(), &mut hasher);
        let name = stem(source);
        let kept = self.cache.join(format!("{name}-{:016x}", hasher.finish()));
        let (fatbin, report) = (kept.with_extension("fatbin"), kept.with_extension("txt"));
        if !fatbin.exists() || !report.exists() {
            self.run(source, &flags, &fatbin, &report);
        }
        for file in [fatbin, report] {
            let extension = file.extension().expect("given above");
            fs::copy(&file, out.join(&name).with_extension(extension)).expect("OUT_DIR is writable");
        }
    }

    /// Another build may be at the same file: what is whole appears at once, by a rename.
    fn run(&self, source: &Path, flags: &[String], fatbin: &Path, report: &Path) {
        let new = fatbin.with_extension(format!("{}.new", std::process::id()));
        let mut command = Command::new(&self.nvcc);
        // Flags that somebody set for another project's kernels are not ours.
        command.env_remove("NVCC_APPEND_FLAGS").env_remove("NVCC_PREPEND_FLAGS");
        let output = command.args(flags).arg("-o").arg(&new).arg(source).output().expect("nvcc gave its version");
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "nvcc failed on {}:\n{text}", source.display());
        for line in text.lines().filter(|line| line.contains("warning")) {
            println!("cargo:warning={line}");
        }
        fs::write(report, text).expect("the cache is writable");
        fs::rename(&new, fatbin).expect("the cache is writable");
    }
}

/// The content of a file and of all that it includes by a name in quotes.
fn hash_source(path: &Path, seen: &mut BTreeSet<PathBuf>, hasher: &mut DefaultHasher) {
    if !seen.insert(path.to_owned()) {
        return;
    }
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.hash(hasher);
    for line in text.lines() {
        let Some(rest) = line.trim_start().strip_prefix("#include") else { continue };
        let Some(name) = rest.trim().strip_prefix('"').and_then(|rest| rest.split('"').next()) else { continue };
        let beside = path.parent().expect("a file is in a folder").join(name);
        let found = [beside, Path::new(INCLUDE).join(name)].into_iter().find(|path| path.exists());
        hash_source(&found.unwrap_or_else(|| panic!("{}: no file {name}", path.display())), seen, hasher);
    }
}
