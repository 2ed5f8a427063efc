//! Speaks HTTP with the hub or a registry: requests, redirects, statuses, what a file is (its size, checksum and commit).
//! Does not write files.
//!
//! hf-hub gives the layout of URLs and of the cache, the token file and the list of a repository's files. Its own requests
//! have no timeout, append a whole body to half a file where a server ignores `Range`, check no checksum and do not know
//! Retry-After; so requests are made here, over the same HTTP library.

use std::cell::{Cell, RefCell};
use std::io::Read;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::{Repo, RepoType};
use ureq::http::{HeaderMap, Response, StatusCode, Uri};
use ureq::{Agent, Body};

use super::backoff::{Backoff, Failure};
use super::challenge::{self, Challenge};
use super::checksum::Checksum;
use super::error::{HubError, Service};
use super::hub_cache;
use super::options::{HubOptions, Proxy};
use super::remote::{Hints, RemoteFile};

/// More redirects than this are a loop.
const REDIRECTS: usize = 8;
/// A longer list of files is no list of a model's files, in bytes of JSON.
const LIST_LIMIT_BYTES: u64 = 8 << 20;

/// A longer answer holds no token, in bytes.
const TOKEN_LIMIT_BYTES: u64 = 64 << 10;

/// A hub or a registry, ready to be asked.
pub(super) struct Client {
    agent: Agent,
    service: Service,
    endpoint: String,
    origin: Origin,
    /// A person's, for the hub; a registry's own, which it gives to anybody, is kept here once it is had.
    token: RefCell<Option<String>>,
    /// Whether anybody has answered yet: until then a failed connection means that there is no hub.
    answered: Cell<bool>,
    pub(super) backoff: Backoff,
}

/// What a request is about, for messages.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) repository: &'a str,
    pub(super) file: Option<&'a str>,
}

/// An answer after its redirects, with what the hub itself said on the way.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    pub(super) hints: Hints,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Verb {
    /// Headers only.
    Head,
    /// With the body.
    Get,
}

