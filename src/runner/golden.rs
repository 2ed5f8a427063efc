//! Parity with Hugging Face transformers on tiny models of every family and format (`tests/fixtures`), and the promise that
//! what a sequence gets does not depend on how it was computed: whole or in chunks, alone or beside others, in whichever
//! blocks. Equality of the latter is bitwise.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::KvDType;
use crate::kv_cache::BlockId;
use crate::models::{Decoder, ModelSource, Workspace};
use crate::ops::{Compute, KvCache, KvLayout, RowIndices};
use crate::runner::batch::InputBatch;

const BLOCK: usize = KvLayout::BLOCK_SIZE;
const BLOCKS: usize = 64;
pub(super) const MAX_TOKENS: usize = 256;
const LOGIT_ROWS: usize = 32;

/// The folders below `tests/fixtures` and how many fixtures each has: one that is lost must not go unnoticed.
pub(super) const KINDS: [(&str, usize); 3] = [("golden", 26), ("gguf", 12), ("quantized", 13)];

/// Families whose rotary frequencies depend on the length of the sequence.
const BY_LENGTH: [&str; 2] = ["llama_dynamic", "llama_longrope"];

#[derive(Deserialize)]
struct Expected {
    prompts: Vec<ExpectedPrompt>,
}

#[derive(Deserialize)]
pub(super) struct ExpectedPrompt {
    pub(super) name: String,
    pub(super) ids: Vec<u32>,
    pub(super) logit_positions: Vec<usize>,
    pub(super) greedy: Vec<u32>,
}

pub(super) struct Fixture {
    pub(super) folder: PathBuf,
    pub(super) prompts: Vec<ExpectedPrompt>,
    values: HashMap<String, Tensor>,
}

/// Folders of safetensors for every family, and GGUF files that mix tensor types as people's files do.
pub(super) fn fixtures() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries = KINDS.map(|(kind, _)| std::fs::read_dir(root.join(kind)).expect("the fixtures are here"));
    let mut fixtures: Vec<Fixture> = entries
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.is_dir())
        .map(|folder| {
            let text = std::fs::read_to_string(folder.join("expected.json")).expect("expected.json");
            let expected: Expected = serde_json::from_str(&text).expect("expected.json is valid");
            let values = candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu);
            Fixture { folder, prompts: expected.prompts, values: values.expect("expected.safetensors") }
        })
        .collect();
    for (kind, count) in KINDS {
        let found = fixtures.iter().filter(|fixture| fixture.kind() == kind).count();
        assert_eq!(found, count, "of {kind} a fixture is lost, or was not counted here");
    }
    fixtures.sort_by(|a, b| a.folder.cmp(&b.folder));
    fixtures
}

impl Fixture {
    pub(super) fn family(&self) -> &str {
        self.folder.file_name().and_then(|name| name.to_str()).expect("a folder's name")
    }

    /// The folder that it lies in.
    pub(super) fn kind(&self) -> &str {
        let kind = self.folder.parent().and_then(Path::file_name);
        kind.and_then(|name| name.to_str()).expect("a folder's name")
    }

    /// The same prompts for another model; what is expected of this one is no longer.
    #[cfg(feature = "cuda")]
    pub(super) fn in_folder(self, folder: &Path) -> Self {
        Self { folder: folder.to_owned(), values: HashMap::new(), ..self }
    }

    /// The logits that are expected at a prompt's places; none where it is in another folder.
    #[cfg(feature = "cuda")]
    pub(super) fn logits(&self, prompt: &ExpectedPrompt) -> Vec<f32> {
        let name = format!("{}.logits", prompt.name);
        if self.values.contains_key(&name) { self.values(&name) } else { Vec::new() }
    }

    pub(super) fn values(&self, name: &str) -> Vec<f32> {
        self.values[name].flatten_all().expect("a tensor").to_vec1().expect("f32")
    }

    /// The context for which a prompt's expected values were computed.
    pub(super) fn context(&self, prompt: &ExpectedPrompt) -> u32 {
        let by_length = BY_LENGTH.contains(&self.family());
        if by_length && !continues(self, prompt) {
            return prompt.ids.len() as u32;
        }
        if by_length { (prompt.ids.len() + prompt.greedy.len()) as u32 } else { 256 }
    }
}

