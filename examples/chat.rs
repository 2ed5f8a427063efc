//! A chat of several turns with the history kept; from the terminal, or by itself where there is none.
//!
//! `cargo run --release --example chat`

use std::io::{BufRead, IsTerminal, Write};

use lantern::{GenerateRequest, GenerationEvent, Llm, Message};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let llm = Llm::builder().load().await?;
    println!("{} on {}", llm.info().name, llm.info().device);
    let mut history = vec![Message::system("You answer in one short sentence.")];
    let stdin = std::io::stdin();
    let interactive = stdin.is_terminal();
    let mut script = ["Name a fruit.", "What colour is it?"].into_iter();
    loop {
        print!("> ");
        std::io::stdout().flush()?;
        let mut line = String::new();
        if interactive {
            stdin.lock().read_line(&mut line)?;
        } else if let Some(question) = script.next() {
            println!("{question}");
            line.push_str(question);
        }
        if line.trim().is_empty() {
            println!();
            return Ok(());
        }
        history.push(Message::user(line.trim()));
        let answer = answer(&llm, &history).await?;
        history.push(Message::assistant(answer));
    }
}

async fn answer(llm: &Llm, history: &[Message]) -> anyhow::Result<String> {
    let request = GenerateRequest::chat(history.iter().cloned()).max_tokens(60).seed(1);
    let mut generation = llm.generate(request)?;
    let mut answer = String::new();
    while let Some(event) = generation.next().await {
        if let GenerationEvent::Delta { text, .. } = event? {
            print!("{text}");
            std::io::stdout().flush()?;
            answer.push_str(&text);
        }
    }
    println!();
    Ok(answer)
}
