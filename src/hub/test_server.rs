//! A hub for tests: HTTP over one loopback socket, each answer chosen by the test.
//! Does not know what is tested.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use super::checksum::{Checksum, Hasher};

/// The commit that the hub's files are of.
pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// A longer head of a request is refused, in bytes.
const HEAD_LIMIT_BYTES: u64 = 1 << 14;

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    headers: Vec<(String, String)>,
}

/// What is answered.
pub(super) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    sent: usize,
}

/// A server that ends with its test.
pub(super) struct TestServer {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether this asks for a file's content.
    pub(super) fn is_download(&self) -> bool {
        self.method == "GET" && !self.path.starts_with("/api/")
    }
}

impl Reply {
    pub(super) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), sent: 0 }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(super) fn body(mut self, body: Vec<u8>) -> Self {
        self.sent = body.len();
        self.body = body;
        self
    }

    /// Closes the connection after so many bytes of the body.
    pub(super) fn breaking_off_after(mut self, bytes: usize) -> Self {
        self.sent = bytes.min(self.body.len());
        self
    }

    fn write(&self, stream: &mut TcpStream, with_body: bool) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Reply\r\nconnection: close\r\n", self.status);
        head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if with_body { stream.write_all(&self.body[..self.sent]) } else { Ok(()) }
    }
}

impl TestServer {
    /// Starts a server that asks `answer` with each request and those before it.
    pub(super) fn start(answer: impl Fn(&Request, &[Request]) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let (seen, is_over) = (Arc::clone(&requests), Arc::clone(&stopped));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                // A client that goes away early is part of the tests.
                let _ = serve(stream, &seen, &answer);
            }
        });
        Self { address, requests, stopped, thread: Some(thread) }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The requests for a file's content.
    pub(super) fn downloads(&self) -> Vec<Request> {
        self.requests().into_iter().filter(Request::is_download).collect()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        let woken = TcpStream::connect(self.address);
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut stream: TcpStream,
    seen: &Mutex<Vec<Request>>,
    answer: &impl Fn(&Request, &[Request]) -> Reply,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.try_clone()?.take(HEAD_LIMIT_BYTES)).lines();
    let first = lines.next().unwrap_or(Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let request = Request { method, path, headers };
    let earlier = seen.lock().unwrap().clone();
    let reply = answer(&request, &earlier);
    let with_body = request.method != "HEAD";
    seen.lock().unwrap().push(request);
    reply.write(&mut stream, with_body)
}

/// A well-behaved hub's answer from these files: list, headers, content, ranges.
pub(super) fn hub(files: &[(&str, &[u8])], request: &Request) -> Reply {
    if request.path.starts_with("/api/") {
        let siblings: Vec<_> = files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
        return Reply::status(200)
            .body(serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string().into_bytes());
    }
    let Some((_, content)) = files.iter().find(|(name, _)| request.path.ends_with(&format!("/{name}"))) else {
        return Reply::status(404);
    };
    let etag = format!("\"{}\"", sha256(content));
    let start = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let is_same = request.header("if-range").is_none_or(|validator| validator == etag);
    let reply = match start.filter(|_| is_same) {
        Some(start) => Reply::status(206)
            .with("content-range", format!("bytes {start}-{}/{}", content.len() - 1, content.len()))
            .body(content[start..].to_vec()),
        None => Reply::status(200).body(content.to_vec()),
    };
    reply.with("etag", etag).with("x-repo-commit", COMMIT)
}

/// SHA-256 in hex.
pub(super) fn sha256(content: &[u8]) -> String {
    let mut hasher = Hasher::new(None::<&Checksum>, 0);
    hasher.update(content);
    hasher.finish().sha256
}
