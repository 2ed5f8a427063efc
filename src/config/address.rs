//! Where the server listens and where its clients look for it, in the forms that `OLLAMA_HOST` made common.
//!
//! Resolves no names: a host is text until somebody binds or connects.

use std::fmt;
use std::str::FromStr;

/// The port that people's tools try first.
pub const DEFAULT_PORT: u16 = 11434;
/// Only programs on this machine reach it.
pub const DEFAULT_HOST: &str = "127.0.0.1";

/// A host with or without a port, as written: `host`, `host:port`, `:port`, `http://host:port`, `[::1]:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct HostText {
    /// Name or number of the host; `None` for the default.
    pub host: Option<String>,
    /// Its port; `None` for the default.
    pub port: Option<u16>,
}

/// Why a text is no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There is nothing in it.
    #[error("it is empty; write a host, host:port or :port")]
    Empty,
    /// The part after the colon is no port.
    #[error("`{0}` is no port; a number from 0 to 65535 is one")]
    Port(String),
    /// A scheme that is not spoken here.
    #[error("`{0}://` is not spoken here; only http is (a proxy in front can speak TLS)")]
    Scheme(String),
    /// A character that no host has.
    #[error("`{0}` is no host")]
    Host(String),
}

impl TryFrom<String> for HostText {
    type Error = HostError;

    fn try_from(text: String) -> Result<Self, HostError> {
        text.parse()
    }
}

impl FromStr for HostText {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        // OLLAMA_HOST often stands in quotes in unit files.
        let text = text.trim().trim_matches(['"', '\'']);
        let (default_port, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Some(80), rest),
            Some((scheme, _)) => return Err(HostError::Scheme(scheme.to_owned())),
            None => (None, text),
        };
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.is_empty() {
            return Err(HostError::Empty);
        }
        let (host, port) = split_port(authority)?;
        if !host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%')) {
            return Err(HostError::Host(host.to_owned()));
        }
        let port = port.map(|port| port.parse().map_err(|_| HostError::Port(port.to_owned()))).transpose()?;
        Ok(Self { host: (!host.is_empty()).then(|| host.to_owned()), port: port.or(default_port) })
    }
}

/// `(host, port)` of `host`, `host:port`, `:port`, `::1`, `[::1]` and `[::1]:port`.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), HostError> {
    if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, after) = bracketed.split_once(']').ok_or_else(|| HostError::Host(authority.to_owned()))?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if after.is_empty() => Ok((host, None)),
            None => Err(HostError::Host(authority.to_owned())),
        };
    }
    // More than one colon without brackets is a bare IPv6 address.
    match authority.split_once(':') {
        Some((host, port)) if !port.contains(':') => Ok((host, Some(port))),
        _ => Ok((authority, None)),
    }
}

/// A host and a port to bind or to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Name or number, without brackets.
    pub host: String,
    /// Port; 0 binds any that is free.
    pub port: u16,
}

impl Default for Address {
    fn default() -> Self {
        Self { host: DEFAULT_HOST.to_owned(), port: DEFAULT_PORT }
    }
}

impl Address {
    /// Where a client on this machine connects: an address that means "every interface" is no place to go to.
    pub fn to_connect(&self) -> Self {
        let host = match self.host.as_str() {
            "0.0.0.0" => "127.0.0.1",
            "::" => "::1",
            other => other,
        };
        Self { host: host.to_owned(), port: self.port }
    }

    /// Whether only programs on this machine reach it.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
    }
}

impl fmt::Display for Address {
    /// As it stands in a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_in_every_form() {
        let cases = [
            ("0.0.0.0", Some("0.0.0.0"), None),
            ("lantern.local", Some("lantern.local"), None),
            ("127.0.0.1:8080", Some("127.0.0.1"), Some(8080)),
            (":8080", None, Some(8080)),
            ("http://10.0.0.2:11434", Some("10.0.0.2"), Some(11434)),
            ("http://10.0.0.2:11434/", Some("10.0.0.2"), Some(11434)),
            ("HTTP://gpu-box/v1", Some("gpu-box"), Some(80)),
            ("::1", Some("::1"), None),
            ("[::1]", Some("::1"), None),
            ("[::]:9", Some("::"), Some(9)),
            (" \"0.0.0.0:11434\" ", Some("0.0.0.0"), Some(11434)),
            (":0", None, Some(0)),
        ];
        for (text, host, port) in cases {
            let expected = HostText { host: host.map(str::to_owned), port };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_says_why() {
        let cases = [
            ("", "it is empty; write a host, host:port or :port"),
            ("http://", "it is empty; write a host, host:port or :port"),
            ("host:", "`` is no port; a number from 0 to 65535 is one"),
            ("host:http", "`http` is no port; a number from 0 to 65535 is one"),
            ("host:65536", "`65536` is no port; a number from 0 to 65535 is one"),
            ("https://host", "`https://` is not spoken here; only http is (a proxy in front can speak TLS)"),
            ("two words", "`two words` is no host"),
            ("[::1", "`[::1` is no host"),
            ("[::1]x", "`[::1]x` is no host"),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<HostText>().expect_err(text).to_string(), expected);
        }
    }

    #[test]
    fn a_client_goes_to_loopback_where_the_server_listens_everywhere() {
        let cases = [("0.0.0.0", "127.0.0.1:1", false), ("::", "[::1]:1", false), ("localhost", "localhost:1", true)];
        for (host, connect, loopback) in cases {
            let address = Address { host: host.to_owned(), port: 1 };
            assert_eq!(address.to_connect().to_string(), connect);
            assert_eq!(address.is_loopback(), loopback, "{host}");
        }
        assert!(Address::default().is_loopback());
    }
}
