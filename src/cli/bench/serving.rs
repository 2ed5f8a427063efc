//! The workload that servers are compared by: all requests at once, 512 random ids in and 256 out, and prompts of 4,096.
//!
//! Rates are over wall time, prompts included, as a client of the whole server sees them.
//! Knows not how requests reach the model.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::select_all;

use super::floor::{Floor, Workload};
use super::measure::{Bench, TokenStream};
use super::report::{ServingRow, Spread};
use crate::cli::CliError;

/// Prompt of a request, in tokens.
pub const PROMPT_TOKENS: u32 = 512;
/// Answer of a request, in tokens.
pub const ANSWER_TOKENS: u32 = 256;
/// Prompt of a request that asks for one token, and how many such requests there are.
pub const LONG_PROMPT: (u32, u32) = (4096, 16);

/// One run of some requests at once.
struct Run {
    wall: Duration,
    tokens: u64,
    /// Seconds to the first token, of each request.
    first: Vec<f64>,
    /// Seconds between the tokens of a request, of all requests.
    gaps: Vec<f64>,
}

impl Bench<'_> {
    /// Answers of [`ANSWER_TOKENS`] to `sequences` prompts of [`PROMPT_TOKENS`].
    ///
    /// # Errors
    /// [`CliError`]: a request is refused, or fewer tokens came than were asked for.
    pub async fn answers(&mut self, sequences: u32) -> Result<ServingRow, CliError> {
        let name = format!("{PROMPT_TOKENS}+{ANSWER_TOKENS}");
        self.serve(name, Workload { prompt: PROMPT_TOKENS, answer: ANSWER_TOKENS, sequences }).await
    }

    /// One token for each of `sequences` prompts of 4,096: the rate is that of prompt tokens.
    ///
    /// # Errors
    /// [`CliError`]: a request is refused, or fewer tokens came than were asked for.
    pub async fn prompts(&mut self, sequences: u32) -> Result<ServingRow, CliError> {
        let (prompt, _) = LONG_PROMPT;
        self.serve(format!("prompt {prompt}"), Workload { prompt, answer: 1, sequences }).await
    }

    /// The gaps between the tokens of `sequences` answers while a prompt of 4,096 tokens arrives.
    ///
    /// # Errors
    /// [`CliError`]: a request is refused, or fewer tokens came than were asked for.
    pub async fn intrusion(&mut self, sequences: u32) -> Result<ServingRow, CliError> {
        let workload = Workload { prompt: PROMPT_TOKENS, answer: ANSWER_TOKENS, sequences };
        let name = "prompt 4096 meanwhile".to_owned();
        let mut row = ServingRow { name, sequences, ..ServingRow::default() };
        let before = self.snapshot();
        for repeat in 0..=self.repeat() {
            let run = self.run_at_once(workload, Some(LONG_PROMPT.0)).await?;
            if repeat > 0 {
                row.add(run.tokens as f64 / run.wall.as_secs_f64(), &run.first, &run.gaps);
            }
        }
        row.finish(&before, &self.snapshot());
        Ok(row)
    }

    async fn serve(&mut self, name: String, workload: Workload) -> Result<ServingRow, CliError> {
        let mut row =
            ServingRow { name, sequences: workload.sequences, floor: self.floor(workload), ..ServingRow::default() };
        self.run_at_once(workload, None).await?;
        let before = self.snapshot();
        for _ in 0..self.repeat() {
            let run = self.run_at_once(workload, None).await?;
            row.add(workload.rated_tokens() as f64 / run.wall.as_secs_f64(), &run.first, &run.gaps);
        }
        row.finish(&before, &self.snapshot());
        Ok(row)
    }

    /// Runs the requests; where there is an `intruder`, a prompt of so many tokens comes when every request has a quarter
    /// of its tokens, and gaps count from then on.
    async fn run_at_once(&mut self, workload: Workload, intruder: Option<u32>) -> Result<Run, CliError> {
        let Workload { prompt, answer, sequences } = workload;
        let requests: Vec<_> = (0..sequences).map(|_| self.prepare(prompt, answer)).collect();
        let mut intruder = intruder.map(|tokens| self.prepare(tokens, 1));
        // What the run before took of the queue is given back a moment after its last token.
        self.idle().await;
        let numbered = |index: usize, tokens: TokenStream| tokens.map(move |tokens| (index, tokens)).boxed();
        let start = Instant::now();
        let streams = requests.into_iter().map(|request| self.send(request)).collect::<Result<Vec<_>, _>>()?;
        let mut events = select_all(streams.into_iter().enumerate().map(|(index, tokens)| numbered(index, tokens)));
        let mut last: Vec<Option<Instant>> = vec![None; sequences as usize];
        let mut count = vec![0_u32; sequences as usize];
        let mut run = Run { wall: Duration::ZERO, tokens: 0, first: Vec::new(), gaps: Vec::new() };
        while let Some((index, tokens)) = events.next().await {
            let tokens = tokens?;
            // Nothing is told, or it is the intruder's.
            if tokens == 0 || index == count.len() {
                continue;
            }
            let now = Instant::now();
            for _ in 0..tokens {
                run.tokens += 1;
                count[index] += 1;
                match last[index].replace(now) {
                    None => run.first.push((now - start).as_secs_f64()),
                    Some(_) if intruder.is_some() => {}
                    Some(before) => run.gaps.push((now - before).as_secs_f64()),
                }
            }
            run.wall = now - start;
            if intruder.is_some()
                && count.iter().all(|count| *count >= answer / 4)
                && let Some(request) = intruder.take()
            {
                events.push(numbered(count.len(), self.send(request)?));
            }
        }
        let expected = u64::from(answer) * u64::from(sequences);
        if run.tokens == expected {
            Ok(run)
        } else {
            let message = format!("the run ended after {} of {expected} tokens; is the context too small?", run.tokens);
            Err(CliError::Refused(message))
        }
    }
}

