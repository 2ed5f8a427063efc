//! Runs prompts and times their tokens.
//!
//! Random ids from a fixed seed keep the prefix cache out of it; greedy choice and no end token make runs alike.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::{BoxStream, select_all};

use super::floor::{Floor, Workload};
use super::http::HttpDoor;
use super::report::{Row, Spread};
use crate::cli::CliError;
use crate::device::Ceilings;
use crate::engine::MetricsSnapshot;
use crate::llm::{GenerateRequest, GenerationEvent, Llm, Prompt};
use crate::request::TokenId;

/// Prompt of a sequence whose generation is timed, in tokens: short, so that decoding is nearly all of it.
const SHORT_PROMPT_TOKENS: u32 = 8;

/// How many tokens of an answer come each time that any come.
pub type TokenStream = BoxStream<'static, Result<usize, CliError>>;

/// How requests reach the model.
pub enum Door {
    /// By the library.
    InProcess,
    /// By the server.
    Http(HttpDoor),
}

/// A request that is ready to be sent.
pub(super) enum Prepared {
    InProcess(Box<GenerateRequest>),
    Http(String),
}

/// Measures one model.
pub struct Bench<'a> {
    llm: &'a Llm,
    door: Door,
    ceilings: Ceilings,
    repeat: u32,
    random: SplitMix64,
}

impl<'a> Bench<'a> {
    /// Measures `llm` through `door`, each figure `repeat` times after a warm-up, beside the floors that follow from
    /// `ceilings`.
    pub fn new(llm: &'a Llm, door: Door, ceilings: Ceilings, repeat: u32) -> Self {
        Self { llm, door, ceilings, repeat, random: SplitMix64(0x1a27_e12e) }
    }

    /// Closes the door, where it is one that can be.
    ///
    /// # Errors
    /// [`CliError`]: the server did not end in order.
    pub async fn close(self) -> Result<(), CliError> {
        match self.door {
            Door::InProcess => Ok(()),
            Door::Http(door) => door.close().await,
        }
    }

    /// Tokens per second of a prompt alone, up to its first answer token.
    ///
    /// # Errors
    /// [`CliError`]: the request is refused, or fewer tokens came than were asked for.
    pub async fn prompt(&mut self, tokens: u32) -> Result<Row, CliError> {
        let before = self.snapshot();
        let mut rates = Vec::new();
        for _ in 0..=self.repeat {
            let run = self.run_together(tokens, 1, 1).await?;
            rates.push(rate(u64::from(tokens), run.first - run.start));
        }
        Ok(self.row(format!("pp{tokens}"), 1, rates, before))
    }

    /// Tokens per second of `sequences` answers together, from the moment all have begun.
    ///
    /// # Errors
    /// [`CliError`]: the request is refused, or fewer tokens came than were asked for.
    pub async fn generate(&mut self, tokens: u32, sequences: u32) -> Result<Row, CliError> {
        let before = self.snapshot();
        let mut rates = Vec::new();
        for _ in 0..=self.repeat {
            let run = self.run_together(SHORT_PROMPT_TOKENS, tokens, sequences).await?;
            rates.push(rate(run.tokens_after_first, run.last - run.first));
        }
        Ok(self.row(format!("tg{tokens}"), sequences, rates, before))
    }

    /// The first of `rates` is the warm-up.
    fn row(&self, name: String, sequences: u32, rates: Vec<f64>, before: MetricsSnapshot) -> Row {
        let after = self.snapshot();
        let step = after.step_nanoseconds.saturating_sub(before.step_nanoseconds);
        let model = after.model_nanoseconds.saturating_sub(before.model_nanoseconds);
        let outside_model_percent = (step > 0).then(|| 100.0 * step.saturating_sub(model) as f64 / step as f64);
        Row { name, sequences, tokens_per_second: Spread::of(&rates[1..]), outside_model_percent }
    }

    /// The fastest that `workload` could run, where that is known.
    pub(super) fn floor(&self, workload: Workload) -> Option<Floor> {
        workload.floor(&self.llm.info().token_cost, &self.ceilings)
    }

    /// How many sequences may run beside one more.
    pub(super) fn sequences_beside_one(&self) -> u32 {
        self.llm.engine().limits().max_sequences.saturating_sub(1).max(1)
    }

    /// Waits until the engine has no request left.
    pub(super) async fn idle(&self) {
        self.llm.engine().idle().await;
    }

    /// How often each figure is measured.
    pub(super) fn repeat(&self) -> u32 {
        self.repeat
    }

    pub(super) fn snapshot(&self) -> MetricsSnapshot {
        self.llm.engine().metrics().snapshot()
    }

