//! `lantern serve`: binds, loads while it says so, says what runs, and serves until it is told to stop.
//!
//! Knows no routes.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::net::TcpListener;

use super::client::Client;
use super::flags::{AddressFlags, EngineFlags, StoreFlags};
use super::load::{self, BUILT_IN_CONTEXT};
use super::startup::Startup;
use super::{CliError, Session};
use crate::config::{
    Address, AlreadyQuantized, ByteSize, Config, DeviceWish, EngineConfig, KeepAlive, Origins, Settings,
};
use crate::device::{self, Device, Hardware, Probing};
use crate::hub::{Catalog, gpu_free_bytes};
use crate::llm::{Llm, ModelInfo, ModelLibrary};
use crate::server::{self, Loading, ServeError, ServedModels, ServerConfig};

/// Arguments of `lantern serve`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:\n  lantern serve\n  lantern serve qwen3:8b --host 0.0.0.0\n  \
                        lantern serve ./model.gguf --port 8080 --context 8192 --kv-cache 4GiB\n\n\
                        Exit codes: 0 after SIGTERM or Ctrl-C, 1 if it cannot start, 2 if the flags are wrong,\n\
                        70 after the engine has stopped by itself (a defect, or a GPU that fails): start it again.")]
pub struct ServeArgs {
    /// Models to serve: names of the catalog, org/name, folders or .gguf files [default: smollm2:135m]. Others on this
    /// machine are loaded when they are asked for by name
    models: Vec<String>,
    /// Keep these models loaded, whatever else is asked for
    #[arg(long)]
    pin: bool,
    /// How long an idle model stays loaded, like 5m; -1 is until its memory is needed [default: -1]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    keep_alive: Option<KeepAlive>,
    #[command(flatten)]
    address: AddressFlags,
    #[command(flatten)]
    store: StoreFlags,
    /// Seconds that running requests have to finish once the server is told to stop [default: 30]
    #[arg(long, value_name = "SECONDS")]
    drain_timeout_s: Option<u64>,
    /// Largest request body, like 8MiB [default: 16MiB]
    #[arg(long, value_name = "SIZE", hide_short_help = true)]
    max_body: Option<ByteSize>,
    /// Web pages that may call besides this machine's own, like https://chat.example.org; * is all
    #[arg(long, value_name = "ORIGIN", hide_short_help = true)]
    origin: Vec<String>,
    /// What is logged, like `debug` or `lantern=debug` [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Answers written beforehand, for tests of clients: a JSON list of {after, say} or {after, tokens}
    #[arg(long, value_name = "FILE", hide = true)]
    scripted: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

impl ServeArgs {
    fn settings(self) -> Settings {
        let base = Settings {
            model: self.models.into_iter().next(),
            keep_alive: self.keep_alive,
            drain_timeout_s: self.drain_timeout_s,
            max_body: self.max_body,
            origins: (!self.origin.is_empty()).then_some(Origins(self.origin)),
            log: self.log,
            ..Settings::default()
        };
        self.engine.fill(self.store.fill(self.address.fill(base)))
    }
}

/// Serves until SIGTERM or Ctrl-C.
///
/// # Errors
/// [`CliError`]: the address is taken, the model cannot be loaded, or the engine stopped by itself.
pub fn run(args: ServeArgs, session: &Session) -> Result<(), CliError> {
    let (mut models, pin, script) = (args.models.clone(), args.pin, args.scripted.clone());
    let mut config = session.resolve(args.settings())?;
    session.log(&config, "info")?;
    if models.is_empty() {
        config.engine.already_quantized = AlreadyQuantized::Keep;
        models.extend(config.model.clone());
    }
    let runtime = super::runtime()?;
    let ended = runtime.block_on(serve(config, models, pin, script, session));
    // A model that is being loaded is not waited for.
    runtime.shutdown_background();
    ended
}

async fn serve(
    config: Config,
    models: Vec<String>,
    pin: bool,
    script: Option<PathBuf>,
    session: &Session,
) -> Result<(), CliError> {
    // Before the model, which takes longer: a port in use shows at once.
    let listener = bind(&config.server.address).await?;
    let port = listener.local_addr().map_or(config.server.address.port, |address: SocketAddr| address.port());
    let address = Address { port, ..config.server.address.clone() };
    // What fits is asked before this model takes its part.
    let hardware = Hardware::detect();
    let progress = Loading::default();
    let loading = {
        let (config, session, progress) = (config.clone(), *session, progress.clone());
        tokio::task::spawn_blocking(move || load::load_all(&config, &models, &session, &progress))
    };
    let loaded = server::answer_while_loading(&listener, &progress, loading)
        .await
        .map_err(|error| CliError::Refused(format!("loading the model broke off: {error}")))??;
    let (mut loaded, further_names): (Vec<Llm>, Vec<_>) =
        loaded.into_iter().map(|named| (named.llm, named.further_names)).unzip();
    if let Some(script) = script {
        let scripted = loaded.iter().map(|llm| llm.with_script(&script)).collect::<Result<Vec<_>, _>>();
        loaded = scripted.map_err(|error| CliError::Refused(error.to_string()))?;
    }
    let stop = StopSignals::listen()?;
    let infos: Vec<_> = loaded.iter().map(Llm::info).collect();
    let largest = room_for_models(hardware, &config.engine, &infos).and_then(|room| largest(room, &infos));
    let startup = Startup { models: &infos, address: &address, largest };
    session.print(&format!("{startup}\n"))?;
    // What was asked of the models that were named is a wish for others.
    let engine = EngineConfig {
        already_quantized: AlreadyQuantized::Keep,
        kv_cache_bytes: None,
        kv_cache_most_bytes: config.engine.kv_cache_bytes,
        ..config.engine.clone()
    };
    let library = ModelLibrary::new(config.hub.clone(), load::hub_options(&config.hub), engine);
    let own_names: Vec<String> = loaded.iter().map(|llm| llm.info().name.clone()).collect();
    let mut models = ServedModels::new(loaded, library);
    for (own, further) in own_names.iter().zip(further_names) {
        models = further.into_iter().fold(models, |models, name| models.with_further_name(own, name));
    }
    let models = if pin { models.pinned() } else { models };
    server::serve(listener, models, server_config(&config), stop.first()).await.map_err(|error| match error {
        ServeError::Address(source) => CliError::Io { doing: "serving ended", source },
        ServeError::EngineDied(reason) => CliError::EngineDied(reason),
    })
}

/// Memory that models could be put into, and how much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// Main memory, as it was before these models were loaded.
    Main(u64),
    /// The GPU that serves, if nobody else held any of it.
    Gpu(u64),
}

