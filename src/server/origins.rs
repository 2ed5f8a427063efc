//! Which web pages may call: a browser sends the page's origin, and one that may not is answered 403.
//!
//! Without this any page that somebody visits could put work on a server that listens on their own machine, even if
//! it could not read the answer. Knows no routes.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use super::error::ApiError;
use super::state::App;
use crate::server::Origins;

/// Answers preflights and tells browsers that the page may read the answer.
pub(super) fn layer(origins: &Origins) -> CorsLayer {
    let origins = origins.clone();
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, _| {
            origin.to_str().is_ok_and(|origin| is_allowed(&origins, origin))
        }))
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([HeaderName::from_static("x-request-id"), header::RETRY_AFTER])
}

/// Refuses pages of other origins.
pub(super) async fn refuse_others(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(header::ORIGIN) else {
        return next.run(request).await;
    };
    let origin = origin.to_str().unwrap_or_default();
    if is_allowed(&app.config.origins, origin) || is_own(origin, request.headers()) {
        return next.run(request).await;
    }
    let message = format!("pages of `{origin}` may not call this server; allow the origin in its configuration");
    ApiError::client(StatusCode::FORBIDDEN, Some("origin_not_allowed"), message).into_response()
}

fn is_allowed(origins: &Origins, origin: &str) -> bool {
    match origins {
        Origins::Any => true,
        Origins::Loopback => is_local(origin),
        Origins::Listed(listed) => is_local(origin) || listed.iter().any(|one| one.trim_end_matches('/') == origin),
    }
}

/// A page from this machine, or a program that is no web page and only looks like one.
fn is_local(origin: &str) -> bool {
    let Some((scheme, _)) = origin.split_once("://") else {
        // `null`: a sandboxed page or a local file, which may be anybody's.
        return false;
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return true;
    }
    host_of(origin).is_some_and(|host| {
        host == "localhost" || host.ends_with(".localhost") || ip(&host).is_some_and(|ip| ip.is_loopback())
    })
}

/// A page of this very server's. Only where the host is a number or a local name: a public name may have been made to
/// point here by whoever owns it (DNS rebinding).
fn is_own(origin: &str, headers: &HeaderMap) -> bool {
    let Some(authority) = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")) else {
        return false;
    };
    let same = headers.get(header::HOST).is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()));
    same && host_of(origin).is_some_and(|host| {
        let local_suffix = [".local", ".lan", ".internal", ".home.arpa"].iter().any(|suffix| host.ends_with(suffix));
        ip(&host).is_some() || !host.contains('.') || local_suffix
    })
}

fn host_of(origin: &str) -> Option<String> {
    Some(origin.parse::<Uri>().ok()?.host()?.to_ascii_lowercase())
}

fn ip(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn only_this_machine_and_programs_are_local() {
        let cases = [
            ("http://localhost:3000", true),
            ("http://app.localhost", true),
            ("https://127.0.0.1:8443", true),
            ("http://[::1]:3000", true),
            ("app://obsidian.md", true),
            ("vscode-webview://abc", true),
            ("http://localhost.evil.example", false),
            ("http://192.168.1.7", false),
            ("https://evil.example", false),
            ("null", false),
            ("", false),
        ];
        for (origin, local) in cases {
            assert_eq!(is_local(origin), local, "{origin}");
        }
    }

    #[test]
    fn listed_origins_are_exact() {
        let listed = Origins::Listed(vec!["https://chat.example.org/".into()]);
        assert!(is_allowed(&listed, "https://chat.example.org"));
        assert!(!is_allowed(&listed, "https://chat.example.org.evil.example"));
        assert!(is_allowed(&Origins::Any, "https://evil.example"));
    }

    #[test]
    fn a_page_of_the_server_itself_may_call_unless_its_name_is_public() {
        let own = |origin, host| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            is_own(origin, &headers)
        };
        assert!(own("http://192.168.1.7:11434", "192.168.1.7:11434"));
        assert!(own("http://box:11434", "box:11434"));
        assert!(own("http://box.local:11434", "box.local:11434"));
        assert!(!own("http://rebound.example:11434", "rebound.example:11434"));
        assert!(!own("http://192.168.1.7:11434", "192.168.1.8:11434"));
    }
}
