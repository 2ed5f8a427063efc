//! Pulls from an Ollama registry on a loopback socket: no test reaches further.

use std::fs;
use std::time::Duration;

use super::registry::RegistryName;
use super::test_server::{Reply, Request, TestServer, hub, sha256};
use super::*;

const IMAGE: &str = "application/vnd.ollama.image";
const NAME: &str = "ollama://tiny:1b";

/// What a registry has: manifests and blobs by the ends of their paths.
#[derive(Clone)]
struct Shelf(Vec<(String, Vec<u8>)>);

impl Shelf {
    /// `tiny:1b`, with all the texts that Ollama keeps.
    fn tiny() -> Self {
        let texts = [("template", "{{ .Prompt }}"), ("params", "{}"), ("license", "one"), ("license", "two")];
        let layers = texts.iter().map(|(kind, text)| (*kind, text.as_bytes().to_vec()));
        let layers = layers.chain([("model", content()), ("system", b"be kind".to_vec()), ("projector", vec![1])]);
        Self::of(layers.collect())
    }

    fn of(layers: Vec<(&str, Vec<u8>)>) -> Self {
        let listed: Vec<_> =
            layers.iter().map(|(kind, bytes)| layer(kind, &format!("sha256:{}", sha256(bytes)), bytes.len())).collect();
        let mut files = vec![("manifests/1b".to_owned(), manifest(&listed))];
        files.extend(layers.into_iter().map(|(_, bytes)| (format!("sha256:{}", sha256(&bytes)), bytes)));
        Self(files)
    }

    fn answer(&self, request: &Request) -> Reply {
        let files: Vec<_> = self.0.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        hub(&files, request)
    }
}

fn layer(kind: &str, digest: &str, size: usize) -> serde_json::Value {
    serde_json::json!({ "mediaType": format!("{IMAGE}.{kind}"), "digest": digest, "size": size })
}

fn manifest(layers: &[serde_json::Value]) -> Vec<u8> {
    serde_json::json!({ "schemaVersion": 2, "layers": layers }).to_string().into_bytes()
}

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A store and options whose registry is at `url`, with a hub's token that no registry may see.
struct Machine {
    _folder: tempfile::TempDir,
    store: Store,
    options: HubOptions,
}

impl Machine {
    fn new(url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("models")).unwrap();
        let options = HubOptions {
            endpoint: "http://127.0.0.1:1".into(),
            token: Some("hub_secret".into()),
            ollama_registry: Some(url.to_owned()),
            retries: 2,
            backoff_base: Duration::from_millis(1),
            read_timeout: Duration::from_secs(5),
            ..HubOptions::default()
        };
        Self { _folder: folder, store, options }
    }

    fn pull(&self, text: &str) -> Result<Located, HubError> {
        let name = understand(text, &Catalog::embedded(), &self.store, &self.options)?;
        pull(&name, &self.store, &self.options, &mut ())
    }
}

fn is_blob(request: &Request) -> bool {
    request.path.contains("/blobs/")
}

fn blobs(requests: &[Request]) -> Vec<Request> {
    requests.iter().filter(|request| is_blob(request)).cloned().collect()
}

#[test]
fn a_model_arrives_with_its_texts_and_is_found_by_its_name() {
    let server = TestServer::start(|request, _| Shelf::tiny().answer(request));
    let machine = Machine::new(&server.url());
    let located = machine.pull(NAME).unwrap();
    assert_eq!(located.display_name, "tiny:1b");
    let LocatedKind::Gguf(path) = &located.kind else { panic!("{located:?}") };
    assert!(fs::read(path).unwrap() == content());
    let stored = machine.store.get("tiny:1b").unwrap().unwrap();
    let authority = server.url().replace("http://", "");
    assert_eq!(stored.source, format!("{authority}/library/tiny"));
    let manifest = Shelf::tiny().0.remove(0).1;
    assert_eq!(stored.manifest.revision, sha256(&manifest));
    let kept: Vec<_> = stored.manifest.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(kept, ["model.gguf", "template", "params", "license", "license-2", "system"]);
    assert_eq!(fs::read(path.with_file_name("license-2")).unwrap(), b"two");
    let requests = server.requests();
    assert_eq!(requests[0].path, "/v2/library/tiny/manifests/1b");
    assert_eq!(requests[0].header("accept"), Some("application/vnd.docker.distribution.manifest.v2+json"));
    assert!(requests.iter().all(|request| request.header("authorization").is_none()));

    // Nothing is asked again, with the registry configured or without.
    assert_eq!(machine.pull(NAME).unwrap(), located);
    let alone = HubOptions { ollama_registry: None, offline: true, ..machine.options.clone() };
    let name = understand("tiny:1b", &Catalog::embedded(), &machine.store, &alone).unwrap();
    assert_eq!(name, ModelName::Stored("tiny:1b".into()));
    assert_eq!(pull(&name, &machine.store, &alone, &mut ()).unwrap(), located);
    assert_eq!(server.requests().len(), requests.len());
}

