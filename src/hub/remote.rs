//! A file on the hub: what is known of it before its content is here.
//! Does not ask for anything itself.

use ureq::http::HeaderMap;

use super::checksum::{Checksum, plain_etag};
use super::client::text;

/// A file of a repository at one commit.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    /// `organisation/name`.
    pub(super) repository: String,
    /// Path in the repository.
    pub(super) path: String,
    /// Where its content is asked for.
    pub(super) url: String,
    /// The commit that the file is of.
    pub(super) commit: String,
    /// The hub's entity tag: another tag is another content.
    pub(super) etag: String,
    /// What the content hashes to, where the tag says so.
    pub(super) checksum: Option<Checksum>,
    /// Size in bytes.
    pub(super) bytes: u64,
}

/// What the hub says of a large file while it redirects to where the content is.
#[derive(Default)]
pub(super) struct Hints {
    /// The content's own entity tag: its SHA-256.
    pub(super) etag: Option<String>,
    /// Its size in bytes.
    pub(super) bytes: Option<u64>,
    /// The commit.
    pub(super) commit: Option<String>,
}

impl Hints {
    /// Takes what is in the headers; what was said first stays.
    pub(super) fn learn(&mut self, headers: &HeaderMap) {
        let linked_etag = || text(headers, "x-linked-etag").map(|etag| plain_etag(&etag).to_owned());
        let linked_size = || text(headers, "x-linked-size").and_then(|bytes| bytes.parse().ok());
        self.etag = self.etag.take().or_else(linked_etag);
        self.bytes = self.bytes.or_else(linked_size);
        self.commit = self.commit.take().or_else(|| text(headers, "x-repo-commit"));
    }

    /// Whether nothing is left to ask of the store behind the hub.
    pub(super) fn is_complete(&self) -> bool {
        self.etag.is_some() && self.bytes.is_some()
    }
}