impl ServingRow {
    /// Adds what one run has given.
    fn add(&mut self, rate: f64, first: &[f64], gaps: &[f64]) {
        self.rates.push(rate);
        self.first.push(percentile(first, 50.0));
        self.gaps.extend_from_slice(gaps);
    }

    /// Works the percentiles out, once all runs are in.
    fn finish(&mut self, before: &crate::engine::MetricsSnapshot, after: &crate::engine::MetricsSnapshot) {
        self.tokens_per_second = Spread::of(&self.rates);
        let percent = |floor: Floor| 100.0 * self.tokens_per_second.median / floor.tokens_per_second;
        self.percent_of_floor = self.floor.map(percent);
        self.floor_has_prompts = self.floor.is_some_and(|floor| floor.has_prompts);
        self.first_token_ms = Spread::of(&self.first).median * 1e3;
        self.gap_ms = [50.0, 99.0, 100.0].map(|percent| percentile(&self.gaps, percent) * 1e3);
        let steps = after.steps.saturating_sub(before.steps).max(1);
        let step = after.step_nanoseconds.saturating_sub(before.step_nanoseconds);
        let model = after.model_nanoseconds.saturating_sub(before.model_nanoseconds);
        self.host_us_per_step = step.saturating_sub(model) as f64 / steps as f64 / 1e3;
        self.gaps = Vec::new();
    }
}

/// The value below which `percent` of `values` lie; 0 of none.
fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let index = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(index.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::percentile;

    #[test]
    fn percentiles_are_values_that_came() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!([50.0, 99.0, 100.0].map(|percent| percentile(&values, percent)), [100.0, 198.0, 200.0]);
        assert_eq!(percentile(&[7.0], 99.0), 7.0);
        assert_eq!(percentile(&[], 99.0), 0.0);
    }
}
