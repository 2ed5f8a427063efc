//! How the hub is spoken to: plain data, resolved once by the configuration.
//! Does not read the environment itself: it is given a lookup.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The hub that is asked where HF_ENDPOINT names no other.
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// An HTTP proxy and the hosts that are reached without it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Address, as `http://user:password@host:port`.
    pub url: String,
    /// Comma-separated hosts and suffixes that are reached directly.
    pub except: String,
}

/// Where the hub is and how patiently it is asked.
#[derive(Clone, PartialEq, Eq)]
pub struct HubOptions {
    /// The hub's address, as HF_ENDPOINT has it.
    pub endpoint: String,
    /// The access token, sent to the endpoint's host and to no other. Without one, the token file in `hf_home` is used.
    pub token: Option<String>,
    /// Hugging Face's folder on this machine: `hub/` in it is the cache, `token` the saved token.
    pub hf_home: Option<PathBuf>,
    /// Where an Ollama on this machine keeps its models.
    pub ollama_models: Option<PathBuf>,
    /// The registry that is asked for Ollama's names, as `https://host` or `host`. Where it is set, names that the catalog
    /// lacks go there.
    pub ollama_registry: Option<String>,
    /// Never use the network.
    pub offline: bool,
    /// Longest time that finding and connecting to the hub may take.
    pub connect_timeout: Duration,
    /// Longest silence on an open connection before it counts as dropped.
    pub read_timeout: Duration,
    /// How many times in a row a request is repeated without any progress.
    pub retries: u32,
    /// The wait before the first repetition; it doubles with each further one.
    pub backoff_base: Duration,
    /// The proxy, if there is one.
    pub proxy: Option<Proxy>,
}

impl HubOptions {
    /// Options from HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, OLLAMA_MODELS and the usual proxy variables, through `lookup`.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| lookup(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let first = |names: &[&str]| names.iter().find_map(|name| set(name));
        let folder = |name: &str| set(name).map(PathBuf::from);
        let hf_home = folder("HF_HOME")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| folder("HOME").map(|home| home.join(".cache").join("huggingface")));
        let ollama_models =
            folder("OLLAMA_MODELS").or_else(|| folder("HOME").map(|home| home.join(".ollama").join("models")));
        let offline = set("HF_HUB_OFFLINE")
            .is_some_and(|value| ["1", "true", "yes", "on"].contains(&value.to_ascii_lowercase().as_str()));
        let proxy = first(&["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
            .map(|url| Proxy { url, except: first(&["NO_PROXY", "no_proxy"]).unwrap_or_default() });
        Self {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            token: first(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]),
            hf_home,
            ollama_models,
            ollama_registry: None,
            offline,
            connect_timeout: Duration::from_millis(4_500),
            read_timeout: Duration::from_secs(30),
            retries: 5,
            backoff_base: Duration::from_millis(500),
            proxy,
        }
    }
}

impl Default for HubOptions {
    /// The public hub, without a token, a cache or a proxy.
    fn default() -> Self {
        Self::from_lookup(|_| None)
    }
}

impl fmt::Debug for HubOptions {
    /// Leaves out the token and the proxy's password: options end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("has_token", &self.token.is_some())
            .field("hf_home", &self.hf_home)
            .field("ollama_registry", &self.ollama_registry)
            .field("offline", &self.offline)
            .field("connect_timeout", &self.connect_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("retries", &self.retries)
            .field("backoff_base", &self.backoff_base)
            .field("has_proxy", &self.proxy.is_some())
            .finish()
    }
}

impl fmt::Debug for Proxy {
    /// Leaves out the address, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("except", &self.except).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> HubOptions {
        HubOptions::from_lookup(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn variables_are_honoured_in_their_order() {
        let options = from(&[
            ("HF_ENDPOINT", "https://mirror.example"),
            ("HF_TOKEN", " secret \n"),
            ("HUGGING_FACE_HUB_TOKEN", "older"),
            ("HF_HOME", "/models/hf"),
            ("HOME", "/home/ada"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
        assert_eq!(options.endpoint, "https://mirror.example");
        assert_eq!(options.token.as_deref(), Some("secret"));
        assert_eq!(options.hf_home, Some(PathBuf::from("/models/hf")));
        assert!(options.offline);
    }

    #[test]
    fn an_empty_variable_is_as_good_as_none() {
        let options = from(&[
            ("HF_ENDPOINT", ""),
            ("HF_TOKEN", " "),
            ("HF_HOME", ""),
            ("HOME", "/home/ada"),
            ("HF_HUB_OFFLINE", "0"),
        ]);
        assert_eq!(options.endpoint, DEFAULT_ENDPOINT);
        assert_eq!(options.token, None);
        assert_eq!(options.hf_home, Some(PathBuf::from("/home/ada/.cache/huggingface")));
        assert!(!options.offline);
    }

    #[test]
    fn an_unreachable_hub_is_noticed_within_five_seconds() {
        assert!(HubOptions::default().connect_timeout < Duration::from_secs(5));
    }

    #[test]
    fn debug_shows_no_secret() {
        let options = from(&[("HF_TOKEN", "hf_secret"), ("HTTPS_PROXY", "http://ada:pass@proxy:3128")]);
        let shown = format!("{options:?}");
        assert!(!shown.contains("hf_secret") && !shown.contains("pass"), "{shown}");
        assert!(shown.contains("has_token: true"));
    }
}
