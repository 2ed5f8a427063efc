//! The house rules that no compiler sees: which room may name which, file lengths, where `unsafe` stands, and what the
//! dependency tree holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which room may name which others by `crate::`. `request` and `config` may be named by anyone.
const IMPORTS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    ("cli", &["server", "llm", "engine", "hub", "device"]),
    ("server", &["llm", "engine", "tokenizer"]),
    ("llm", &["engine", "tokenizer", "hub", "device"]),
    ("engine", &["scheduler", "runner"]),
    ("scheduler", &["kv_cache"]),
    ("kv_cache", &[]),
    ("runner", &["models", "cuda", "sampling", "attention", "ops", "weights", "scheduler", "kv_cache"]),
    ("models", &["layers", "weights", "attention", "ops"]),
    ("layers", &["ops", "attention"]),
    ("attention", &["ops", "kv_cache"]),
    ("sampling", &["ops"]),
    ("weights", &["ops"]),
    ("ops", &["cpu", "cuda"]),
    ("cpu", &[]),
    ("cuda", &[]),
    ("device", &["cpu", "cuda"]),
    ("hub", &[]),
    ("tokenizer", &[]),
    ("request", &[]),
    ("config", &[]),
];

/// Crates that a room must not name.
const FOREIGN: &[(&str, &[&str])] = &[
    ("scheduler", &["candle_core", "tokio", "axum"]),
    ("kv_cache", &["candle_core", "tokio", "axum"]),
    ("engine", &["axum", "tokenizers", "minijinja"]),
    ("llm", &["axum", "candle_core"]),
    ("server", &["candle_core"]),
    ("models", &["tokenizers"]),
];

/// Files over 600 lines, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

const MAX_FILE_LINES: usize = 600;

/// Crates of the default build that compile C or assembly, each with its reason.
const COMPILES_C: &[(&str, &str)] = &[("ring", "the cryptography of TLS")];

struct Source {
    /// Relative to the folder that was searched.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The room that a file belongs to: its folder in `src`, or its own name.
    fn room(&self) -> String {
        let first = self.path.iter().next().expect("a path has parts").to_string_lossy();
        first.trim_end_matches(".rs").to_owned()
    }
}

