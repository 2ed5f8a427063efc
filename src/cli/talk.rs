//! One answer after another from whoever answers: the running server, or a model in this process.
//!
//! Knows no terminal.

use tokio::sync::mpsc;

use super::CliError;
use super::client::{ChatOptions, Client, Piece};
use crate::llm::{Chat, GenerateRequest, GenerationEvent, Llm, Message, Prompt, SamplingOptions};

/// Pieces that may wait for the screen.
const PIECES: usize = 256;

/// Who answers.
pub enum Talker {
    /// The running server, under this name of the model.
    Server(Client, String),
    /// A model in this process.
    Here(Llm),
}

/// The pieces of one answer; dropping it ends the answer.
pub type Pieces = mpsc::Receiver<Result<Piece, CliError>>;

impl Talker {
    /// Begins an answer. Must be called within an async runtime.
    ///
    /// # Errors
    /// [`CliError::Generate`] where the request is refused; a server's refusal comes as the first piece.
    pub fn answer(&self, messages: Vec<Message>, options: ChatOptions) -> Result<Pieces, CliError> {
        let (sender, pieces) = mpsc::channel(PIECES);
        match self {
            Self::Server(client, model) => {
                let (client, model) = (client.clone(), model.clone());
                tokio::task::spawn_blocking(move || {
                    let each = |piece| sender.blocking_send(Ok(piece)).is_ok();
                    if let Err(error) = client.chat(&model, &messages, options, each) {
                        // Nobody is left to hear it where this fails.
                        let _ = sender.blocking_send(Err(error.into()));
                    }
                });
            }
            Self::Here(llm) => {
                let mut generation = llm.generate(request(messages, options))?;
                tokio::spawn(async move {
                    while let Some(event) = generation.next().await {
                        let piece = match event {
                            Ok(GenerationEvent::Delta { text, .. }) => Ok(Piece::Text(text)),
                            Ok(GenerationEvent::Finished { reason, .. }) => Ok(Piece::End(reason)),
                            Ok(GenerationEvent::Started { .. }) => continue,
                            Err(error) => Err(error.into()),
                        };
                        if sender.send(piece).await.is_err() {
                            break;
                        }
                    }
                });
            }
        }
        Ok(pieces)
    }
}

fn request(messages: Vec<Message>, options: ChatOptions) -> GenerateRequest {
    let sampling =
        SamplingOptions { temperature: options.temperature, seed: options.seed, ..SamplingOptions::default() };
    let prompt = Prompt::Chat(Chat { messages, ..Chat::default() });
    GenerateRequest { sampling, max_tokens: options.max_tokens, ..GenerateRequest::new(prompt) }
}
