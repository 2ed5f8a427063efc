//! Models in several GGUF files, pulled from a hub on a loopback socket.

use std::fs;

use super::catalog::Catalog;
use super::test_server::{Request, TestServer, hub};
use super::tests::{Machine, downloads_in, options};
use super::*;

const FIRST: &str = "m-q4_k_m-00001-of-00003.gguf";

/// A repository with a model in three parts and one in a file.
fn files() -> [(&'static str, &'static [u8]); 5] {
    [
        ("README.md", b"text"),
        ("m-q2_k.gguf", &[9; 100]),
        ("m-q4_k_m-00003-of-00003.gguf", &[3; 70_000]),
        ("m-q4_k_m-00002-of-00003.gguf", &[2; 60_000]),
        (FIRST, &[1; 50_000]),
    ]
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text, &Catalog::embedded()).unwrap()
}

/// The files that were asked for, in order.
fn asked_for(downloads: &[Request]) -> Vec<&str> {
    downloads.iter().map(|request| request.path.rsplit('/').next().unwrap_or_default()).collect()
}

#[test]
fn all_parts_arrive_and_the_first_stands_for_them() {
    let server = TestServer::start(|request, _| hub(&files(), request));
    let options = options(&server.url());
    for text in ["org/name", "org/name:Q4_K_M"] {
        let (machine, name) = (Machine::new(), name(text));
        let located = machine.pull(&name, &options).unwrap();
        let stored = machine.store.get(text).unwrap().unwrap();
        assert_eq!((&stored.kind, stored.bytes), (&located.kind, 180_000));
        let LocatedKind::Gguf(first) = &located.kind else { panic!("{located:?}") };
        assert!(first.ends_with(FIRST), "{}", first.display());
        let paths: Vec<&str> = stored.manifest.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, [FIRST, "m-q4_k_m-00002-of-00003.gguf", "m-q4_k_m-00003-of-00003.gguf"]);
        for (path, content) in &files()[2..] {
            assert!(fs::read(first.with_file_name(path)).unwrap() == *content, "{path}");
        }
        // It is here: nothing is asked for.
        let offline = HubOptions { offline: true, ..options.clone() };
        assert_eq!(machine.pull(&name, &offline).unwrap(), located);
        machine.store.copy(text, "mine").unwrap();
        machine.store.remove(text).unwrap();
        assert!(!first.exists());
        machine.assert_of_parts("mine");
    }
}

#[test]
fn parts_that_have_arrived_are_not_asked_for_again() {
    let server = TestServer::start(|request, earlier| match downloads_in(earlier) {
        1 if request.is_download() => hub(&files(), request).breaking_off_after(10_000),
        _ => hub(&files(), request),
    });
    let (machine, options) = (Machine::new(), HubOptions { retries: 0, ..options(&server.url()) });
    let name = name("org/name:q4_k_m");
    assert!(matches!(machine.pull(&name, &options), Err(HubError::Interrupted { .. })));
    machine.assert_empty(&name, &options);
    machine.pull(&name, &options).unwrap();
    let [second, third] = ["m-q4_k_m-00002-of-00003.gguf", "m-q4_k_m-00003-of-00003.gguf"];
    let downloads = server.downloads();
    assert_eq!(asked_for(&downloads), [FIRST, second, second, third]);
    assert_eq!(downloads[2].header("range"), Some("bytes=10000-"));
}

#[test]
fn an_entry_of_the_catalog_may_name_the_first_part() {
    let server = TestServer::start(|request, _| hub(&files(), request));
    let text = format!(
        "[[model]]\nname = \"parts:1\"\ndefault = true\nrepository = \"org/name\"\nfile = \"{FIRST}\"\nbytes = 180000\n\
         parameters = 1\ncontext_tokens = 1\nlayers = 1\nkv_heads = 1\nhead_dim = 1\nsource = \"a page\"\n"
    );
    let name = ModelName::parse("parts:1", &Catalog::from_toml(&text).unwrap()).unwrap();
    let (machine, options) = (Machine::new(), options(&server.url()));
    machine.pull(&name, &options).unwrap();
    machine.assert_of_parts("parts:1");
}

#[test]
fn a_damaged_part_leaves_no_model() {
    let server = TestServer::start(|request, _| {
        let reply = hub(&files(), request);
        let is_second = request.is_download() && request.path.ends_with("00002-of-00003.gguf");
        if is_second { reply.body(vec![7; 60_000]) } else { reply }
    });
    let (machine, options) = (Machine::new(), options(&server.url()));
    let name = name("org/name:q4_k_m");
    let error = machine.pull(&name, &options).unwrap_err();
    assert!(matches!(error, HubError::Checksum { .. }), "{error}");
    machine.assert_empty(&name, &options);
}

#[test]
fn a_part_that_the_hub_lacks_is_named() {
    let server = TestServer::start(|request, _| hub(&files()[..4], request));
    let error = Machine::new().pull(&name("org/name:q4_k_m"), &options(&server.url())).unwrap_err().to_string();
    assert!(error.contains("part 1 of m-q4_k_m-00002-of-00003.gguf is missing"), "{error}");
}

impl Machine {
    /// Asserts that a model is here in three parts, and located by the first.
    fn assert_of_parts(&self, name: &str) {
        let stored = self.store.get(name).unwrap().unwrap();
        assert!(stored.kind.path().ends_with(FIRST) && stored.manifest.files.len() == 3, "{stored:?}");
        assert_eq!(self.store.list().unwrap(), [stored]);
    }
}