/// Scheme, host and port: who gets to see the token.
#[derive(Clone, Debug, PartialEq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Client {
    /// # Errors
    /// [`HubError::Endpoint`] where the hub's or the proxy's address is none.
    pub(super) fn new(options: &HubOptions) -> Result<Self, HubError> {
        let token = options.token.clone().or_else(|| hub_cache::token(options));
        Self::over(Service::Hub, options.endpoint.trim_end_matches('/'), token, options)
    }

    /// A registry at this address. The hub's token is not for it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn registry(endpoint: &str, options: &HubOptions) -> Result<Self, HubError> {
        Self::over(Service::Registry, endpoint, None, options)
    }

    fn over(service: Service, endpoint: &str, token: Option<String>, options: &HubOptions) -> Result<Self, HubError> {
        let endpoint = endpoint.to_owned();
        let bad = |reason: String| HubError::Endpoint { service, endpoint: endpoint.clone(), reason };
        let uri: Uri = endpoint.parse().map_err(|error| bad(format!("{error}")))?;
        let origin = Origin::of(&uri).ok_or_else(|| bad("scheme or host is missing".into()))?;
        let proxy =
            options.proxy.as_ref().map(proxy).transpose().map_err(|error| bad(format!("its proxy: {error}")))?;
        let config = Agent::config_builder()
            .user_agent(concat!("lantern/", env!("CARGO_PKG_VERSION")))
            // A compressed answer would have another length than the file.
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(proxy)
            .timeout_resolve(Some(options.connect_timeout / 3))
            .timeout_connect(Some(options.connect_timeout / 3 * 2))
            .timeout_per_read(Some(options.read_timeout))
            .timeout_recv_response(Some(options.read_timeout))
            .build();
        let (token, answered) = (RefCell::new(token), Cell::new(false));
        let backoff =
            Backoff { retries: options.retries, base: options.backoff_base, sleep: Box::new(std::thread::sleep) };
        Ok(Self { agent: config.into(), service, endpoint, origin, token, answered, backoff })
    }

    /// Whether requests carry a token.
    pub(super) fn has_token(&self) -> bool {
        self.token.borrow().is_some()
    }

    /// What the hub says of one file, without its content.
    ///
    /// # Errors
    /// As [`HubError`] says; an unreachable hub is not asked again.
    pub(super) fn metadata(&self, repository: &str, revision: &str, file: &str) -> Result<RemoteFile, HubError> {
        let subject = Subject { repository, file: Some(file) };
        let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
        let url = |revision: &str| format!("{}/{}/resolve/{revision}/{file}", self.endpoint, repo.url());
        let answer = self.backoff.run(|| self.ask(Verb::Head, &url(&repo.url_revision()), &[], subject))?;
        let bad = |reason: &str| HubError::BadAnswer { what: subject.to_string(), reason: reason.to_owned() };
        let headers = answer.response.headers();
        let etag = answer.hints.etag.or_else(|| text(headers, "etag")).ok_or_else(|| bad("it has no ETag"))?;
        let bytes = answer
            .hints
            .bytes
            .or_else(|| text(headers, "content-length")?.parse().ok())
            .ok_or_else(|| bad("it says no size"))?;
        // The content is asked for by its commit, so that it is the one which was looked at.
        let commit = answer.hints.commit.filter(|commit| is_commit(commit)).unwrap_or_else(|| repo.url_revision());
        Ok(RemoteFile {
            repository: repository.to_owned(),
            path: file.to_owned(),
            url: url(&commit),
            commit,
            checksum: Checksum::from_etag(&etag),
            etag,
            bytes,
        })
    }

    /// The commit and the files of a repository.
    ///
    /// # Errors
    /// As [`HubError`] says; an unreachable hub is not asked again.
    pub(super) fn list(&self, repository: &str, revision: &str) -> Result<(String, Vec<String>), HubError> {
        let subject = Subject { repository, file: None };
        let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
        let url = format!("{}/api/{}", self.endpoint, repo.api_url());
        let json = self.small(&url, &[], LIST_LIMIT_BYTES, subject)?;
        let info: RepoInfo = serde_json::from_slice(&json)
            .map_err(|error| HubError::BadAnswer { what: subject.to_string(), reason: error.to_string() })?;
        Ok((info.sha, info.siblings.into_iter().map(|sibling| sibling.rfilename).collect()))
    }

    /// The whole of an answer that has at most `limit` bytes.
    ///
    /// # Errors
    /// [`HubError::BadAnswer`] where it is longer; as [`HubError`] says.
    pub(super) fn small(
        &self,
        url: &str,
        headers: &[(&str, &str)],
        limit: u64,
        subject: Subject<'_>,
    ) -> Result<Vec<u8>, HubError> {
        self.backoff.run(|| {
            let mut answer = self.ask(Verb::Get, url, headers, subject)?;
            self.read(&mut answer.response, limit, &subject.to_string())
        })
    }

    fn read(&self, response: &mut Response<Body>, limit: u64, what: &str) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        match response.body_mut().as_reader().take(limit + 1).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 <= limit => Ok(bytes),
            Ok(_) => {
                let reason = format!("it is longer than {limit} bytes");
                Err(Failure::Final(HubError::BadAnswer { what: what.to_owned(), reason }))
            }
            Err(error) => Err(Failure::Passing(self.unreachable(&error.to_string()), None)),
        }
    }

    /// Gets the token that a registry asks for, which it gives without credentials.
    fn authorize(&self, challenge: &Challenge, subject: Subject<'_>) -> Result<(), Failure> {
        let what = format!("the token for {subject}");
        let bad = |reason: &str| Failure::Final(HubError::BadAnswer { what: what.clone(), reason: reason.to_owned() });
        let url = challenge.url();
        let realm =
            url.parse::<Uri>().ok().and_then(|uri| Origin::of(&uri)).ok_or_else(|| bad("its realm is no address"))?;
        if self.origin.scheme == "https" && realm.scheme != "https" {
            return Err(bad("it would come over an open connection"));
        }
        let mut response = self.send(Verb::Get, &url, &[], false)?;
        match response.status().as_u16() {
            200 => {}
            401 | 403 => return Err(Failure::Final(self.denied(subject))),
            status @ (408 | 429 | 500..=599) => {
                return Err(Failure::Passing(HubError::Status { what: what.clone(), status }, None));
            }
            status => return Err(bad(&format!("its status is {status}"))),
        }
        let json = self.read(&mut response, TOKEN_LIMIT_BYTES, &what)?;
        let token = challenge::token(&json).ok_or_else(|| bad("it holds no token"))?;
        self.token.replace(Some(token));
        Ok(())
    }

    fn denied(&self, subject: Subject<'_>) -> HubError {
        HubError::Denied { what: self.named(subject), endpoint: self.endpoint.clone() }
    }

    /// What was asked for: where a hub has repositories, a registry has models.
    fn named(&self, subject: Subject<'_>) -> String {
        match (self.service, subject.file) {
            (Service::Registry, None) => format!("model {}", subject.repository),
            _ => subject.to_string(),
        }
    }

    /// One request with its redirects; statuses become failures. Answers of 2xx and 416 come back.
    pub(super) fn ask(
        &self,
        verb: Verb,
        url: &str,
        headers: &[(&str, &str)],
        subject: Subject<'_>,
    ) -> Result<Answer, Failure> {
        let mut url = url.to_owned();
        let mut hints = Hints::default();
        let mut is_authorized = false;
        for _ in 0..REDIRECTS {
            let bad = |reason: String| Failure::Final(HubError::BadAnswer { what: subject.to_string(), reason });
            let uri: Uri = url.parse().map_err(|_| bad(format!("{url:?} is no address")))?;
            let origin = Origin::of(&uri).ok_or_else(|| bad(format!("{url:?} has no host")))?;
            let is_hub = origin == self.origin;
            let response = self.send(verb, &url, headers, is_hub)?;
            if is_hub {
                hints.learn(response.headers());
            }
            if let Some(challenge) = self.challenge(&response).filter(|_| is_hub && !is_authorized) {
                self.authorize(&challenge, subject)?;
                is_authorized = true;
                continue;
            }
            if !is_redirect(response.status()) {
                return self.judge(response, hints, subject, is_hub);
            }
            let target = text(response.headers(), "location")
                .and_then(|location| origin.resolve(&location))
                .ok_or_else(|| bad("it redirects to nowhere".into()))?;
            // A large file is a redirect to a store; the hub has said all of it already.
            if verb == Verb::Head && hints.is_complete() {
                return Ok(Answer { response, hints });
            }
            url = target;
        }
        Err(Failure::Final(HubError::BadAnswer {
            what: subject.to_string(),
            reason: "it redirects in a circle".into(),
        }))
    }

    /// What a registry wants before it answers.
    fn challenge(&self, response: &Response<Body>) -> Option<Challenge> {
        let is_asked = self.service == Service::Registry && response.status() == StatusCode::UNAUTHORIZED;
        Challenge::parse(&text(response.headers(), "www-authenticate").filter(|_| is_asked)?)
    }

    /// One request without redirects. The token goes along to the hub or registry alone.
    fn send(&self, verb: Verb, url: &str, headers: &[(&str, &str)], is_hub: bool) -> Result<Response<Body>, Failure> {
        let mut request = match verb {
            Verb::Head => self.agent.head(url),
            Verb::Get => self.agent.get(url),
        };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let (true, Some(token)) = (is_hub, self.token.borrow().as_deref()) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        match request.call() {
            Ok(response) => {
                self.answered.set(true);
                Ok(response)
            }
            Err(error) => {
                let unreachable = self.unreachable(&error.to_string());
                let is_final = never_connected(&error) || !self.answered.get();
                Err(if is_final { Failure::Final(unreachable) } else { Failure::Passing(unreachable, None) })
            }
        }
    }

    fn judge(
        &self,
        response: Response<Body>,
        hints: Hints,
        subject: Subject<'_>,
        is_hub: bool,
    ) -> Result<Answer, Failure> {
        let status = response.status();
        let code = text(response.headers(), "x-error-code").unwrap_or_default();
        let what = self.named(subject);
        let (service, endpoint) = (self.service, self.endpoint.clone());
        let not_found = |what| HubError::NotFound { service, what, endpoint };
        Err(match status.as_u16() {
            200..=299 | 416 => return Ok(Answer { response, hints }),
            401 | 403 | 404 if code == "RepoNotFound" => {
                Failure::Final(not_found(format!("repository {}", subject.repository)))
            }
            404 | 410 => Failure::Final(not_found(what)),
            // The store behind a redirect knows no gates: its signed address has expired, and the hub gives a new one.
            401 | 403 if !is_hub => Failure::Passing(HubError::Status { what, status: status.as_u16() }, None),
            401 | 403 if service == Service::Registry => Failure::Final(self.denied(subject)),
            401 | 403 => Failure::Final(HubError::Gated {
                repository: subject.repository.to_owned(),
                page: format!("{}/{}", self.endpoint, subject.repository),
                has_token: self.has_token(),
            }),
            429 => {
                let asked = text(response.headers(), "retry-after").and_then(|wait| wait.parse().ok());
                let error = HubError::RateLimited { what, wait_s: asked.unwrap_or(60) };
                Failure::Passing(error, asked.map(Duration::from_secs))
            }
            408 | 500..=599 => {
                let asked = text(response.headers(), "retry-after").and_then(|wait| wait.parse().ok());
                Failure::Passing(HubError::Status { status: status.as_u16(), what }, asked.map(Duration::from_secs))
            }
            other => Failure::Final(HubError::BadAnswer { what, reason: format!("its status is {other}") }),
        })
    }

    fn unreachable(&self, reason: &str) -> HubError {
        HubError::Unreachable { service: self.service, endpoint: self.endpoint.clone(), reason: reason.to_owned() }
    }
}

