//! How well a model predicts a text: what its tokens cost, as a format of weights or of the KV cache changes it.
//!
//! Knows no files.

use futures::{StreamExt, TryStreamExt, stream};

use super::generate::{GenerateError, GenerateRequest, GenerationEvent, Prompt};
use super::handle::Llm;
use crate::request::TokenId;

/// Windows that are computed together.
const WINDOWS_TOGETHER: usize = 8;

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// e to the mean of the negative log probabilities: 1 is a text that was known before.
    pub perplexity: f64,
    /// Its standard error.
    pub error: f64,
    /// Windows that the text was cut into.
    pub windows: usize,
    /// Tokens that were predicted.
    pub tokens: usize,
}

impl Perplexity {
    /// Of natural log probabilities, which are those of `windows` windows.
    fn of(logprobs: &[f32], windows: usize) -> Self {
        let count = logprobs.len() as f64;
        let mean = logprobs.iter().map(|logprob| -f64::from(*logprob)).sum::<f64>() / count;
        let square = |logprob: &f32| (-f64::from(*logprob) - mean).powi(2);
        let variance = logprobs.iter().map(square).sum::<f64>() / (count - 1.0).max(1.0);
        let perplexity = mean.exp();
        Self { perplexity, error: perplexity * (variance / count).sqrt(), windows, tokens: logprobs.len() }
    }
}

impl Llm {
    /// Perplexity of `text`, cut into windows of `window` tokens that follow each other without overlap. Tokens in the
    /// second half of a window are scored, each with at least half a window before it; what is left at the end of the text
    /// is not. Where the model has a token that begins a text, it stands in place of each window's first.
    ///
    /// Source: llama.cpp, `perplexity` of `tools/perplexity/perplexity.cpp`.
    ///
    /// # Errors
    /// [`GenerateError`]: the text is shorter than a window, or a window does not fit the context.
    ///
    /// # Panics
    /// If a window is shorter than 4 tokens.
    pub async fn perplexity(&self, text: &str, window: usize) -> Result<Perplexity, GenerateError> {
        assert!(window >= 4, "windows of {window} tokens have no second half");
        let tokens = self.encode(text)?;
        if tokens.len() < window {
            let problem = format!("the text has {} tokens, and a window takes {window}", tokens.len());
            return Err(GenerateError::Failed(problem.into()));
        }
        let begin = self.encode("")?.first().copied().filter(|begin| tokens.first() == Some(begin));
        let windows = tokens.chunks_exact(window).map(|tokens| {
            let mut tokens = tokens.to_vec();
            tokens[0] = begin.unwrap_or(tokens[0]);
            self.second_half(tokens)
        });
        let logprobs: Vec<Vec<f32>> = stream::iter(windows).buffered(WINDOWS_TOGETHER).try_collect().await?;
        Ok(Perplexity::of(&logprobs.concat(), logprobs.len()))
    }

    /// Log probabilities of the tokens behind the middle one.
    async fn second_half(&self, tokens: Vec<TokenId>) -> Result<Vec<f32>, GenerateError> {
        let middle = tokens.len() / 2;
        let mut request = GenerateRequest::new(Prompt::Tokens(tokens)).max_tokens(1);
        request.sampling.prompt_logprobs = Some(0);
        match self.generate(request)?.next().await {
            // The first entry is the second token's.
            Some(Ok(GenerationEvent::Started { prompt_logprobs, .. })) => {
                Ok(prompt_logprobs[middle..].iter().map(|token| token.logprob).collect())
            }
            Some(Err(error)) => Err(error),
            Some(Ok(_)) | None => Err(GenerateError::Failed("a window has no log probabilities".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_that_of_a_die_where_all_tokens_are_alike() {
        let die = Perplexity::of(&[-(6f32.ln()); 10], 2);
        assert!((die.perplexity - 6.0).abs() < 1e-5 && die.error < 1e-5, "{die:?}");
        assert_eq!((die.windows, die.tokens), (2, 10));
        // A mean of ln 4 and a deviation of ln 2 * sqrt(4 / 3), of four.
        let mixed = Perplexity::of(&[-(2f32.ln()), -(2f32.ln()), -(8f32.ln()), -(8f32.ln())], 1);
        let error = 4.0 * std::f64::consts::LN_2 * (1.0f64 / 3.0).sqrt();
        assert!((mixed.perplexity - 4.0).abs() < 1e-5 && (mixed.error - error).abs() < 1e-5, "{mixed:?}");
    }
}