/// Where other models would run, if it is known how much there is.
fn room_for_models(mut hardware: Hardware, engine: &EngineConfig, models: &[&ModelInfo]) -> Option<Room> {
    let on_gpu = models.iter().find_map(|model| match model.runs_on {
        Device::Cuda { ordinal } => Some(ordinal),
        Device::Cpu => None,
    });
    let Some(ordinal) = on_gpu else { return hardware.memory.map(|memory| Room::Main(memory.available_bytes)) };
    hardware.ask_driver(Probing::None, None);
    let climb = device::choose(&hardware, DeviceWish::Cpu).ok()?.climb;
    let total_bytes = climb.gpus.iter().find(|gpu| gpu.ordinal == ordinal)?.total_bytes;
    Some(Room::Gpu(engine.gpu_memory_limit_bytes.map_or(total_bytes, |limit| limit.min(total_bytes))))
}

/// The largest model of the catalog that would run there and is larger than `models`, and where that is.
fn largest(room: Room, models: &[&ModelInfo]) -> Option<(String, &'static str)> {
    let catalog = Catalog::embedded();
    let (entry, place) = match room {
        Room::Main(bytes) => (catalog.largest_that_fits(bytes, BUILT_IN_CONTEXT)?, "in memory"),
        Room::Gpu(bytes) => (catalog.largest_that_fits_gpu(gpu_free_bytes(bytes), BUILT_IN_CONTEXT)?, "on the GPU"),
    };
    let is_larger = models.iter().all(|model| entry.parameters > model.parameters && entry.name != model.name);
    is_larger.then(|| (entry.name.clone(), place))
}

/// The server's own defaults, and what was set.
fn server_config(config: &Config) -> ServerConfig {
    let default = ServerConfig::default();
    ServerConfig {
        keep_alive: config.keep_alive,
        drain_timeout: config.server.drain_timeout.unwrap_or(default.drain_timeout),
        body_bytes: config.server.max_body_bytes.unwrap_or(default.body_bytes),
        origins: match config.server.origins.as_slice() {
            [] => default.origins,
            listed if listed.iter().any(|origin| origin == "*") => server::Origins::Any,
            listed => server::Origins::Listed(listed.to_vec()),
        },
        ..default
    }
}

async fn bind(address: &Address) -> Result<TcpListener, CliError> {
    match TcpListener::bind((address.host.as_str(), address.port)).await {
        Ok(listener) => Ok(listener),
        Err(source) => {
            let probed = address.clone();
            // Only to tell who is there; if that fails, the message does without.
            let holder = tokio::task::spawn_blocking(move || who_answers(&probed)).await.unwrap_or_default();
            Err(CliError::Bind { message: why_not_bound(address, source.kind(), holder.as_deref()), source })
        }
    }
}

/// The greeting of whoever holds the address.
fn who_answers(address: &Address) -> Option<String> {
    let client = Client::new(address);
    // A Lantern greets as Ollama does, and says here that it is one.
    if client.get("/api/version").is_ok_and(|(_, version)| version.contains("\"lantern\"")) {
        return Some("Lantern is running".into());
    }
    client.get("/").ok().map(|(_, text)| text)
}

