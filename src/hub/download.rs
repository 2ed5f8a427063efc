//! Brings one file of the hub into a partial file: resumed where possible, restarted where not, checked at the end.
//! Does not know what the file is for or where it goes afterwards.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use ureq::http::{HeaderMap, StatusCode};

use super::Progress;
use super::backoff::Failure;
use super::checksum::{Checksum, Hasher};
use super::client::{Client, Subject, Verb, text};
use super::error::{HubError, io};
use super::remote::RemoteFile;

/// Bytes read at once.
const PIECE_BYTES: usize = 1 << 18;

/// What is written beside a partial file, so that a later run knows what it is part of.
#[derive(Default, Serialize, Deserialize, PartialEq)]
struct Notes {
    /// The hub's entity tag of the whole file.
    etag: String,
    /// The strong entity tag of the server that sent the content: what `If-Range` compares.
    validator: Option<String>,
}

/// A partial file that grows.
struct Transfer<'a> {
    remote: &'a RemoteFile,
    path: &'a Path,
    file: File,
    hasher: Hasher,
    received: u64,
    /// The most that was ever here: an attempt that gets further has made progress.
    farthest: u64,
    notes: Notes,
    progress: &'a mut dyn Progress,
}

/// Downloads `remote` into `partial`, continuing what an earlier run left there, and returns its SHA-256 in hex.
/// The file at `partial` is then complete, checked and on disk. After an error it holds what came, unless it was damaged.
///
/// # Errors
/// As [`HubError`] says.
pub(super) fn download(
    client: &Client,
    remote: &RemoteFile,
    partial: &Path,
    progress: &mut dyn Progress,
) -> Result<String, HubError> {
    let outcome = download_and_check(client, remote, partial, progress);
    progress.finish();
    outcome
}

fn download_and_check(
    client: &Client,
    remote: &RemoteFile,
    partial: &Path,
    progress: &mut dyn Progress,
) -> Result<String, HubError> {
    let mut transfer = Transfer::open(remote, partial, progress)?;
    let mut is_resumed = transfer.received > 0;
    loop {
        client.backoff.run(|| transfer.attempt(client))?;
        transfer.file.sync_all().map_err(io("write", partial))?;
        let hashed = transfer.hasher.clone().finish();
        let Some(promise) = &remote.checksum else {
            tracing::warn!(file = remote.path, "the hub gave no checksum; only the size was checked");
            return Ok(hashed.sha256);
        };
        match hashed.check(promise) {
            Ok(()) => return Ok(hashed.sha256),
            // What an earlier run left may be at fault: once more, from the beginning.
            Err(_) if is_resumed => {
                is_resumed = false;
                transfer.restart()?;
            }
            Err((expected, found)) => {
                discard(partial)?;
                return Err(HubError::Checksum { what: subject(remote).to_string(), expected, found });
            }
        }
    }
}

/// Removes a partial file and the notes beside it.
///
/// # Errors
/// Where the file system refuses.
pub(super) fn discard(partial: &Path) -> Result<(), HubError> {
    for path in [partial, &partial.with_extension("json")] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("delete", path)(error)),
            _ => {}
        }
    }
    Ok(())
}

