//! `lantern run`: a chat in the terminal, or one answer for a script.
//!
//! Knows no HTTP and no engine: [`Talker`] answers.

use std::io::{Read, Write, stderr, stdin, stdout};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::runtime::Runtime;

use super::client::{ChatOptions, Client, Piece};
use super::flags::{AddressFlags, EngineFlags, StoreFlags};
use super::load;
use super::talk::Talker;
use super::{CliError, Session};
use crate::config::{Config, Settings};
use crate::llm::Message;
use crate::request::FinishReason;

/// Longest prompt read from a pipe, in bytes: more than any context holds.
const MAX_PIPED_BYTES: u64 = 64 << 20;

const HELP: &str = "  /clear   forget the chat so far\n  /bye     leave (Ctrl-D does too)\n  /help    this\n  \
                    \"\"\"      begin and end a message of several lines\n  Ctrl-C   end the answer, not the program";

/// Arguments of `lantern run`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  lantern run smollm2:135m\n  lantern run smollm2:135m \"Why is the sky blue?\"\n  \
                        cat notes.txt | lantern run qwen3:8b \"Summarise this.\""
)]
pub struct RunArgs {
    /// Model: a name of the catalog, org/name, a folder or a .gguf file
    model: String,
    /// One question; without it, a chat. What is piped in stands before it
    prompt: Vec<String>,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// 0 takes the likeliest token each time [default: the model's own]
    #[arg(long)]
    temperature: Option<f32>,
    /// The same seed gives the same answer
    #[arg(long)]
    seed: Option<u64>,
    /// Most tokens of an answer [default: as many as the context holds]
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u32>,
    /// Load the model here, even where a server serves it
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    address: AddressFlags,
    #[command(flatten)]
    store: StoreFlags,
    #[command(flatten)]
    engine: EngineFlags,
}

/// Chats until the person leaves, or answers once.
///
/// # Errors
/// [`CliError`].
pub fn run(args: RunArgs, session: &Session) -> Result<(), CliError> {
    let sets_engine = args.engine.clone().fill(Settings::default()) != Settings::default();
    let settings = args.engine.fill(args.store.fill(args.address.fill(Settings::default())));
    let config = session.resolve(settings)?;
    session.log(&config, "warn")?;
    let prompt = whole_prompt(&args.prompt, session)?;
    let talker = talker(&config, &args.model, args.local, session)?;
    if matches!(talker, Talker::Server(..)) && sets_engine {
        let note = "The server's own settings hold; those of the engine that were given here take effect with --local.";
        eprintln!("{}", session.terminal.grey(note));
    }
    let chat = ChatLoop {
        talker,
        options: ChatOptions { temperature: args.temperature, seed: args.seed, max_tokens: args.max_tokens },
        history: args.system.map(Message::system).into_iter().collect(),
        runtime: super::runtime()?,
        session: *session,
    };
    match prompt {
        Some(prompt) => chat.once(prompt),
        None => chat.until_bye(),
    }
}

/// What is piped in and what is typed, if any.
fn whole_prompt(words: &[String], session: &Session) -> Result<Option<String>, CliError> {
    let mut parts = Vec::new();
    if !session.terminal.stdin {
        let mut piped = String::new();
        let read = stdin().take(MAX_PIPED_BYTES).read_to_string(&mut piped);
        read.map_err(|source| CliError::Io { doing: "standard input cannot be read", source })?;
        parts.push(piped.trim_end().to_owned());
    }
    parts.push(words.join(" "));
    parts.retain(|part| !part.trim().is_empty());
    match (parts.is_empty(), session.terminal.stdin) {
        (false, _) => Ok(Some(parts.join("\n\n"))),
        (true, true) => Ok(None),
        (true, false) => {
            Err(CliError::Refused("there is no prompt: nothing was typed and nothing was piped in".into()))
        }
    }
}

/// The running server where it serves the model, else the model in this process, which is said.
fn talker(config: &Config, model: &str, local: bool, session: &Session) -> Result<Talker, CliError> {
    let client = Client::new(&config.server.address);
    let served = if local { Ok(Vec::new()) } else { client.models() };
    // It may have names that nobody knows here: those of files.
    if served.as_ref().is_ok_and(|models| models.iter().any(|served| served == model)) {
        return Ok(Talker::Server(client, model.to_owned()));
    }
    let (store, options) = (load::store(&config.hub)?, load::hub_options(&config.hub));
    let name = load::understand(model, &store, &options)?.to_string();
    let why = match served {
        _ if local => "as asked".to_owned(),
        Ok(models) if models.contains(&name) => return Ok(Talker::Server(client, name)),
        Ok(models) if models.is_empty() => format!("the server at http://{} serves no model", client.address()),
        Ok(models) => format!("the server at http://{} serves {}", client.address(), models.join(", ")),
        Err(_) => format!("no server answers at http://{}", client.address()),
    };
    eprintln!("{}", session.terminal.grey(&format!("Loading {name} in this process: {why}.")));
    Ok(Talker::Here(load::load(config, Some(model), session)?))
}

/// What a line of the chat means.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Say(&'a str),
    /// A message of several lines begins, with this.
    Open(&'a str),
    Clear,
    Help,
    Bye,
    Unknown(&'a str),
}

fn parse_line(line: &str) -> Line<'_> {
    let line = line.trim();
    match line {
        "" => Line::Nothing,
        "/bye" | "/exit" | "/quit" => Line::Bye,
        "/clear" => Line::Clear,
        "/help" | "/?" => Line::Help,
        _ if line.starts_with("\"\"\"") => {
            let rest = &line[3..];
            rest.strip_suffix("\"\"\"").map_or(Line::Open(rest), Line::Say)
        }
        // A path or a fraction at the start of a message is no command.
        _ if line.starts_with('/') && line[1..].chars().all(|c| c.is_ascii_lowercase()) => Line::Unknown(line),
        _ => Line::Say(line),
    }
}

