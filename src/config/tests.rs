//! Tables of flags, environments and files, and what they resolve to.

use super::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];

/// Resolves with `HOME=/home/ada` and these variables and files.
fn resolve(flags: Settings, variables: Pairs<'_>, files: Pairs<'_>) -> Result<Config, ConfigError> {
    let find = |pairs: Pairs<'_>, key: &str| pairs.iter().find(|pair| pair.0 == key).map(|pair| pair.1.to_owned());
    let lookup = |name: &str| find(variables, name).or_else(|| find(&[("HOME", "/home/ada")], name));
    Config::resolve(flags, &lookup, &|path| Ok(find(files, &path.display().to_string())))
}

fn flags(host: Option<&str>, port: Option<u16>) -> Settings {
    Settings { host: host.map(|host| host.parse().expect("a host")), port, ..Settings::default() }
}

#[test]
fn a_format_in_the_environment_is_for_all_models_and_a_flags_for_those_beside_it() {
    let flags = Settings { quantize: Some(WeightFormat::Q8_0), ..Settings::default() };
    for (flags, already_quantized) in [(flags, AlreadyQuantized::Refuse), (Settings::default(), AlreadyQuantized::Keep)]
    {
        let engine = resolve(flags, &[("LANTERN_QUANTIZE", "q8_0")], &[]).expect("valid").engine;
        assert_eq!((engine.quantize, engine.already_quantized), (Some(WeightFormat::Q8_0), already_quantized));
    }
}

#[test]
fn nothing_set_gives_the_defaults() {
    let config = resolve(Settings::default(), &[], &[]).expect("defaults");
    assert_eq!(config.server, ServeConfig::default());
    assert_eq!(config.engine, EngineConfig::default());
    assert_eq!(config.server.address.to_string(), "127.0.0.1:11434");
    assert_eq!(config.hub.models_dir, Path::new("/home/ada/.local/share/lantern/models"));
    assert_eq!((config.model, config.log, config.keep_alive), (None, None, KeepAlive::Forever));
}

#[test]
fn the_address_comes_from_the_highest_layer_that_names_one() {
    let toml: Pairs<'_> = &[("lantern.toml", "host = '10.0.0.9:7000'")];
    let toml_port: Pairs<'_> = &[("lantern.toml", "port = 7000")];
    let cases: [(Settings, Pairs<'_>, Pairs<'_>, &str); 11] = [
        (flags(None, None), &[], toml, "10.0.0.9:7000"),
        (flags(None, None), &[("OLLAMA_HOST", "0.0.0.0")], &[], "0.0.0.0:11434"),
        (flags(None, None), &[("OLLAMA_HOST", ":9000")], &[], "127.0.0.1:9000"),
        (flags(None, None), &[("OLLAMA_HOST", "http://box:9000")], toml, "box:9000"),
        (flags(None, None), &[("LANTERN_HOST", "a"), ("OLLAMA_HOST", "b:9000")], &[], "a:11434"),
        (flags(None, None), &[("LANTERN_HOST", "  "), ("OLLAMA_HOST", "b:9000")], &[], "b:9000"),
        (flags(None, None), &[("LANTERN_PORT", "1"), ("OLLAMA_HOST", "b:9000")], &[], "b:1"),
        (flags(None, Some(2)), &[("LANTERN_PORT", "1"), ("OLLAMA_HOST", "b:9000")], &[], "b:2"),
        (flags(Some("c"), None), &[("OLLAMA_HOST", "b:9000")], toml, "c:11434"),
        (flags(Some("c"), None), &[], toml_port, "c:7000"),
        (flags(Some("c:3"), None), &[("LANTERN_PORT", "1")], toml_port, "c:3"),
    ];
    for (flags, variables, files, expected) in cases {
        let described = format!("{flags:?} {variables:?} {files:?}");
        let config = resolve(flags, variables, files).expect(&described);
        assert_eq!(config.server.address.to_string(), expected, "{described}");
    }
}

#[test]
fn flags_win_over_ours_over_ollamas_over_the_file() {
    let models = |flag: Option<&str>, variables, files| {
        let flags = Settings { models_dir: flag.map(PathBuf::from), ..Settings::default() };
        resolve(flags, variables, files).expect("valid").hub.models_dir.display().to_string()
    };
    let file: Pairs<'_> = &[("lantern.toml", "models_dir = '/file'")];
    let ollama: Pairs<'_> = &[("OLLAMA_MODELS", "/ollama")];
    let both: Pairs<'_> = &[("OLLAMA_MODELS", "/ollama"), ("LANTERN_MODELS", "/ours")];
    assert_eq!(models(None, &[("XDG_DATA_HOME", "/data")], &[]), "/data/lantern/models");
    assert_eq!(models(None, &[], file), "/file");
    assert_eq!(models(None, ollama, file), "/ollama");
    assert_eq!(models(None, both, file), "/ours");
    assert_eq!(models(Some("/flag"), both, file), "/flag");
}

