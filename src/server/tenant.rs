//! Whose request it is: the API key it brings, else the address it comes from.
//!
//! Knows no fairness. Keys are not checked; a key appears nowhere but as a digest of it.

use std::fmt::Write as _;
use std::net::SocketAddr;

use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderMap, header};
use sha2::{Digest as _, Sha256};

use crate::request::Tenant;

/// The tenant of a request with these headers and extensions.
///
/// The address is that of the connection: `X-Forwarded-For` is what a client says of itself.
pub(super) fn tenant(headers: &HeaderMap, extensions: &Extensions) -> Tenant {
    if let Some(key) = api_key(headers) {
        let digest = Sha256::digest(key.as_bytes());
        let mut name = String::from("key-");
        for byte in &digest[..8] {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        return Tenant::new(name);
    }
    match extensions.get::<ConnectInfo<SocketAddr>>() {
        Some(ConnectInfo(address)) => Tenant::new(address.ip().to_canonical().to_string()),
        None => Tenant::default(),
    }
}

fn api_key(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    let key = bearer.or_else(|| headers.get("x-api-key")?.to_str().ok().map(str::trim));
    key.filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn of(headers: &[(&'static str, &'static str)], address: Option<&str>) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        let mut extensions = Extensions::new();
        if let Some(address) = address {
            extensions.insert(ConnectInfo(address.parse::<SocketAddr>().expect("an address")));
        }
        tenant(&map, &extensions).to_string()
    }

    #[test]
    fn a_key_comes_before_an_address_and_is_not_told() {
        let bearer = of(&[("authorization", "Bearer secret")], Some("10.0.0.7:4000"));
        assert!(bearer.starts_with("key-") && !bearer.contains("secret"), "{bearer}");
        assert_eq!(bearer, of(&[("x-api-key", "secret")], Some("10.0.0.8:4000")));
        assert_ne!(bearer, of(&[("x-api-key", "other")], None));
    }

    #[test]
    fn without_a_key_the_address_counts_and_not_what_the_client_says() {
        assert_eq!(of(&[("x-forwarded-for", "1.2.3.4")], Some("10.0.0.7:4000")), "10.0.0.7");
        assert_eq!(of(&[("authorization", "Bearer ")], Some("[::ffff:10.0.0.7]:1")), "10.0.0.7");
        assert_eq!(of(&[("authorization", "Basic eA==")], None), "local");
    }
}