fn why_not_bound(address: &Address, kind: io::ErrorKind, greeting: Option<&str>) -> String {
    let port = address.port;
    let other = if port == u16::MAX { port - 1 } else { port + 1 };
    let remedy = format!("stop it, or serve on another port: --port {other}");
    match (kind, greeting) {
        (io::ErrorKind::AddrInUse, Some(text)) if text.starts_with("Lantern is running") => {
            format!("a Lantern already serves at {address}; {remedy}")
        }
        (io::ErrorKind::AddrInUse, Some(text)) if text.starts_with("Ollama is running") => {
            format!("Ollama holds {address}, where Lantern serves too; {remedy}")
        }
        (io::ErrorKind::AddrInUse, _) => format!("another program holds {address}; {remedy}"),
        (io::ErrorKind::AddrNotAvailable, _) => {
            format!("this machine has no address {}; 127.0.0.1 is this machine, 0.0.0.0 all its networks", address.host)
        }
        (io::ErrorKind::PermissionDenied, _) => {
            format!("port {port} is for administrators; choose one from 1024 up with --port")
        }
        _ => format!("cannot listen on {address}"),
    }
}

/// The orders to stop, heard from the moment this exists.
struct StopSignals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    #[cfg(unix)]
    fn listen() -> Result<Self, CliError> {
        use tokio::signal::unix::{SignalKind, signal};
        let listen = |kind| signal(kind).map_err(|source| CliError::Io { doing: "signals cannot be heard", source });
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    #[cfg(not(unix))]
    fn listen() -> Result<Self, CliError> {
        Ok(Self {})
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The first order; a second one ends the process at once.
    async fn first(mut self) {
        self.next().await;
        eprintln!("Stopping: running requests may finish. Ctrl-C again ends them.");
        tokio::spawn(async move {
            self.next().await;
            std::process::exit(super::INTERRUPTED.into());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lantern_that_greets_as_an_ollama_is_told_from_one() {
        use std::io::{Read as _, Write as _};
        for (version, expected) in [
            (r#"{"version":"0.12.0","lantern":"0.1.0"}"#, "Lantern is running"),
            (r#"{"version":"0.12.0"}"#, "Ollama is running"),
        ] {
            let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            let port = server.local_addr().expect("an address").port();
            std::thread::spawn(move || {
                for stream in server.incoming() {
                    let (mut stream, mut head) = (stream.expect("a connection"), [0; 1024]);
                    let read = stream.read(&mut head).expect("a request");
                    let of_version = String::from_utf8_lossy(&head[..read]).starts_with("GET /api/version");
                    let body = if of_version { version } else { "Ollama is running" };
                    let length = body.len();
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                    stream.write_all((head + body).as_bytes()).expect("to write");
                }
            });
            let address = Address { host: "127.0.0.1".into(), port };
            assert_eq!(who_answers(&address).as_deref(), Some(expected));
        }
    }

    #[test]
    fn an_address_that_cannot_be_had_says_what_to_do() {
        let address = Address::default();
        let cases = [
            (
                io::ErrorKind::AddrInUse,
                Some("Ollama is running"),
                "Ollama holds 127.0.0.1:11434, where Lantern serves too; stop it, or serve on another port: --port 11435",
            ),
            (
                io::ErrorKind::AddrInUse,
                Some("Lantern is running"),
                "a Lantern already serves at 127.0.0.1:11434; stop it, or serve on another port: --port 11435",
            ),
            (
                io::ErrorKind::AddrInUse,
                None,
                "another program holds 127.0.0.1:11434; stop it, or serve on another port: --port 11435",
            ),
            (
                io::ErrorKind::AddrNotAvailable,
                None,
                "this machine has no address 127.0.0.1; 127.0.0.1 is this machine, 0.0.0.0 all its networks",
            ),
            (
                io::ErrorKind::PermissionDenied,
                None,
                "port 11434 is for administrators; choose one from 1024 up with --port",
            ),
            (io::ErrorKind::Other, None, "cannot listen on 127.0.0.1:11434"),
        ];
        for (kind, greeting, expected) in cases {
            assert_eq!(why_not_bound(&address, kind, greeting), expected);
        }
    }

    #[test]
    fn the_largest_model_is_that_of_the_place_that_serves() {
        let name = |room, parameters| {
            let model = ModelInfo { parameters, ..crate::cli::startup::tests::model() };
            largest(room, &[&model])
        };
        let (gib, small) = (1 << 30, 100_000_000);
        assert_eq!(name(Room::Gpu(8 * gib), small), Some(("qwen3:8b".to_owned(), "on the GPU")));
        assert_eq!(name(Room::Gpu(24 * gib), small), Some(("qwen2.5:32b".to_owned(), "on the GPU")));
        assert_eq!(name(Room::Main(gib), small), Some(("qwen2.5:0.5b".to_owned(), "in memory")));
        assert_eq!(name(Room::Gpu(8 * gib), 9_000_000_000), None, "a smaller one is no news");
        assert_eq!(name(Room::Gpu(gib / 2), small), None);
    }

    #[tokio::test]
    async fn a_port_in_use_is_found_before_anything_is_loaded() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = holder.local_addr().expect("an address").port();
        // Who holds it is asked; this holder hangs up.
        let hang_up = std::thread::spawn(move || drop(holder.accept()));
        let error = bind(&Address { host: "127.0.0.1".into(), port }).await.expect_err("in use").to_string();
        assert!(error.starts_with(&format!("another program holds 127.0.0.1:{port}; stop it,")), "{error}");
        hang_up.join().expect("the holder");
    }
}
