//! The models that are served, by name.
//!
//! Knows no API.

use std::sync::Arc;

use axum::http::StatusCode;

use crate::llm::Llm;

use super::error::ApiError;
use super::metrics::Metrics;

/// A model that is served.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) llm: Llm,
    pub(super) metrics: Arc<Metrics>,
}

/// All models that are served.
pub(super) struct Models {
    served: Served,
    aliases: Vec<String>,
}

impl Models {
    /// One model, which stays.
    pub(super) fn fixed(llm: Llm, aliases: Vec<String>) -> Self {
        let metrics = Arc::new(Metrics::new(&llm.info().name));
        Self { served: Served { llm, metrics }, aliases }
    }

    /// The model that stands for the server where one is asked about and none is named.
    pub(super) fn main(&self) -> &Served {
        &self.served
    }

    /// Every name under which a model is served; the model's own is the first.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let own = self.served.llm.info().name.as_str();
        std::iter::once(own).chain(self.aliases.iter().map(String::as_str).filter(move |name| *name != own))
    }

    /// The model of that name.
    ///
    /// # Errors
    /// 404, naming what is served.
    pub(super) async fn get(&self, name: &str) -> Result<Served, ApiError> {
        let bare = name.strip_suffix(":latest").unwrap_or(name);
        if self.names().any(|served| served == name || served == bare) {
            return Ok(self.served.clone());
        }
        let served: Vec<_> = self.names().map(|served| format!("`{served}`")).collect();
        let message = format!("the model `{name}` is not served here; served: {}", served.join(", "));
        let error = ApiError::client(StatusCode::NOT_FOUND, Some("model_not_found"), message);
        Err(ApiError { param: Some("model".into()), ..error })
    }
}