/// `compressed_fp8`, whose weights are of fp8 with a scale a row, with such an embedding, which is the output layer too where
/// it is `tied`: numbers below 2, of both signs.
pub(super) fn with_fp8_embedding(tied: bool) -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized/compressed_fp8");
    let read = |name: &str| std::fs::read(from.join(name)).expect("the fixture is here");
    let mut config: Value = serde_json::from_slice(&read("config.json")).expect("JSON");
    config["tie_word_embeddings"] = tied.into();
    let file = read("model.safetensors");
    let length = u64::from_le_bytes(file[..8].try_into().expect("eight")) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("JSON");
    let (mut tensors, mut data) = (serde_json::Map::new(), Vec::new());
    let mut add = |name: &str, dtype: &Value, shape: &Value, bytes: &[u8]| {
        let range = [data.len(), data.len() + bytes.len()];
        data.extend_from_slice(bytes);
        tensors.insert(name.to_owned(), json!({"dtype": dtype, "shape": shape, "data_offsets": range}));
    };
    let (table, scales) = ("model.embed_tokens.weight", "model.embed_tokens.weight_scale");
    for (name, tensor) in header.as_object().expect("an object").iter().filter(|(name, _)| *name != "__metadata__") {
        let at = |index: usize| 8 + length + tensor["data_offsets"][index].as_u64().expect("an offset") as usize;
        let (dtype, shape) = (&tensor["dtype"], &tensor["shape"]);
        if name == table {
            let [rows, columns] = [0, 1].map(|index: usize| shape[index].as_u64().expect("a size") as u32);
            let quants = (0..rows * columns).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8 & 0xBF);
            add(table, &"F8_E4M3".into(), shape, &quants.collect::<Vec<_>>());
            let scale = |row: u32| (0.5 + 0.1 * (row % 7) as f32).to_le_bytes();
            add(scales, &"F32".into(), &json!([rows, 1]), &(0..rows).flat_map(scale).collect::<Vec<_>>());
        } else if !(tied && name == "lm_head.weight") {
            add(name, dtype, shape, &file[at(0)..at(1)]);
        }
    }
    let mut header = serde_json::to_vec(&tensors).expect("JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let written = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    let folder = tempfile::tempdir().expect("a folder");
    let config = serde_json::to_vec(&config).expect("JSON");
    for (name, bytes) in
        [("model.safetensors", written), ("config.json", config), ("tokenizer.json", read("tokenizer.json"))]
    {
        std::fs::write(folder.path().join(name), bytes).expect("it can be written");
    }
    folder
}

/// Whether the expected continuation was computed with the frequencies of the prompt: with dynamic scaling past the
/// model's own length each further token has frequencies of its own.
fn continues(fixture: &Fixture, prompt: &ExpectedPrompt) -> bool {
    !(fixture.family() == "llama_dynamic" && prompt.name == "long")
}

/// A model with its cache, driven by hand.
pub(super) struct Rig {
    compute: Compute,
    /// The first layers, where they run by themselves.
    first: Option<(Decoder, KvCache)>,
    decoder: Decoder,
    kv: KvCache,
    workspace: Workspace,
}

/// One row of a step: tokens `ids[start..end]` of a sequence that lives in `blocks`.
pub(super) struct Row<'a> {
    pub(super) ids: &'a [u32],
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) blocks: &'a [BlockId],
}

impl Rig {
    pub(super) fn new(folder: &Path, context: u32, threads: usize) -> Self {
        Self::with_kv(folder, context, threads, KvDType::F32)
    }

    /// With a cache of `kv_dtype`.
    pub(super) fn with_kv(folder: &Path, context: u32, threads: usize, kv_dtype: KvDType) -> Self {
        Self::of(ModelSource::open(folder).expect("the fixture loads"), context, threads, kv_dtype)
    }