impl<'a> Transfer<'a> {
    fn open(remote: &'a RemoteFile, path: &'a Path, progress: &'a mut dyn Progress) -> Result<Self, HubError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io("create", path))?;
        let notes: Notes = std::fs::read(path.with_extension("json"))
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok())
            .unwrap_or_default();
        let mut transfer = Self {
            hasher: Hasher::new(remote.checksum.as_ref(), remote.bytes),
            remote,
            path,
            file,
            received: 0,
            farthest: 0,
            notes,
            progress,
        };
        let length = transfer.file.metadata().map_err(io("read", path))?.len();
        if length > 0 && length <= remote.bytes && transfer.notes.etag == remote.etag && transfer.can_resume() {
            transfer.take_up(length)?;
        } else {
            transfer.restart()?;
        }
        Ok(transfer)
    }

    /// Without a checksum at the end, only a server's own promise keeps two versions from being joined.
    fn can_resume(&self) -> bool {
        self.remote.checksum.is_some() || self.notes.validator.is_some()
    }

    fn tell_start(&mut self) {
        if let Some(Checksum::Sha256(sha256)) = &self.remote.checksum {
            self.progress.promise(sha256);
        }
        self.progress.start(&self.remote.path, Some(self.remote.bytes));
    }

    /// Hashes what is here already.
    fn take_up(&mut self, length: u64) -> Result<(), HubError> {
        self.tell_start();
        let mut piece = vec![0; PIECE_BYTES];
        while self.received < length {
            let read = self.file.read(&mut piece).map_err(io("read", self.path))?;
            if read == 0 {
                break;
            }
            self.hasher.update(&piece[..read]);
            self.received += read as u64;
        }
        self.farthest = self.received;
        self.progress.advance(self.received);
        Ok(())
    }

    /// Throws away what is here.
    fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(io("write", self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(io("write", self.path))?;
        self.hasher = Hasher::new(self.remote.checksum.as_ref(), self.remote.bytes);
        self.received = 0;
        self.notes = Notes::default();
        self.tell_start();
        Ok(())
    }

    /// One request for all that is missing.
    fn attempt(&mut self, client: &Client) -> Result<(), Failure> {
        if self.received == self.remote.bytes {
            return Ok(());
        }
        if self.received > 0 && !self.can_resume() {
            self.restart().map_err(Failure::Final)?;
        }
        let range = format!("bytes={}-", self.received);
        let mut headers = Vec::new();
        if self.received > 0 {
            headers.push(("range", range.as_str()));
            headers.extend(self.notes.validator.as_deref().map(|validator| ("if-range", validator)));
        }
        let answer = match client.ask(Verb::Get, &self.remote.url, &headers, subject(self.remote)) {
            // In the midst of a download a lost network is waited for.
            Err(Failure::Final(error @ HubError::Unreachable { .. })) if self.received > 0 => {
                return Err(self.broke_off(&error.to_string()));
            }
            answer => answer?,
        };
        let (parts, mut body) = answer.response.into_parts();
        self.place(parts.status, &parts.headers)?;
        self.note(&parts.headers).map_err(Failure::Final)?;
        self.receive(&mut body.as_reader())
    }

    /// Makes sure that the body which follows belongs where the file ends.
    fn place(&mut self, status: StatusCode, headers: &HeaderMap) -> Result<(), Failure> {
        if status == StatusCode::PARTIAL_CONTENT {
            let expected = format!("bytes {}-{}/{}", self.received, self.remote.bytes - 1, self.remote.bytes);
            if text(headers, "content-range").is_some_and(|range| range == expected) {
                return Ok(());
            }
        }
        let is_whole = status == StatusCode::OK;
        if self.received > 0 || !is_whole {
            tracing::info!(
                file = self.remote.path,
                status = status.as_u16(),
                "the server does not continue; from the beginning"
            );
            self.restart().map_err(Failure::Final)?;
        }
        if is_whole {
            return Ok(());
        }
        let reason = format!("it answers {status} to a request for the rest of a file");
        Err(Failure::Passing(HubError::BadAnswer { what: subject(self.remote).to_string(), reason }, None))
    }

    /// Writes down what a later run needs in order to continue.
    fn note(&mut self, headers: &HeaderMap) -> Result<(), HubError> {
        let validator = text(headers, "etag").filter(|etag| etag.starts_with('"'));
        let notes = Notes { etag: self.remote.etag.clone(), validator };
        if notes != self.notes {
            let path = self.path.with_extension("json");
            let json = serde_json::to_vec(&notes).unwrap_or_default();
            std::fs::write(&path, json).map_err(io("write", &path))?;
            self.notes = notes;
        }
        Ok(())
    }

    fn receive(&mut self, body: &mut dyn Read) -> Result<(), Failure> {
        let mut piece = vec![0; PIECE_BYTES];
        let reason = loop {
            match body.read(&mut piece) {
                Ok(0) => break "the connection was closed".to_owned(),
                Err(error) => break error.to_string(),
                Ok(read) => {
                    self.received += read as u64;
                    if self.received > self.remote.bytes {
                        discard(self.path).map_err(Failure::Final)?;
                        let (what, expected) = (subject(self.remote).to_string(), self.remote.bytes);
                        return Err(Failure::Final(HubError::Size { what, expected, found: self.received }));
                    }
                    self.file.write_all(&piece[..read]).map_err(io("write", self.path)).map_err(Failure::Final)?;
                    self.hasher.update(&piece[..read]);
                    self.progress.advance(read as u64);
                }
            }
            if self.received == self.remote.bytes {
                return Ok(());
            }
        };
        Err(self.broke_off(&reason))
    }

    fn broke_off(&mut self, reason: &str) -> Failure {
        let error = HubError::Interrupted {
            what: subject(self.remote).to_string(),
            received: self.received,
            bytes: self.remote.bytes,
            reason: reason.to_owned(),
        };
        if self.received > self.farthest {
            self.farthest = self.received;
            Failure::Progressed(error)
        } else {
            Failure::Passing(error, None)
        }
    }
}

fn subject(remote: &RemoteFile) -> Subject<'_> {
    Subject { repository: &remote.repository, file: Some(&remote.path) }
}
