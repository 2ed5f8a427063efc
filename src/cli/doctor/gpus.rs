//! The ladder as `lantern doctor` shows it: each rung, how it was taken, and what to do at the first that failed.
//!
//! Pure text from facts.

use crate::config::ByteSize;
use crate::device::{Climb, GpuClimb, Outcome, Step};

/// The whole ladder, or nothing where nobody climbed.
pub fn describe(climb: &Climb) -> String {
    if climb.driver.is_empty() {
        return String::new();
    }
    let mut text = format!("\nNVIDIA driver\n{}", describe_steps(&climb.driver));
    for gpu in &climb.gpus {
        text += &format!("cuda:{}  {}\n{}", gpu.ordinal, describe_gpu(gpu), describe_steps(&gpu.steps));
    }
    text
}

/// Name and memory of the GPU that was chosen.
pub fn describe_place(climb: &Climb, ordinal: u32) -> String {
    let gpu = climb.gpus.iter().find(|gpu| gpu.ordinal == ordinal);
    format!("cuda:{ordinal}, {}", gpu.map_or_else(String::new, describe_gpu))
}

/// Free and all bytes of a GPU's memory.
pub fn memory(climb: &Climb, ordinal: u32) -> Option<(u64, u64)> {
    let gpu = climb.gpus.iter().find(|gpu| gpu.ordinal == ordinal)?;
    Some((gpu.free_bytes?, gpu.total_bytes))
}

fn describe_gpu(gpu: &GpuClimb) -> String {
    let free = gpu.free_bytes.map_or_else(String::new, |free| format!(", {} free", ByteSize(free)));
    format!("{}, {}{free}", gpu.name, ByteSize(gpu.total_bytes))
}

fn describe_steps(steps: &[Step]) -> String {
    let mut text = String::new();
    for Step { rung, outcome } in steps {
        let (mark, words) = match outcome {
            Outcome::Passed(seen) => ("ok", seen.as_str()),
            Outcome::Noted(note) => ("note", note.as_str()),
            Outcome::Failed(failure) => ("NO", failure.reason.as_str()),
            Outcome::NotTried => ("--", "not tried"),
        };
        text += &format!("  {mark:<5}{:<16}{words}\n", rung.name());
        if let Outcome::Failed(failure) = outcome
            && let Some(remedy) = &failure.remedy
        {
            text += &format!("{:7}{:<16}{remedy}\n", "", "what to do");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Failure, Rung};

    fn step(rung: Rung, outcome: Outcome) -> Step {
        Step { rung, outcome }
    }

    #[test]
    fn each_rung_has_its_line_and_a_failure_says_what_to_do() {
        let failure = Failure { reason: "it is too old".into(), remedy: Some("buy another".into()) };
        let gpu = |ordinal, free_bytes, steps| GpuClimb {
            ordinal,
            name: "Card".into(),
            total_bytes: 8_000_000_000,
            free_bytes,
            steps,
        };
        let climb = Climb {
            driver: vec![step(Rung::Library, Outcome::Passed("/usr/lib/libcuda.so.1".into()))],
            gpus: vec![
                gpu(0, None, vec![step(Rung::Capability, Outcome::Failed(failure))]),
                gpu(1, Some(7_000_000_000), vec![step(Rung::Cublas, Outcome::Noted("none".into()))]),
            ],
        };
        let expected = "\nNVIDIA driver\n  \
                        ok   driver library  /usr/lib/libcuda.so.1\n\
                        cuda:0  Card, 8.00 GB\n  \
                        NO   capability      it is too old\n       \
                        what to do      buy another\n\
                        cuda:1  Card, 8.00 GB, 7.00 GB free\n  \
                        note cuBLAS          none\n";
        assert_eq!(describe(&climb), expected);
        assert_eq!(describe_place(&climb, 1), "cuda:1, Card, 8.00 GB, 7.00 GB free");
        assert_eq!((memory(&climb, 0), memory(&climb, 1)), (None, Some((7_000_000_000, 8_000_000_000))));
        assert_eq!(describe(&Climb::default()), "");
    }
}