    async fn run_together(&mut self, prompt: u32, generate: u32, sequences: u32) -> Result<Timing, CliError> {
        let start = Instant::now();
        let mut streams = Vec::new();
        for _ in 0..sequences {
            let request = self.request(prompt, generate);
            streams.push(self.llm.generate(request)?);
        }
        let streams = streams.into_iter().enumerate().map(|(index, stream)| stream.map(move |event| (index, event)));
        let mut events = select_all(streams);
        let expected = u64::from(generate) * u64::from(sequences);
        let mut tokens_in_all = 0;
        let mut timing = Timing { start, first: start, last: start, tokens_after_first: 0 };
        let mut begun = vec![false; sequences as usize];
        let mut to_begin = sequences;
        while let Some((index, event)) = events.next().await {
            let GenerationEvent::Delta { tokens, .. } = event? else { continue };
            if tokens.is_empty() {
                continue;
            }
            let now = Instant::now();
            tokens_in_all += tokens.len() as u64;
            timing.last = now;
            if to_begin == 0 {
                timing.tokens_after_first += tokens.len() as u64;
            } else if !std::mem::replace(&mut begun[index], true) {
                to_begin -= 1;
                timing.first = now;
            }
        }
        if tokens_in_all == expected {
            Ok(timing)
        } else {
            Err(CliError::Refused(format!(
                "the run ended after {tokens_in_all} of {expected} tokens; is the context too small for it?"
            )))
        }
    }

    /// A request of random ids, made before any clock runs.
    pub(super) fn prepare(&mut self, prompt: u32, generate: u32) -> Prepared {
        let request = self.request(prompt, generate);
        match (&self.door, &request.prompt) {
            (Door::Http(door), Prompt::Tokens(ids)) => Prepared::Http(door.body(ids, generate)),
            _ => Prepared::InProcess(Box::new(request)),
        }
    }

    /// Sends it; over HTTP once the stream is polled.
    ///
    /// # Errors
    /// [`CliError`]: it is refused.
    pub(super) fn send(&self, prepared: Prepared) -> Result<TokenStream, CliError> {
        match (prepared, &self.door) {
            (Prepared::Http(body), Door::Http(door)) => Ok(door.send(body)),
            (Prepared::Http(_), Door::InProcess) => Err(CliError::Refused("there is no server to send it to".into())),
            (Prepared::InProcess(request), _) => {
                let events = self.llm.generate(*request)?;
                let count = |event| match event {
                    Ok(GenerationEvent::Delta { tokens, .. }) => Ok(tokens.len()),
                    Ok(_) => Ok(0),
                    Err(error) => Err(CliError::from(error)),
                };
                Ok(events.map(count).boxed())
            }
        }
    }

    fn request(&mut self, prompt: u32, generate: u32) -> GenerateRequest {
        let vocabulary = u64::from(self.llm.engine().limits().vocab_size);
        let ids: Vec<TokenId> = (0..prompt).map(|_| self.random.below(vocabulary)).collect();
        let request = GenerateRequest::new(Prompt::Tokens(ids)).max_tokens(generate).temperature(0.0);
        GenerateRequest { ignore_eos: true, ..request }
    }
}

/// When the tokens of one run came.
struct Timing {
    start: Instant,
    /// Every sequence has its first token.
    first: Instant,
    last: Instant,
    /// Tokens of all sequences after `first`.
    tokens_after_first: u64,
}

fn rate(tokens: u64, time: Duration) -> f64 {
    // A run too short to time counts as a microsecond long: no infinity reaches the table.
    tokens as f64 / time.as_secs_f64().max(1e-6)
}

/// Random numbers that are the same in every run.
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
struct SplitMix64(u64);

impl SplitMix64 {
    fn below(&mut self, end: u64) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end.max(1)) as u32
    }
}

/// Bytes of memory that this process holds now and has held at most; `None` where the system does not tell.
pub fn resident_bytes() -> Option<(u64, u64)> {
    parse_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Source: proc_pid_status(5).
fn parse_status(text: &str) -> Option<(u64, u64)> {
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((bytes("VmRSS:")?, bytes("VmHWM:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_are_the_same_each_time_and_stay_in_the_vocabulary() {
        let draw = |end| {
            let mut random = SplitMix64(7);
            (0..1000).map(|_| random.below(end)).collect::<Vec<_>>()
        };
        assert_eq!(draw(49_152), draw(49_152));
        assert!(draw(10).iter().all(|id| *id < 10));
        assert_eq!(draw(10).iter().collect::<std::collections::BTreeSet<_>>().len(), 10);
    }

    #[test]
    fn memory_is_read_from_the_status_file() {
        let text = "Name:\tlantern\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(parse_status(text), Some((1 << 20, 2 << 20)));
        assert_eq!(parse_status("Name:\tlantern\n"), None);
    }
}
