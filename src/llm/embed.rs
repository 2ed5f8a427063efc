//! A text as one vector.
//!
//! Knows no transport and no pooling: the engine pools, here the vector is cut and normed.

use crate::engine::{EngineHandle, EngineStatus, RequestStream, SubmitError};
use crate::request::{Pooling, Request, RequestEvent, SamplingParams, StopConditions, Tenant};

use super::generate::{GenerateError, Prompt};
use super::handle::Llm;

/// What is to become a vector, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedRequest {
    /// The text, or its tokens.
    pub prompt: Prompt,
    /// `None`: as the model's makers pool, else by the last token, as vLLM and Ollama do.
    pub pooling: Option<Pooling>,
    /// Keep this many of the first values, as models trained for it (Matryoshka) allow; `None`: all.
    pub dimensions: Option<usize>,
    /// Divide by the Euclidean norm, after the cut.
    pub normalize: bool,
    /// Leave out the end of what is too long, instead of refusing it.
    pub truncate: bool,
    /// Most tokens, and one for what the engine draws; `None`: what the context holds.
    pub max_context: Option<u32>,
    /// Whose request it is.
    pub tenant: Tenant,
}

impl EmbedRequest {
    /// `prompt` as the model pools it, normed.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            pooling: None,
            dimensions: None,
            normalize: true,
            truncate: false,
            max_context: None,
            tenant: Tenant::default(),
        }
    }

    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::new(Prompt::Text(text.into()))
    }
}

/// A vector that is being computed. Dropping it cancels that.
pub struct Embedding {
    engine: EngineHandle,
    stream: RequestStream,
    prompt_tokens: usize,
    dimensions: Option<usize>,
    normalize: bool,
}

impl Llm {
    /// Submits a text to become a vector. It is encoded on the calling thread.
    ///
    /// # Errors
    /// As [`Llm::generate`].
    pub fn embed(&self, request: EmbedRequest) -> Result<Embedding, GenerateError> {
        let mut tokens = self.prompt_tokens(&request.prompt)?;
        let max_context = request.max_context.unwrap_or(u32::MAX).min(self.engine().limits().max_context);
        let most = max_context.saturating_sub(1) as usize;
        if request.truncate {
            tokens.truncate(most);
        }
        if tokens.len() > most {
            return Err(SubmitError::PromptTooLong { prompt_tokens: tokens.len(), max_context }.into());
        }
        if let Some(dimensions) = request.dimensions
            && !(1..=self.info().embedding_length).contains(&dimensions)
        {
            let problem = format!("{dimensions} is outside 1 to {}", self.info().embedding_length);
            return Err(SubmitError::Invalid { field: "dimensions", problem }.into());
        }
        let prompt_tokens = tokens.len();
        let stream = self.engine().submit(Request {
            prompt: tokens.into(),
            n: 1,
            sampling: SamplingParams::greedy(),
            stop: StopConditions {
                max_tokens: 1,
                min_tokens: 0,
                ignore_eos: true,
                eos_token_ids: [].into(),
                stop_token_ids: Vec::new(),
            },
            tenant: request.tenant,
            cache_salt: None,
            priority: 0,
            masks: None,
            pooling: Some(request.pooling.or(self.pooling()).unwrap_or(Pooling::Last)),
            answered: 0,
        })?;
        let (dimensions, normalize) = (request.dimensions, request.normalize);
        Ok(Embedding { engine: self.engine().clone(), stream, prompt_tokens, dimensions, normalize })
    }
}

impl Embedding {
    /// Tokens of the text.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The vector: as many values as the model's hidden states have, or as were asked for.
    ///
    /// # Errors
    /// [`GenerateError::Failed`].
    pub async fn vector(mut self) -> Result<Vec<f32>, GenerateError> {
        let event = self.stream.next().await;
        self.take(event)
    }

    /// As [`Self::vector`], for callers outside an async runtime.
    ///
    /// # Errors
    /// [`GenerateError::Failed`].
    ///
    /// # Panics
    /// Inside an async runtime.
    pub fn vector_blocking(mut self) -> Result<Vec<f32>, GenerateError> {
        let event = self.stream.blocking_next();
        self.take(event)
    }

    /// The first event is all that is needed.
    fn take(&self, event: Option<RequestEvent>) -> Result<Vec<f32>, GenerateError> {
        let failed = |reason: &str| Err(GenerateError::Failed(reason.into()));
        match event {
            Some(RequestEvent::Prompt { pooled: Some(vector), .. }) => Ok(self.finish(vector)),
            Some(RequestEvent::Failed(reason)) => Err(GenerateError::Failed(reason)),
            Some(_) => failed("the engine gave no vector"),
            None => match self.engine.status() {
                EngineStatus::Dead(reason) => Err(GenerateError::Failed(reason)),
                _ => failed("the engine ended the request"),
            },
        }
    }

    fn finish(&self, mut vector: Vec<f32>) -> Vec<f32> {
        vector.truncate(self.dimensions.unwrap_or(usize::MAX));
        if self.normalize {
            let norm = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
            if norm > 0.0 {
                vector.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
            }
        }
        vector
    }
}
