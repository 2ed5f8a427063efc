//! What a registry wants before it answers: a token that anybody gets, from an address that it names.
//! Asks for nothing itself, and knows no account.
//!
//! Source: the distribution specification's token authentication (RFC 6750's challenge, with `service` and `scope`).

use serde::Deserialize;

/// A longer token than this is none, in bytes.
const LONGEST_TOKEN: usize = 16 << 10;

/// `WWW-Authenticate: Bearer realm="...",service="...",scope="..."`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    realm: String,
    service: Option<String>,
    scope: Option<String>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Challenge {
    /// Reads the header; `None` where it asks for something else than a bearer token.
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        while let Some((name, value)) = rest.split_once("=\"") {
            let (value, after) = value.split_once('"')?;
            let place = match name.trim_matches([' ', ',']) {
                "realm" => Some(&mut realm),
                "service" => Some(&mut service),
                "scope" => Some(&mut scope),
                _ => None,
            };
            if let Some(place) = place {
                *place = Some(value.to_owned());
            }
            rest = after;
        }
        Some(Self { realm: realm?, service, scope })
    }

    /// Where the token is asked for.
    pub(super) fn url(&self) -> String {
        let mut url = self.realm.clone();
        for (name, value) in [("service", &self.service), ("scope", &self.scope)] {
            if let Some(value) = value {
                let separator = if url.contains('?') { '&' } else { '?' };
                url.push_str(&format!("{separator}{name}={}", in_query(value)));
            }
        }
        url
    }
}

/// The token of an answer in JSON; `None` where there is none that a header can carry.
pub(super) fn token(json: &[u8]) -> Option<String> {
    let answer: TokenAnswer = serde_json::from_slice(json).ok()?;
    let token = answer.token.or(answer.access_token)?;
    let is_sound =
        !token.is_empty() && token.len() <= LONGEST_TOKEN && token.bytes().all(|byte| byte.is_ascii_graphic());
    is_sound.then_some(token)
}

/// A value of a URL's query.
fn in_query(value: &str) -> String {
    let one = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' | b',' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    value.bytes().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_becomes_the_address_of_a_token() {
        let url = |header: &str| Challenge::parse(header).map(|challenge| challenge.url());
        let whole = "Bearer realm=\"https://a.example/token\",service=\"a b&c\", scope=\"repository:x/y:pull,push\"";
        let expected = "https://a.example/token?service=a%20b%26c&scope=repository:x/y:pull,push";
        assert_eq!(url(whole).as_deref(), Some(expected));
        assert_eq!(url("bearer realm=\"http://h/t?a=1\",service=\"s\"").as_deref(), Some("http://h/t?a=1&service=s"));
        for other in ["Basic realm=\"x\"", "Bearer", "Bearer service=\"x\"", "Bearer realm=\"x", ""] {
            assert_eq!(url(other), None, "{other}");
        }
    }

    #[test]
    fn only_what_a_header_can_carry_is_a_token() {
        assert_eq!(token(br#"{"token":"abc"}"#).as_deref(), Some("abc"));
        assert_eq!(token(br#"{"access_token":"abc","expires_in":3}"#).as_deref(), Some("abc"));
        for bad in ["{}", "", "{\"token\":\"\"}", "{\"token\":\"a\\r\\nb: c\"}", "[]"] {
            assert_eq!(token(bad.as_bytes()), None, "{bad}");
        }
    }
}
