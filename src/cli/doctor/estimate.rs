//! What the catalog alone lets say of a model that is not on this machine: about how much memory it takes, and whether
//! that fits.
//!
//! Reads no headers: the plan of a model that is here is exact.

use serde::Serialize;

use super::Room;
use crate::cli::CliError;
use crate::cli::load::BUILT_IN_CONTEXT;
use crate::cli::startup::count;
use crate::config::{ByteSize, EngineConfig, GpuLayers, WeightFormat};
use crate::engine::MemoryToPlan;
use crate::hub::{Entry, gpu_free_bytes};

/// About what a model would take, for one user.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The catalog's name of it.
    model: String,
    /// Where the numbers are from.
    from: &'static str,
    parameters: u64,
    /// Whether it is estimated for a GPU.
    on_gpu: bool,
    /// Bytes of the memory that it would be put into.
    memory_bytes: u64,
    weight_bytes: u64,
    /// Tokens of prompt and answer together that the user gets.
    context_length: u32,
    /// Bytes of the KV cache for so many.
    kv_user_bytes: u64,
    /// Bytes of all of it.
    needed_bytes: u64,
    /// `yes`, `in two parts` or `no`.
    fits: &'static str,
    /// Settings that were made and that an estimate does not know.
    not_counted: Vec<&'static str>,
}

impl Estimate {
    /// Of the model `entry`, put into `memory`.
    ///
    /// # Errors
    /// [`CliError::Refused`], where loading would refuse it: it is to be quantised, and is already, or the context is longer
    /// than the model's.
    pub fn new(
        entry: &Entry,
        config: &EngineConfig,
        quantize: Option<WeightFormat>,
        memory: MemoryToPlan,
    ) -> Result<Self, CliError> {
        let name = &entry.name;
        // The catalog's GGUF files are in blocks.
        if let Some(format) = quantize.filter(|_| entry.file.is_some()) {
            let format = format.name();
            let why =
                format!("{name} is quantised already, and weights of bf16, f16 or f32 are what {format} is made of");
            return Err(CliError::Refused(why));
        }
        let trained = entry.context_tokens;
        let context_length = config.context_length.unwrap_or(BUILT_IN_CONTEXT.min(trained));
        if context_length > trained {
            return Err(CliError::Refused(format!(
                "a context of {context_length} tokens is more than the {trained} that {name} was made for"
            )));
        }
        let (room, main_bytes, memory_bytes) = match memory {
            MemoryToPlan::Cpu(bytes) => (Room { name: None, free_bytes: bytes, total_bytes: bytes }, None, bytes),
            MemoryToPlan::Gpu { bytes, main_bytes } => {
                let free_bytes = gpu_free_bytes(bytes);
                (Room { name: Some("GPU".into()), free_bytes, total_bytes: free_bytes }, Some(main_bytes), bytes)
            }
        };
        let on_gpu = room.name.is_some();
        let needed = |context| if on_gpu { entry.gpu_memory_bytes(context) } else { entry.memory_bytes(context) };
        let needed_bytes = needed(context_length);
        let settings =
            [("--kv-cache-dtype", config.kv_dtype.is_some()), ("--gpu-layers", config.gpu_layers != GpuLayers::Auto)];
        Ok(Self {
            model: name.clone(),
            from: "catalog",
            parameters: entry.parameters,
            on_gpu,
            memory_bytes,
            weight_bytes: entry.bytes,
            context_length,
            kv_user_bytes: needed_bytes - needed(0),
            needed_bytes,
            fits: room.fits(needed_bytes, main_bytes),
            not_counted: settings.into_iter().filter(|(_, is_set)| *is_set).map(|(name, _)| name).collect(),
        })
    }

    /// The estimate as people read it.
    pub fn describe(&self) -> String {
        let line = |name: &str, text: String| format!("{name:<16}{text}\n");
        let bytes = |bytes: u64| format!("{:>9}", ByteSize(bytes).to_string());
        let (place, dtype) = if self.on_gpu { ("of a GPU", "bf16") } else { ("of main memory, on the CPU", "f32") };
        let (name, context) = (&self.model, self.context_length);
        let mut text = [
            line("model", format!("{name} ({} parameters), by the catalog", count(self.parameters))),
            line("memory", format!("{} {place}", ByteSize(self.memory_bytes))),
            "\n".to_owned(),
            line("weights", bytes(self.weight_bytes)),
            line("KV cache", format!("{}   a user of {context} tokens, in {dtype}", bytes(self.kv_user_bytes))),
            line("all of it", format!("{}   with its steps", bytes(self.needed_bytes))),
        ]
        .concat();
        text += match self.fits {
            "yes" => "\nIt should fit.",
            "no" => "\nIt should not fit.",
            _ => "\nIt should fit in two parts, with some layers on the CPU.",
        };
        if !self.not_counted.is_empty() {
            text += &format!(" {}: not counted in this.", self.not_counted.join(", "));
        }
        text + &format!(
            "\n{name} is not on this machine; `lantern pull {name}` brings it, and a plan from its headers is exact.\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KvDType;
    use crate::hub::Catalog;

    const GIB: u64 = 1 << 30;

    fn estimate(
        config: &EngineConfig,
        quantize: Option<WeightFormat>,
        memory: MemoryToPlan,
    ) -> Result<Estimate, CliError> {
        Estimate::new(Catalog::embedded().find("llama3.1:8b").expect("a name"), config, quantize, memory)
    }

    #[test]
    fn a_model_that_is_not_here_is_estimated_from_the_catalog() {
        let config = EngineConfig { context_length: Some(4096), ..EngineConfig::default() };
        let fits = |memory| estimate(&config, None, memory).expect("an estimate").fits;
        let on_gpu = |gib: u64, main: u64| MemoryToPlan::Gpu { bytes: gib * GIB, main_bytes: main * GIB };
        assert_eq!((fits(on_gpu(8, 0)), fits(on_gpu(4, 16)), fits(on_gpu(4, 0))), ("yes", "in two parts", "no"));
        assert_eq!((fits(MemoryToPlan::Cpu(16 * GIB)), fits(MemoryToPlan::Cpu(4 * GIB))), ("yes", "no"));
        let text = estimate(&config, None, on_gpu(8, 0)).expect("an estimate").describe();
        let start = "\
model           llama3.1:8b (8.03 billion parameters), by the catalog
memory          8.59 GB of a GPU

weights           4.92 GB
KV cache           537 MB   a user of 4096 tokens, in bf16
";
        assert!(text.starts_with(start), "{text}");
        let end = "\nIt should fit.\nllama3.1:8b is not on this machine; `lantern pull llama3.1:8b` brings it, and a plan from \
                   its headers is exact.\n";
        assert!(text.ends_with(end), "{text}");
        let config = EngineConfig { kv_dtype: Some(KvDType::Fp8), ..config };
        let text = estimate(&config, None, on_gpu(8, 0)).expect("an estimate").describe();
        assert!(text.contains("It should fit. --kv-cache-dtype: not counted in this."), "{text}");
    }

    #[test]
    fn what_loading_would_refuse_is_refused() {
        let memory = MemoryToPlan::Cpu(16 * GIB);
        let refused =
            estimate(&EngineConfig::default(), Some(WeightFormat::Q8_0), memory).expect_err("it is in blocks");
        assert!(refused.to_string().contains("llama3.1:8b is quantised already"), "{refused}");
        let long = EngineConfig { context_length: Some(1 << 20), ..EngineConfig::default() };
        let refused = estimate(&long, None, memory).expect_err("too long");
        assert!(refused.to_string().contains("1048576 tokens is more than the 131072 that"), "{refused}");
    }
}