#[test]
fn the_nearest_file_is_read_and_only_that() {
    let near = ("lantern.toml", "max_waiting = 1");
    let user = ("/home/ada/.config/lantern/lantern.toml", "max_waiting = 2\nmax_sequences = 9");
    let xdg = ("/xdg/lantern/lantern.toml", "max_waiting = 3");
    let waiting =
        |variables: Pairs<'_>, files: Pairs<'_>| resolve(Settings::default(), variables, files).expect("valid").engine;
    assert_eq!(waiting(&[], &[near, user]).max_waiting, 1);
    assert_eq!(waiting(&[], &[near, user]).max_sequences, None);
    assert_eq!(waiting(&[], &[user, xdg]).max_waiting, 2);
    assert_eq!(waiting(&[("XDG_CONFIG_HOME", "/xdg")], &[user, xdg]).max_waiting, 3);
}

#[test]
fn sizes_durations_and_switches_reach_their_places() {
    let variables: Pairs<'_> = &[
        ("LANTERN_KV_CACHE", "2GiB"),
        ("LANTERN_CONTEXT", "4096"),
        ("LANTERN_KV_CACHE_DTYPE", "int8"),
        ("LANTERN_GPU_MEMORY_LIMIT", "3GiB"),
        ("LANTERN_GPU_LAYERS", "all"),
        ("LANTERN_PREFIX_CACHE", "off"),
        ("LANTERN_TOOL_PARSER", "DeepSeek"),
        ("LANTERN_MAX_SEQUENCES", "1000"),
        ("LANTERN_MAX_BODY", "1MiB"),
        ("LANTERN_DRAIN_TIMEOUT_S", "5"),
        ("OLLAMA_KEEP_ALIVE", "5m"),
        ("LANTERN_DEVICE", "CPU"),
        ("OLLAMA_ORIGINS", "https://a.example, https://b.example:8443,"),
    ];
    let config = resolve(Settings::default(), variables, &[]).expect("valid");
    assert_eq!(config.engine.kv_cache_bytes, Some(2 << 30));
    assert_eq!(config.engine.context_length, Some(4096));
    assert_eq!(config.engine.kv_dtype, Some(KvDType::Int8));
    assert_eq!(config.engine.gpu_memory_limit_bytes, Some(3 << 30));
    assert_eq!(config.engine.gpu_layers, GpuLayers::All);
    assert!(!config.engine.prefix_cache);
    assert_eq!(config.engine.tool_parser, ToolParser::DeepSeek);
    let sizes = config.engine.step_sizes(StepSizes::CPU);
    assert_eq!((sizes.max_sequences, sizes.max_step_tokens), (1000, 1000));
    assert_eq!(config.server.max_body_bytes, Some(1 << 20));
    assert_eq!(config.server.drain_timeout, Some(Duration::from_secs(5)));
    assert_eq!(config.keep_alive, KeepAlive::For(Duration::from_secs(300)));
    assert_eq!(config.engine.device, DeviceWish::Cpu);
    assert_eq!(config.server.origins, ["https://a.example", "https://b.example:8443"]);
}

#[test]
fn what_is_not_valid_is_refused_with_its_name() {
    let cases: [(Pairs<'_>, Pairs<'_>, &str); 5] = [
        (&[("LANTERN_MAX_SEQUENCES", "5000")], &[], "max_sequences is 5000, outside 1 to 4096"),
        (&[("LANTERN_MAX_BODY", "1")], &[], "max_body is 1, outside 1024 to 1073741824"),
        (&[("LANTERN_DRAIN_TIMEOUT_S", "90000")], &[], "drain_timeout_s is 90000, outside 0 to 86400"),
        (&[], &[("lantern.toml", "prot = 1")], "lantern.toml: there is no key `prot`; did you mean `port`?"),
        (
            &[("HOME", "")],
            &[],
            "no folder to keep models in: HOME is not set; give one with --models-dir or LANTERN_MODELS",
        ),
    ];
    for (variables, files, expected) in cases {
        let error = resolve(Settings::default(), variables, files).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error() {
    let denied = |_: &Path| Err(io::Error::from(io::ErrorKind::PermissionDenied));
    let error = Config::resolve(Settings::default(), &|_| None, &denied).expect_err("no permission");
    assert_eq!(error.to_string(), "lantern.toml is not valid");
    assert!(matches!(error, ConfigError::File { .. }));
}
