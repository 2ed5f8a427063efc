//! Texts as vectors, for every API that gives them.
//!
//! Knows no API's form.

use futures::{StreamExt as _, TryStreamExt as _};

use crate::llm::EmbedRequest;

use super::error::ApiError;
use super::guard::RequestRecord;
use super::models::Served;
use super::state::{App, turned};

/// Texts of one request that are in the engine at a time: enough to fill a step, and leaves the queue to others.
const AT_A_TIME: usize = 16;

/// What became of the texts of one request, in their order.
pub(super) struct Embedded {
    pub(super) vectors: Vec<Vec<f32>>,
    pub(super) prompt_tokens: u64,
}

/// Computes them all.
///
/// # Errors
/// The first error; the others are given up.
pub(super) async fn embed(
    app: &App,
    model: &Served,
    record: &RequestRecord,
    requests: Vec<EmbedRequest>,
) -> Result<Embedded, ApiError> {
    let one = |request| async move {
        let llm = model.llm.clone();
        let embedding = app.encode(move || llm.embed(request)).await??;
        let tokens = embedding.prompt_tokens() as u64;
        Ok::<_, ApiError>((embedding.vector().await?, tokens))
    };
    let at_a_time = AT_A_TIME.min(model.llm.engine().limits().max_sequences as usize).max(1);
    let all = futures::stream::iter(requests).map(one).buffered(at_a_time).try_collect::<Vec<_>>();
    let mut cut = app.cut.subscribe();
    let all = tokio::select! {
        biased;
        () = turned(&mut cut) => return Err(ApiError::cut_off()),
        all = all => all?,
    };
    let prompt_tokens = all.iter().map(|(_, tokens)| tokens).sum();
    record.set_tokens(prompt_tokens, 0);
    Ok(Embedded { vectors: all.into_iter().map(|(vector, _)| vector).collect(), prompt_tokens })
}

/// A list of no more texts than the server takes at once.
///
/// # Errors
/// 400: it is empty or too long.
pub(super) fn check_count(app: &App, name: &str, count: usize) -> Result<(), ApiError> {
    let most = app.config.max_embeddings;
    match count {
        0 => Err(ApiError::invalid(name, "the list is empty; at least one text is needed")),
        count if count > most => {
            Err(ApiError::invalid(name, format!("{count} texts are more than the limit of {most} (max_embeddings)")))
        }
        _ => Ok(()),
    }
}
