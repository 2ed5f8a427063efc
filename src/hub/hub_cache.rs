//! Hugging Face's own folder on this machine: models that another program has downloaded, and the saved token.
//! Does not write to it.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo, RepoType};

use super::options::HubOptions;
use super::pull::LocatedKind;
use super::selection::{Selection, select};

/// The token that a login saved, if there is one.
pub(super) fn token(options: &HubOptions) -> Option<String> {
    cache(options)?.token()
}

/// A model that the cache holds completely, to be used in place: the named GGUF file, or what [`select`] picks of the
/// snapshot.
pub(super) fn find(
    options: &HubOptions,
    repository: &str,
    revision: &str,
    wanted: Option<&str>,
) -> Option<LocatedKind> {
    let snapshot = snapshot(options, repository, revision)?;
    match select(repository, &files_below(&snapshot, ""), wanted).ok()? {
        Selection::Gguf(file) => Some(LocatedKind::Gguf(snapshot.join(file))),
        Selection::GgufParts(files) => Some(LocatedKind::Gguf(snapshot.join(files.first()?))),
        Selection::Folder(files) => is_complete(&snapshot, &files).then_some(LocatedKind::Folder(snapshot)),
    }
}

fn cache(options: &HubOptions) -> Option<Cache> {
    options.hf_home.as_ref().map(|home| Cache::new(home.join("hub")))
}

/// The folder of links to one commit's files.
fn snapshot(options: &HubOptions, repository: &str, revision: &str) -> Option<PathBuf> {
    let cache = cache(options)?;
    let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
    // A branch is a file with the commit in it; a commit is a folder at once.
    let branch = cache.path().join(repo.folder_name()).join("refs").join(revision);
    let commit = std::fs::read_to_string(branch).unwrap_or_else(|_| revision.to_owned());
    let snapshot = cache.repo(repo).pointer_path(commit.trim());
    snapshot.is_dir().then_some(snapshot)
}

/// Paths of all files of a folder that are really there: a link to a blob that is missing is none.
fn files_below(folder: &Path, prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = entry.path();
        if path.is_file() {
            files.push(format!("{prefix}{name}"));
        } else if path.is_dir() && prefix.is_empty() {
            files.extend(files_below(&path, &format!("{name}/")));
        }
    }
    files.sort();
    files
}

/// Whether all the weights are there: those that the index lists, or a single file that needs no index.
fn is_complete(snapshot: &Path, files: &[String]) -> bool {
    let has = |name: &str| files.iter().any(|file| file == name);
    let Some(index) = files.iter().find(|file| file.ends_with(".index.json")) else {
        return has("model.safetensors");
    };
    let Ok(json) = std::fs::read(snapshot.join(index)) else { return false };
    let Ok(index) = serde_json::from_slice::<serde_json::Value>(&json) else { return false };
    let shards = index.get("weight_map").and_then(serde_json::Value::as_object);
    shards.is_some_and(|map| !map.is_empty() && map.values().all(|shard| shard.as_str().is_some_and(has)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn options(home: &Path) -> HubOptions {
        HubOptions { hf_home: Some(home.to_owned()), ..HubOptions::default() }
    }

    fn snapshot_with(home: &Path, files: &[(&str, &str)]) -> PathBuf {
        let repository = home.join("hub/models--org--name");
        let snapshot = repository.join("snapshots/abc");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repository.join("refs")).unwrap();
        fs::write(repository.join("refs/main"), "abc\n").unwrap();
        for (name, content) in files {
            fs::write(snapshot.join(name), content).unwrap();
        }
        snapshot
    }

    #[test]
    fn a_gguf_is_used_in_place_by_branch_and_by_commit() {
        let home = tempfile::tempdir().unwrap();
        let snapshot = snapshot_with(home.path(), &[("m-Q4_K_M.gguf", "x"), ("m-Q8_0.gguf", "x")]);
        let options = options(home.path());
        let expected = Some(LocatedKind::Gguf(snapshot.join("m-Q8_0.gguf")));
        assert_eq!(find(&options, "org/name", "main", Some("q8_0")), expected);
        assert_eq!(find(&options, "org/name", "abc", Some("m-Q8_0.gguf")), expected);
        assert_eq!(find(&options, "org/name", "other", Some("q8_0")), None);
        assert_eq!(find(&options, "org/other", "main", None), None);
    }

    #[test]
    fn a_gguf_in_parts_counts_only_with_all_of_them() {
        let home = tempfile::tempdir().unwrap();
        let snapshot = snapshot_with(home.path(), &[("m-Q8_0-00001-of-00002.gguf", "x"), ("m-Q4_0.gguf", "x")]);
        let options = options(home.path());
        assert_eq!(find(&options, "org/name", "main", Some("q8_0")), None);
        fs::write(snapshot.join("m-Q8_0-00002-of-00002.gguf"), "x").unwrap();
        let first = LocatedKind::Gguf(snapshot.join("m-Q8_0-00001-of-00002.gguf"));
        assert_eq!(find(&options, "org/name", "main", Some("q8_0")), Some(first));
    }

    #[test]
    fn a_folder_counts_only_with_every_shard() {
        let home = tempfile::tempdir().unwrap();
        let index =
            r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
        let snapshot = snapshot_with(
            home.path(),
            &[
                ("config.json", "{}"),
                ("tokenizer.json", "{}"),
                ("model.safetensors.index.json", index),
                ("model-00001-of-00002.safetensors", "x"),
            ],
        );
        let options = options(home.path());
        assert_eq!(find(&options, "org/name", "main", None), None);
        fs::write(snapshot.join("model-00002-of-00002.safetensors"), "x").unwrap();
        assert_eq!(find(&options, "org/name", "main", None), Some(LocatedKind::Folder(snapshot)));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_missing_blob_is_no_file() {
        let home = tempfile::tempdir().unwrap();
        let snapshot = snapshot_with(home.path(), &[]);
        std::os::unix::fs::symlink("../../blobs/missing", snapshot.join("m.gguf")).unwrap();
        assert_eq!(find(&options(home.path()), "org/name", "main", None), None);
    }

    #[test]
    fn a_saved_token_is_found() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(token(&options(home.path())), None);
        fs::write(home.path().join("token"), "hf_saved\n").unwrap();
        assert_eq!(token(&options(home.path())).as_deref(), Some("hf_saved"));
    }
}