impl std::fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.file {
            Some(file) => write!(f, "{file} of {}", self.repository),
            None => write!(f, "repository {}", self.repository),
        }
    }
}

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?;
        let default_port = match scheme {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self { scheme: scheme.to_owned(), host, port: uri.port_u16().unwrap_or(default_port) })
    }

    /// A Location header's absolute address; `None` where it is neither absolute nor a path from the root.
    fn resolve(&self, location: &str) -> Option<String> {
        if location.starts_with("//") {
            Some(format!("{}:{location}", self.scheme))
        } else if location.starts_with('/') {
            Some(format!("{}://{}:{}{location}", self.scheme, self.host, self.port))
        } else if location.starts_with("https://") || location.starts_with("http://") {
            Some(location.to_owned())
        } else {
            None
        }
    }
}

/// A header as text.
pub(super) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|value| value.trim().to_owned())
}

/// A commit's hash, and thus harmless in a URL.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Whether a request failed before anybody answered: repeating it would only make a person wait.
fn never_connected(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_) | ureq::Error::Rustls(_) => {
            true
        }
        ureq::Error::Timeout(reason) => matches!(reason, ureq::Timeout::Resolve | ureq::Timeout::Connect),
        ureq::Error::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionRefused
                | std::io::ErrorKind::HostUnreachable
                | std::io::ErrorKind::NetworkUnreachable
                | std::io::ErrorKind::AddrNotAvailable
                | std::io::ErrorKind::TimedOut
        ),
        _ => false,
    }
}

/// A proxy with its exceptions; the HTTP library takes both at once only from the environment.
fn proxy(proxy: &Proxy) -> Result<ureq::Proxy, ureq::Error> {
    let parsed = ureq::Proxy::new(&proxy.url)?;
    let mut builder = ureq::Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(username) = parsed.username() {
        builder = builder.username(username);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    for host in proxy.except.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        builder = builder.no_proxy(host);
    }
    builder.build()
}