    pub(super) fn of(source: ModelSource, context: u32, threads: usize, kv_dtype: KvDType) -> Self {
        let compute = Compute::cpu(NonZeroUsize::new(threads));
        let decoder = Decoder::load(&compute, source.spec, &source.weights, context).expect("the weights load");
        let spec = decoder.spec();
        let kv = KvCache::zeros(&compute, decoder.layer_count(), spec.kv_layout(kv_dtype), BLOCKS).expect("memory");
        let workspace = Workspace::new(spec, MAX_TOKENS, LOGIT_ROWS, &compute).expect("memory");
        Self { compute, first: None, decoder, kv, workspace }
    }

    /// In two parts, of which the first has `cut` layers.
    fn divided(folder: &Path, cut: usize) -> Self {
        let source = ModelSource::open(folder).expect("the fixture loads");
        let rig = Self::new(folder, 256, 2);
        let part = |layers: std::ops::Range<usize>| {
            let (count, spec) = (layers.len(), source.spec.clone());
            let decoder = Decoder::load_layers(&rig.compute, spec, &source.weights, 256, layers).expect("weights");
            let layout = decoder.spec().kv_layout(KvDType::F32);
            let kv = KvCache::zeros(&rig.compute, count, layout, BLOCKS).expect("memory");
            (decoder, kv)
        };
        let (decoder, kv) = part(cut..source.spec.layers);
        Self { first: Some(part(0..cut)), decoder, kv, ..rig }
    }

    /// Runs one step of `rows`; the logits of all their tokens, row after row.
    pub(super) fn step(&self, rows: &[Row<'_>]) -> Vec<Vec<f32>> {
        let mut batch = InputBatch::default();
        pack(rows, &mut batch);
        for (decoder, kv) in self.first.iter().map(|(decoder, kv)| (decoder, kv)).chain([(&self.decoder, &self.kv)]) {
            decoder.forward(&self.compute, batch.on_cpu(), kv, &self.workspace).expect("a step");
        }
        let indices: Vec<u32> = (0..batch.tokens.len() as u32).collect();
        let mut all = Vec::new();
        for slice in indices.chunks(LOGIT_ROWS) {
            let logits = self.decoder.logits(&self.compute, RowIndices::Cpu(slice), &self.workspace).expect("logits");
            let values = logits.source("test", "logits").expect("f32");
            all.extend(values.chunks(self.decoder.spec().vocab).map(<[f32]>::to_vec));
        }
        all
    }

    /// The hidden states after the last norm of all tokens of a step of `row`.
    #[cfg(feature = "cuda")]
    pub(super) fn hidden(&self, row: Row<'_>) -> Vec<Vec<f32>> {
        let mut batch = InputBatch::default();
        pack(&[row], &mut batch);
        self.decoder.forward(&self.compute, batch.on_cpu(), &self.kv, &self.workspace).expect("a step");
        let indices: Vec<u32> = (0..batch.tokens.len() as u32).collect();
        let states = indices.chunks(LOGIT_ROWS).flat_map(|slice| {
            let states = self.decoder.hidden(&self.compute, RowIndices::Cpu(slice), &self.workspace).expect("states");
            let values = states.source("test", "hidden states").expect("f32");
            values.chunks(self.decoder.spec().hidden).map(<[f32]>::to_vec).collect::<Vec<_>>()
        });
        states.collect()
    }

    /// All logits of `ids`, computed in chunks of these sizes (the last one repeats).
    pub(super) fn chunked(&self, ids: &[u32], chunks: &[usize], blocks: &[BlockId]) -> Vec<Vec<f32>> {
        let (mut start, mut all) = (0, Vec::new());
        for index in 0.. {
            let size = chunks[index.min(chunks.len() - 1)];
            let end = (start + size).min(ids.len());
            all.extend(self.step(&[Row { ids, start, end, blocks }]));
            start = end;
            if start == ids.len() {
                return all;
            }
        }
        all
    }
}

/// Fills `batch` with `rows`.
pub(super) fn pack(rows: &[Row<'_>], batch: &mut InputBatch) {
    batch.clear();
    for row in rows {
        for position in row.start..row.end {
            batch.tokens.push(row.ids[position]);
            batch.positions.push(position as u32);
            let block = row.blocks[position / BLOCK].0 as usize;
            batch.attention.slot_mapping.push((block * BLOCK + position % BLOCK) as u32);
        }
        batch.attention.push_row((row.end - row.start) as u32, row.end as u32, row.blocks);
    }
}

pub(super) fn blocks(numbers: impl IntoIterator<Item = u32>) -> Vec<BlockId> {
    numbers.into_iter().map(BlockId).collect()
}

pub(super) fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a)));
    best.expect("a vocabulary") as u32
}