#[test]
fn names_go_where_they_say() {
    let server = TestServer::start(|request, _| Shelf::tiny().answer(request));
    let url = server.url();
    let authority = url.replace("http://", "");
    for (text, shown, asked) in [
        ("tiny:1b".to_owned(), "tiny:1b".to_owned(), "/v2/library/tiny/manifests/1b"),
        ("library/tiny:1b".into(), "tiny:1b".into(), "/v2/library/tiny/manifests/1b"),
        ("ollama://someone/tiny:1b".into(), "someone/tiny:1b".into(), "/v2/someone/tiny/manifests/1b"),
        (format!("{url}/someone/tiny:1b"), format!("{authority}/someone/tiny:1b"), "/v2/someone/tiny/manifests/1b"),
    ] {
        let machine = Machine::new(&url);
        assert_eq!(machine.pull(&text).unwrap().display_name, shown);
        let path = server.requests().iter().rev().find(|request| !is_blob(request)).unwrap().path.clone();
        assert_eq!(path, asked, "{text}");
    }
}

#[test]
fn a_name_chooses_the_catalog_the_hub_or_a_registry() {
    let machine = Machine::new("https://r.example");
    let unset = HubOptions { ollama_registry: None, ..machine.options.clone() };
    let means = |text: &str, options: &HubOptions| match understand(text, &Catalog::embedded(), &machine.store, options)
    {
        Ok(ModelName::Registry(name)) => {
            format!("{} {}", name.endpoint(options), name.repository(options).split_once('/').unwrap().1)
        }
        Ok(ModelName::Catalog(entry)) => format!("catalog {}", entry.name),
        Ok(ModelName::Hub { repository, .. }) => format!("hub {repository}"),
        other => format!("{other:?}").chars().take(3).collect(),
    };
    let ours = "https://registry.ollama.ai";
    for (text, configured, without) in [
        ("smollm2:135m", "catalog smollm2:135m".to_owned(), "catalog smollm2:135m".to_owned()),
        ("qwen3", "catalog qwen3:8b".into(), "catalog qwen3:8b".into()),
        ("org/name", "hub org/name".into(), "hub org/name".into()),
        ("org.name/b:sub/file", "hub org.name/b".into(), "hub org.name/b".into()),
        ("nobodys:1b", "https://r.example library/nobodys".into(), "Err".into()),
        ("nobodys", "https://r.example library/nobodys".into(), "Err".into()),
        ("library/smollm2:135m", "https://r.example library/smollm2".into(), "hub library/smollm2".into()),
        ("ollama://smollm2:135m", "https://r.example library/smollm2".into(), format!("{ours} library/smollm2")),
        ("ollama://a/b:c", "https://r.example a/b".into(), format!("{ours} a/b")),
        ("registry.ollama.ai/library/x:1", format!("{ours} library/x"), format!("{ours} library/x")),
        ("box:5000/a/b", "https://box:5000 a/b".into(), "https://box:5000 a/b".into()),
        ("http://Box:5000/a/b:c", "http://box:5000 a/b".into(), "http://box:5000 a/b".into()),
        ("hf.co/org/name:q4_k_m", "hub org/name".into(), "hub org/name".into()),
        ("https://h.example/a", "Err".into(), "Err".into()),
        ("http://h.example/a/../b", "Err".into(), "Err".into()),
        ("http://user@h.example/a/b", "Err".into(), "Err".into()),
        ("ollama://../b", "Err".into(), "Err".into()),
        ("ollama://a:b?c", "Err".into(), "Err".into()),
        ("ollama://", "Err".into(), "Err".into()),
    ] {
        assert_eq!((means(text, &machine.options), means(text, &unset)), (configured, without), "{text}");
    }
    let known = |text: &str| RegistryName::explicit(text).unwrap().unwrap().is_of_a_known_registry(&machine.options);
    for text in ["ollama://x", "registry.ollama.ai/a/b", "https://r.example/a/b", "r.example/a/b"] {
        assert!(known(text), "{text}");
    }
    for text in ["http://r.example/a/b", "s.example/a/b", "http://127.0.0.1/a/b"] {
        assert!(!known(text), "{text}");
    }
}

