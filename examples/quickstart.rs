//! Asks the default model one question and prints the answer as it comes.
//!
//! `cargo run --release --example quickstart`

use std::io::Write;

use lantern::{GenerateRequest, GenerationEvent, Llm, Message};

fn main() -> anyhow::Result<()> {
    let llm = Llm::builder().load_blocking()?;
    let request = GenerateRequest::chat([Message::user("Why is the sky blue?")]).max_tokens(80).temperature(0.0);
    let mut generation = llm.generate(request)?;
    while let Some(event) = generation.blocking_next() {
        if let GenerationEvent::Delta { text, .. } = event? {
            print!("{text}");
            std::io::stdout().flush()?;
        }
    }
    println!();
    Ok(())
}