struct ChatLoop {
    talker: Talker,
    options: ChatOptions,
    history: Vec<Message>,
    runtime: Runtime,
    session: Session,
}

/// How an answer ended, besides errors.
enum Ended {
    Whole(String),
    Interrupted,
}

impl ChatLoop {
    fn once(mut self, prompt: String) -> Result<(), CliError> {
        self.history.push(Message::user(prompt));
        match self.answer()? {
            Ended::Whole(_) => Ok(()),
            Ended::Interrupted => Err(CliError::Interrupted),
        }
    }

    fn until_bye(mut self) -> Result<(), CliError> {
        let mut editor = DefaultEditor::new()?;
        let system = self.history.clone();
        eprintln!("{}", self.session.terminal.grey("Type a message; /help tells more, Ctrl-D leaves."));
        loop {
            let line = match editor.readline(">>> ") {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => {
                    eprintln!("{}", self.session.terminal.grey("Ctrl-D or /bye leaves."));
                    continue;
                }
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            // A history that cannot be kept is no reason to stop.
            let _ = editor.add_history_entry(line.as_str());
            match parse_line(&line) {
                Line::Nothing => {}
                Line::Bye => return Ok(()),
                Line::Help => println!("{HELP}"),
                Line::Clear => {
                    self.history.clone_from(&system);
                    eprintln!("{}", self.session.terminal.grey("Forgotten."));
                }
                Line::Unknown(command) => println!("There is no {command}.\n{HELP}"),
                Line::Say(text) => self.turn(text.to_owned())?,
                Line::Open(first) => match rest_of_block(&mut editor, first)? {
                    Some(text) => self.turn(text)?,
                    None => continue,
                },
            }
        }
    }

    /// One question and its answer. What was refused or cut short leaves no trace in the history.
    fn turn(&mut self, text: String) -> Result<(), CliError> {
        self.history.push(Message::user(text));
        match self.answer() {
            Ok(Ended::Whole(answer)) => {
                self.history.push(Message::assistant(answer));
                return Ok(());
            }
            Ok(Ended::Interrupted) => {}
            Err(error @ (CliError::Generate(_) | CliError::Client(_))) => eprintln!("error: {error}"),
            Err(error) => return Err(error),
        }
        self.history.pop();
        Ok(())
    }

    /// Prints an answer as it comes.
    fn answer(&self) -> Result<Ended, CliError> {
        self.runtime.block_on(async {
            let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
            let mut pieces = self.talker.answer(self.history.clone(), self.options)?;
            let mut answer = String::new();
            loop {
                let piece = tokio::select! {
                    biased;
                    _ = &mut interrupt => {
                        self.session.print("\n")?;
                        return Ok(Ended::Interrupted);
                    }
                    piece = pieces.recv() => piece,
                };
                match piece {
                    Some(Ok(Piece::Text(text))) => {
                        self.session.print(&text)?;
                        answer += &text;
                    }
                    Some(Ok(Piece::End(reason))) => self.end(&answer, reason)?,
                    Some(Err(error)) => {
                        self.session.print(if answer.is_empty() { "" } else { "\n" })?;
                        return Err(error);
                    }
                    None => return Ok(Ended::Whole(answer)),
                }
            }
        })
    }

    fn end(&self, answer: &str, reason: FinishReason) -> Result<(), CliError> {
        self.session.print(if answer.ends_with('\n') { "" } else { "\n" })?;
        if reason == FinishReason::Length {
            let _ = stdout().flush();
            let note = "(The answer ends here because its token limit or the context is reached.)";
            // A note that cannot be shown is no reason to fail.
            let _ = writeln!(stderr(), "{}", self.session.terminal.grey(note));
        }
        Ok(())
    }
}

/// Lines up to the closing `"""`; `None` where the person gave up on it.
fn rest_of_block(editor: &mut DefaultEditor, first: &str) -> Result<Option<String>, CliError> {
    let mut text = first.to_owned();
    loop {
        match editor.readline("... ") {
            Ok(line) => {
                text.push('\n');
                match line.trim_end().strip_suffix("\"\"\"") {
                    Some(last) => return Ok(Some((text + last).trim().to_owned())),
                    None => text += &line,
                }
            }
            Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart() {
        let cases = [
            ("", Line::Nothing),
            ("   ", Line::Nothing),
            (" hello ", Line::Say("hello")),
            ("/bye", Line::Bye),
            ("/exit", Line::Bye),
            ("/clear ", Line::Clear),
            ("/?", Line::Help),
            ("/frobnicate", Line::Unknown("/frobnicate")),
            ("/etc/passwd is what?", Line::Say("/etc/passwd is what?")),
            ("\"\"\"two", Line::Open("two")),
            ("\"\"\"one\"\"\"", Line::Say("one")),
            ("\"\"\"", Line::Open("")),
        ];
        for (line, expected) in cases {
            assert_eq!(parse_line(line), expected, "{line:?}");
        }
    }

    #[test]
    fn what_is_piped_stands_before_what_is_typed() {
        let terminal = super::super::terminal::Terminal { stdin: true, stdout: false, stderr: false, colour: false };
        let session = Session { terminal };
        let words = ["Why".to_owned(), "so?".to_owned()];
        assert_eq!(whole_prompt(&words, &session).expect("a prompt").as_deref(), Some("Why so?"));
        assert_eq!(whole_prompt(&[], &session).expect("a chat"), None);
    }
}