fn sources() -> Vec<Source> {
    let found = files_of("src", &["rs"]);
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// The files below a folder whose names end so.
fn files_of(folder: &str, extensions: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("sources are readable") {
            let path = entry.expect("sources are readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| extensions.iter().any(|extension| end == *extension)) {
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                let path = path.strip_prefix(&root).expect("it is below the root").to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found
}

/// The rooms that a line names by `crate::` (`lantern::` in the binary).
fn named_rooms(line: &str) -> Vec<String> {
    let prefixes = ["crate::", "lantern::"];
    let starts = prefixes.iter().flat_map(|prefix| line.match_indices(prefix).map(|(at, found)| at + found.len()));
    starts
        .map(|at| line[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn imports_go_down_only() {
    let rules: BTreeMap<&str, &[&str]> = IMPORTS.iter().copied().collect();
    let mut faults = Vec::new();
    for source in sources() {
        let room = source.room();
        if room == "lib" {
            continue;
        }
        let Some(allowed) = rules.get(room.as_str()) else {
            faults.push(format!("{}: `{room}` has no line in the list of imports", source.path.display()));
            continue;
        };
        for (number, line) in source.text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for name in named_rooms(code) {
                let is_room = rules.contains_key(name.as_str());
                let fine = name == room || name == "request" || name == "config" || allowed.contains(&name.as_str());
                if is_room && !fine {
                    faults.push(format!("{}:{}: `{room}` names `{name}`", source.path.display(), number + 1));
                }
            }
        }
    }
    assert!(faults.is_empty(), "imports go down only:\n{}", faults.join("\n"));
}

#[test]
fn rooms_do_not_name_foreign_crates() {
    let mut faults = Vec::new();
    for source in sources() {
        for (_, crates) in FOREIGN.iter().filter(|(room, _)| *room == source.room()) {
            for name in *crates {
                if source.text.contains(&format!("{name}::")) {
                    faults.push(format!("{} names {name}", source.path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_are_short() {
    let allowed: BTreeSet<&str> = LONG_FILES.iter().map(|(path, _)| *path).collect();
    let long: Vec<String> = sources()
        .iter()
        .map(|source| (source.path.to_string_lossy().into_owned(), source.text.lines().count()))
        .filter(|(path, lines)| *lines > MAX_FILE_LINES && !allowed.contains(path.as_str()))
        .map(|(path, lines)| format!("src/{path}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "over {MAX_FILE_LINES} lines:\n{}", long.join("\n"));
}

#[test]
fn unsafe_stands_where_it_may_and_says_why() {
    let mut faults = Vec::new();
    for source in sources() {
        let path = source.path.to_string_lossy().into_owned();
        let may = path.starts_with("cpu/") || path.starts_with("cuda/") || path == "weights/mmap.rs";
        let lines: Vec<&str> = source.text.lines().collect();
        // Where each block is one instruction, one statement serves the whole file.
        let explained_once =
            path.starts_with("cpu/simd/") && source.text.contains("SAFETY of every block in this file:");
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let opens_block = code.contains("unsafe {");
            if !may && (opens_block || code.contains("unsafe fn") || code.contains("unsafe impl")) {
                faults.push(format!("src/{path}:{}: unsafe", number + 1));
            }
            let explained =
                explained_once || lines[number.saturating_sub(6)..=number].iter().any(|near| near.contains("SAFETY:"));
            if may && opens_block && !explained {
                faults.push(format!("src/{path}:{}: unsafe without a SAFETY comment", number + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// `lantern.cuh` says why: a kernel that did not wait would read what the one before it has not written yet.
#[test]
fn kernels_wait_for_the_one_before() {
    let files = files_of("kernels", &["cu", "cuh"]);
    // What waits, by itself or by what it calls.
    let mut waiting = BTreeSet::from(["after_previous"]);
    let waits = |body: &str, waiting: &BTreeSet<&str>| {
        let mut words = body.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.any(|word| waiting.contains(word))
    };
    let functions: Vec<_> = files.iter().flat_map(|file| file.text.split("__device__").skip(1)).collect();
    loop {
        let before = waiting.len();
        for function in &functions {
            let function = function.split("__global__").next().expect("a first part");
            let Some((head, body)) = function.split_once('{') else { continue };
            let name = head.split('(').next().and_then(|head| head.split_whitespace().last());
            waiting.extend(name.filter(|_| waits(body, &waiting)));
        }
        if waiting.len() == before {
            break;
        }
    }
    let (mut seen, mut faults) = (0, Vec::new());
    for file in &files {
        for kernel in file.text.split("extern \"C\" __global__").skip(1) {
            seen += 1;
            let (head, body) = kernel.split_once('{').expect("a kernel has a body");
            if !waits(body.split("\n\n").next().expect("a first part"), &waiting) {
                faults.push(format!("kernels/{}:{}", file.path.display(), head.replace('\\', "")));
            }
        }
    }
    assert!(seen > 50, "{seen} kernels were found");
    assert!(!waiting.contains("load8") && waiting.contains("norm_row"), "{waiting:?}");
    assert!(faults.is_empty(), "these do not call after_previous():\n{}", faults.join("\n"));
}

fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("cargo prints UTF-8")
}

#[test]
fn the_default_build_compiles_no_c_but_what_is_listed() {
    // Whoever compiles C depends on one of these at build time; `-i` turns the tree around: line 2 on are the users.
    let allowed: BTreeSet<&str> = COMPILES_C.iter().map(|(name, _)| *name).collect();
    let tree = cargo(&["tree", "--offline", "-e", "normal,build", "--prefix", "depth", "-f", " {p}"]);
    let mut path: Vec<String> = Vec::new();
    let mut users = BTreeSet::new();
    for line in tree.lines() {
        let digits = line.chars().take_while(char::is_ascii_digit).count();
        let depth: usize = line[..digits].parse().expect("a depth");
        let name = line[digits..].split_whitespace().next().expect("a name").to_owned();
        path.truncate(depth);
        if ["cc", "cmake", "bindgen", "nasm-rs"].contains(&name.as_str()) {
            users.insert(path.last().expect("somebody depends on it").clone());
        }
        path.push(name);
    }
    let unlisted: Vec<&String> = users.iter().filter(|name| !allowed.contains(name.as_str())).collect();
    assert!(unlisted.is_empty(), "these crates compile C: {unlisted:?}");
    assert!(users.contains("ring"), "the walk over the tree finds nobody: {users:?}");
}

/// Candle's own kernels come with its feature `cuda`, and link libraries that a machine without a GPU lacks.
#[test]
fn the_cuda_build_holds_none_of_candles_kernels() {
    let names = |tree: &str| -> BTreeSet<String> {
        tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    };
    let tree = names(&cargo(&["tree", "--offline", "--features", "cuda", "-e", "normal,build", "--prefix", "none"]));
    let found: Vec<&String> = tree.iter().filter(|name| name.starts_with("candle-kernels")).collect();
    assert!(found.is_empty(), "{found:?}");
    assert!(tree.contains("candle-core") && tree.contains("cudarc"), "the tree is read wrongly: {tree:?}");
}

#[test]
fn the_library_alone_has_no_server_in_its_tree() {
    let tree = cargo(&["tree", "--offline", "--no-default-features", "-e", "normal", "--prefix", "none"]);
    for name in ["axum", "clap", "hyper", "prometheus", "rustyline"] {
        let found = tree.lines().any(|line| line.split_whitespace().next() == Some(name));
        assert!(!found, "{name} is in the tree of the library without the feature `server`");
    }
    assert!(tree.contains("candle-core"), "{tree}");
}