/// ||a - b|| / ||b||.
pub(super) fn relative_error(found: &[f32], wanted: &[f32]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(wanted).map(|(a, b)| square(a - b)).sum();
    (difference / wanted.iter().map(|b| square(*b)).sum::<f64>()).sqrt()
}

#[test]
fn logits_and_logprobs_are_those_of_transformers() {
    for fixture in fixtures() {
        for prompt in &fixture.prompts {
            let rig = Rig::new(&fixture.folder, fixture.context(prompt), 2);
            let found = rig.chunked(&prompt.ids, &[MAX_TOKENS], &blocks(0..16));
            let wanted = fixture.values(&format!("{}.logits", prompt.name));
            for (wanted, position) in wanted.chunks(rig.decoder.spec().vocab).zip(&prompt.logit_positions) {
                let error = relative_error(&found[*position], wanted);
                let place = format!("{} {} at {position}", fixture.family(), prompt.name);
                assert!(error < 1e-4, "{place}: relative error {error:e}");
            }
            if prompt.ids.len() > 1 {
                check_logprobs(&fixture, prompt, &found);
            }
        }
    }
}

fn check_logprobs(fixture: &Fixture, prompt: &ExpectedPrompt, logits: &[Vec<f32>]) {
    let wanted = fixture.values(&format!("{}.prompt_logprobs", prompt.name));
    for (position, wanted) in wanted.iter().enumerate() {
        let found = crate::sampling::token_logprobs(&logits[position], prompt.ids[position + 1], 0).logprob;
        let place = format!("{} {} at {position}", fixture.family(), prompt.name);
        assert!((found - wanted).abs() < 1e-3, "{place}: {found} is not {wanted}");
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    for fixture in fixtures() {
        for prompt in fixture.prompts.iter().filter(|prompt| continues(&fixture, prompt)) {
            let rig = Rig::new(&fixture.folder, fixture.context(prompt), 1);
            let table = blocks((0..16).rev());
            let mut ids = prompt.ids.clone();
            let mut logits = rig.chunked(&ids, &[MAX_TOKENS], &table);
            for _ in &prompt.greedy {
                ids.push(argmax(logits.last().expect("a token")));
                let row = Row { ids: &ids, start: ids.len() - 1, end: ids.len(), blocks: &table };
                logits = if ids.len() < fixture.context(prompt) as usize { rig.step(&[row]) } else { logits };
            }
            assert_eq!(ids[prompt.ids.len()..], prompt.greedy, "{} {}", fixture.family(), prompt.name);
        }
    }
}

#[test]
fn chunks_blocks_and_threads_change_no_bit() {
    for fixture in fixtures() {
        let prompt = fixture.prompts.iter().find(|prompt| prompt.name == "medium").expect("a medium prompt");
        let rig = Rig::new(&fixture.folder, 256, 1);
        let whole = rig.chunked(&prompt.ids, &[MAX_TOKENS], &blocks(0..16));
        for chunks in [vec![1], vec![7, 16, 1, 20], vec![33], vec![69, 1]] {
            let table = blocks((0..16).map(|block| 63 - 3 * block));
            assert_eq!(rig.chunked(&prompt.ids, &chunks, &table), whole, "{} in {chunks:?}", fixture.family());
        }
        let threaded = Rig::new(&fixture.folder, 256, 5);
        assert_eq!(threaded.chunked(&prompt.ids, &[MAX_TOKENS], &blocks(7..23)), whole, "{}", fixture.family());
    }
}

#[test]
fn layers_in_two_parts_change_no_bit() {
    let mut divided = 0;
    for fixture in fixtures() {
        let prompt = fixture.prompts.iter().find(|prompt| prompt.name == "medium").expect("a medium prompt");
        let whole = Rig::new(&fixture.folder, 256, 2);
        let wanted = whole.chunked(&prompt.ids, &[MAX_TOKENS], &blocks(0..16));
        for cut in 1..whole.decoder.spec().layers {
            let parts = Rig::divided(&fixture.folder, cut);
            assert!(parts.decoder.logits(&parts.compute, RowIndices::Cpu(&[0]), &parts.workspace).is_ok());
            let (first, _) = parts.first.as_ref().expect("two parts");
            assert!(
                first.logits(&parts.compute, RowIndices::Cpu(&[0]), &parts.workspace).is_err(),
                "no output is there"
            );
            assert_eq!(parts.chunked(&prompt.ids, &[50, 7], &blocks(0..16)), wanted, "{} at {cut}", fixture.family());
            divided += 1;
        }
    }
    assert!(divided >= fixtures().len(), "{divided} divisions, and every model has at least two layers");
}

#[test]
fn neighbours_in_a_batch_change_no_bit() {
    for fixture in fixtures() {
        let rig = Rig::new(&fixture.folder, 256, 2);
        let tables: Vec<Vec<BlockId>> = (0..3).map(|index| blocks(16 * index..16 * index + 16)).collect();
        let prompts: Vec<&[u32]> = fixture.prompts[..3].iter().map(|prompt| prompt.ids.as_slice()).collect();
        let alone: Vec<Vec<Vec<f32>>> =
            prompts.iter().zip(&tables).map(|(ids, table)| rig.chunked(ids, &[MAX_TOKENS], table)).collect();
        let row = |index: usize, start, end| Row { ids: prompts[index], start, end, blocks: &tables[index] };
        let last = prompts[2].len();
        // Long after short, then a chunk of one beside the end of another.
        let first = rig.step(&[row(0, 0, 1), row(1, 0, 9), row(2, 0, 40)]);
        let second = rig.step(&[row(2, 40, last), row(1, 9, prompts[1].len())]);
        assert_eq!(first[0], alone[0][0], "{}", fixture.family());
        assert_eq!(first[1..10], alone[1][..9], "{}", fixture.family());
        assert_eq!(first[10..], alone[2][..40], "{}", fixture.family());
        assert_eq!(second[..last - 40], alone[2][40..], "{}", fixture.family());
        assert_eq!(second[last - 40..], alone[1][9..], "{}", fixture.family());
    }
}

/// Types of the KV cache and the largest relative error of logits beside a cache of f32: f16 keeps 11 bits of a number,
/// bf16 8, int8 7 of a head's largest.
const KV_TOLERANCES: [(KvDType, f64); 3] = [(KvDType::F16, 4e-3), (KvDType::Bf16, 3e-2), (KvDType::Int8, 6e-2)];

#[test]
fn a_smaller_kv_cache_is_near_and_no_bit_depends_on_chunks_blocks_or_threads() {
    for fixture in fixtures() {
        let prompt = fixture.prompts.iter().find(|prompt| prompt.name == "medium").expect("a medium prompt");
        let exact = Rig::new(&fixture.folder, 256, 2).chunked(&prompt.ids, &[MAX_TOKENS], &blocks(0..16));
        for (dtype, tolerance) in KV_TOLERANCES {
            let place = format!("{} with a cache of {dtype}", fixture.family());
            let rig = Rig::with_kv(&fixture.folder, 256, 1, dtype);
            let whole = rig.chunked(&prompt.ids, &[MAX_TOKENS], &blocks(0..16));
            let errors = whole.iter().zip(&exact).map(|(found, wanted)| relative_error(found, wanted));
            let mut errors: Vec<f64> = errors.collect();
            errors.sort_by(f64::total_cmp);
            // A token that goes to other experts, by a hair's breadth, has other logits: there most tokens are compared.
            let most = if rig.decoder.spec().experts.is_some() { errors.len() / 2 } else { errors.len() - 1 };
            let worst = errors[most];
            assert!(worst > 0.0 && worst < tolerance, "{place}: relative error {worst:e}");
            let threaded = Rig::with_kv(&fixture.folder, 256, 3, dtype);
            let table = blocks((0..16).map(|block| 63 - 3 * block));
            assert_eq!(threaded.chunked(&prompt.ids, &[7, 16, 1, 20], &table), whole, "{place}");
        }
    }
}