#[test]
fn a_damaged_layer_never_reaches_the_store() {
    let server = TestServer::start(|request, _| {
        let mut damaged = content();
        damaged[12_345] ^= 1;
        if is_blob(request) { Reply::status(200).body(damaged) } else { Shelf::tiny().answer(request) }
    });
    let machine = Machine::new(&server.url());
    let error = machine.pull(NAME).unwrap_err();
    assert!(matches!(&error, HubError::Checksum { expected, .. } if *expected == sha256(&content())), "{error}");
    assert_eq!(machine.store.list().unwrap(), []);
}

#[test]
fn a_broken_connection_is_continued_where_it_broke() {
    let server = TestServer::start(|request, earlier| match blobs(earlier).len() {
        0 if is_blob(request) => Shelf::tiny().answer(request).breaking_off_after(100_000),
        _ => Shelf::tiny().answer(request),
    });
    let machine = Machine::new(&server.url());
    let located = machine.pull(NAME).unwrap();
    assert!(fs::read(located.kind.path()).unwrap() == content());
    let blobs = blobs(&server.requests());
    assert_eq!((blobs[0].header("range"), blobs[1].header("range")), (None, Some("bytes=100000-")));
    assert_eq!(blobs[0].path, blobs[1].path);
}

#[test]
fn a_token_is_fetched_without_credentials_and_stays_with_the_registry() {
    let storage = TestServer::start(|request, _| Shelf::tiny().answer(request));
    let elsewhere = storage.url();
    let server = TestServer::start(move |request, _| {
        let own = format!("http://{}", request.header("host").unwrap());
        if request.path.starts_with("/token") {
            return Reply::status(200).body(br#"{"token":"for_anybody"}"#.to_vec());
        }
        if request.header("authorization") != Some("Bearer for_anybody") {
            let scope = "repository:library/tiny:pull";
            let challenge = format!("Bearer realm=\"{own}/token\",service=\"here\",scope=\"{scope}\"");
            return Reply::status(401).with("www-authenticate", challenge);
        }
        match is_blob(request) {
            true => Reply::status(307).with("location", format!("{elsewhere}{}", request.path)),
            false => Shelf::tiny().answer(request),
        }
    });
    let machine = Machine::new(&server.url());
    let located = machine.pull(NAME).unwrap();
    assert!(fs::read(located.kind.path()).unwrap() == content());
    let requests = server.requests();
    let tokens: Vec<_> = requests.iter().filter(|request| request.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1, "one token serves all layers");
    assert_eq!(tokens[0].path, "/token?service=here&scope=repository:library/tiny:pull");
    assert_eq!(tokens[0].header("authorization"), None);
    assert_eq!(requests.iter().filter(|request| request.header("authorization").is_some()).count(), 7);
    assert_eq!(storage.requests().len(), 6);
    assert!(storage.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[test]
fn a_registry_that_wants_an_account_is_not_asked_forever() {
    for realm_status in [200, 401] {
        let server = TestServer::start(move |request, _| {
            let own = format!("http://{}", request.header("host").unwrap());
            match request.path.starts_with("/token") {
                true => Reply::status(realm_status).body(br#"{"token":"useless"}"#.to_vec()),
                false => Reply::status(401).with("www-authenticate", format!("Bearer realm=\"{own}/token\"")),
            }
        });
        let error = Machine::new(&server.url()).pull(NAME).unwrap_err();
        assert!(matches!(error, HubError::Denied { .. }), "{error}");
        assert!(error.to_string().contains("/library/tiny:1b"), "{error}");
        assert!(server.requests().len() <= 3);
    }
}

#[test]
fn what_a_registry_lacks_is_named() {
    let server = TestServer::start(|_, _| Reply::status(404));
    let error = Machine::new(&server.url()).pull("ollama://tiny:9b").unwrap_err();
    assert!(matches!(error, HubError::NotFound { service: Service::Registry, .. }), "{error}");
    let message = error.to_string();
    let authority = server.url().replace("http://", "");
    assert!(message.starts_with(&format!("the registry has no model {authority}/library/tiny:9b")), "{message}");
    assert!(message.contains("the tag") && !message.contains("HF_"), "{message}");
}

#[test]
fn a_manifest_of_absurd_size_is_refused() {
    let server = TestServer::start(|_, _| Reply::status(200).body(vec![b' '; 3 << 20]));
    let error = Machine::new(&server.url()).pull(NAME).unwrap_err();
    assert!(matches!(error, HubError::BadAnswer { .. }) && error.to_string().contains("longer than"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn manifests_that_make_no_sense_are_refused_before_anything_is_downloaded() {
    let (sound, weights) = (format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64)));
    let model = || layer("model", &weights, 4);
    let upper = format!("sha256:{}", "A".repeat(64));
    for (layers, reason) in [
        (vec![layer("model", "sha256:../../x", 4)], "../../x"),
        (vec![layer("model", &format!("sha256:../{}", "a".repeat(61)), 4)], "no SHA-256"),
        (vec![layer("model", &upper, 4)], "no SHA-256"),
        (vec![model(), layer("template", "sha256-aa", 4)], "no SHA-256"),
        (vec![model(), layer("license", &sound, 1 << 40)], "its license has"),
        (vec![model(), layer("adapter", &sound, 4)], "adapter"),
        (vec![model(), model()], "split into 2"),
        (vec![layer("model", &weights, 0)], "no bytes"),
        (vec![layer("template", &sound, 4)], "no layer of weights"),
        (vec![], "no layer of weights"),
        (vec![model(); 100], "100 layers"),
        (vec![serde_json::json!({"mediaType": 1})], "mediaType"),
    ] {
        let manifest = manifest(&layers);
        let server = TestServer::start(move |_, _| Reply::status(200).body(manifest.clone()));
        let machine = Machine::new(&server.url());
        let error = machine.pull(NAME).unwrap_err();
        let is_told = matches!(&error, HubError::BadAnswer { .. }) && error.to_string().contains(reason);
        assert!(is_told || reason == "mediaType" && matches!(error, HubError::BadAnswer { .. }), "{reason}: {error}");
        assert_eq!(server.requests().len(), 1, "{reason}");
        assert_eq!(machine.store.list().unwrap(), []);
    }
}

#[test]
fn the_registry_that_is_named_is_the_one_a_model_is_from() {
    let server = TestServer::start(|request, _| Shelf::tiny().answer(request));
    let machine = Machine::new(&server.url());
    let theirs = machine.store.root().join("theirs");
    fs::write(&theirs, "another").unwrap();
    let file = ManifestFile { path: "a.gguf".into(), bytes: 7, sha256: "c".repeat(64) };
    machine.store.adopt(&theirs, file, "elsewhere", "tiny:1b").unwrap();
    // By its plain name it is here; by the registry's it is another one, which takes its place.
    assert_eq!(fs::read(machine.pull("tiny:1b").unwrap().kind.path()).unwrap(), b"another");
    assert_eq!(server.requests().len(), 0);
    assert!(fs::read(machine.pull(NAME).unwrap().kind.path()).unwrap() == content());
    assert_eq!(machine.store.list().unwrap().len(), 1);
    assert_eq!(fs::read(&theirs).unwrap(), b"another");
}

#[test]
fn a_registry_that_nobody_can_reach_or_address_is_named_as_such() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = Machine::new(&address).pull(NAME).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { service: Service::Registry, .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains(&address) && message.contains("LANTERN_OLLAMA_REGISTRY"), "{message}");
    let error = Machine::new("ftp://x").pull(NAME).unwrap_err();
    assert!(matches!(error, HubError::Endpoint { service: Service::Registry, .. }), "{error}");
}
