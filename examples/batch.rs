//! Answers 64 prompts at once and prints how many tokens a second came out.
//!
//! `cargo run --release --example batch`

use std::time::Instant;

use lantern::{GenerateRequest, Llm, Message};

fn main() -> anyhow::Result<()> {
    let llm = Llm::builder().load_blocking()?;
    let started = Instant::now();
    let generations: Vec<_> = (1..=64)
        .map(|number| {
            let question = format!("Tell me something about the number {number}.");
            llm.generate(GenerateRequest::chat([Message::user(question)]).max_tokens(32).temperature(0.0))
        })
        .collect::<Result<_, _>>()?;
    let mut tokens = 0;
    for (index, generation) in generations.into_iter().enumerate() {
        let answer = generation.collect_blocking()?.remove(0);
        tokens += answer.tokens.len();
        if index < 3 {
            println!("{}: {}", index + 1, answer.text.replace('\n', " "));
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("64 answers, {tokens} tokens in {seconds:.1} s: {:.0} tokens per second", tokens as f64 / seconds);
    Ok(())
}
