//! What a checkpoint's configuration says of how its weights were quantised.
//!
//! Knows methods and their settings, no tensors. What Lantern does not read is refused here, by name, before weights are.

use std::path::Path;

use serde_json::Value;

use crate::weights::{LoadError, read_json};

/// Longest configuration, bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Largest group and block that are believed.
const MAX_GROUP: u64 = 1 << 20;
/// The methods that are read, for errors.
const KNOWN: &str = "gptq, awq, compressed-tensors, fp8 or fbgemm_fp8";

/// How the tensors of quantised layers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `qweight [in / n, out]` of words with `n` weights, along the inputs; `qzeros [groups, out / n]`, `scales [groups,
    /// out]`, `g_idx [in]`. `group` is `None` where a column is one.
    Gptq {
        /// 4 or 8.
        bits: u32,
        /// Inputs of a group.
        group: Option<usize>,
        /// What is stored of a zero, less the zero: 1 before `gptq_v2`.
        zero_less: u32,
    },
    /// `qweight [in, out / 8]` and `qzeros [groups, out / 8]` of words whose nibbles are interleaved, `scales [groups, out]`.
    Awq {
        /// Inputs of a group.
        group: Option<usize>,
    },
    /// `weight_packed [out, in / n]`, `weight_scale [out, groups]`, `weight_zero_point [out / n, groups]`.
    Packed {
        /// 4 or 8.
        bits: u32,
    },
    /// `weight [out, in]` of signed bytes or floats of 8 bits, `weight_scale` or `weight_scale_inv`.
    Bytes {
        /// Rows and columns that share a scale, where the scale's shape does not say it.
        block: Option<[usize; 2]>,
    },
}

impl Scheme {
    /// What lists call the weights, those of bytes as `is_float` says.
    pub fn name(self, is_float: bool) -> String {
        match self {
            Self::Gptq { bits, .. } => format!("GPTQ-Int{bits}"),
            Self::Awq { .. } => "AWQ-Int4".to_owned(),
            Self::Packed { bits } => format!("compressed-tensors-Int{bits}"),
            Self::Bytes { .. } if is_float => "FP8".to_owned(),
            Self::Bytes { .. } => "Int8".to_owned(),
        }
    }
}

/// What the model in `folder` says of its quantisation: config.json, else quantize_config.json; `None`: nothing.
/// hf_quant_config.json is a method of its own, NVIDIA's modelopt, and refused.
///
/// # Errors
/// A file is not JSON, or the weights are quantised as Lantern does not read them.
pub fn read(folder: &Path) -> Result<Option<Scheme>, LoadError> {
    let (file, beside) = (folder.join("config.json"), folder.join("quantize_config.json"));
    if file.is_file() {
        let json = read_json(&file, MAX_CONFIG_BYTES)?;
        let found = ["quantization_config", "compression_config"].into_iter().find_map(|key| json.get(key));
        if let Some(settings) = found.filter(|settings| !settings.is_null()) {
            return parse(&Settings { file: &file, json: settings }).map(Some);
        }
    }
    if beside.is_file() {
        let json = read_json(&beside, MAX_CONFIG_BYTES)?;
        return parse(&Settings { file: &beside, json: &json }).map(Some);
    }
    let modelopt = folder.join("hf_quant_config.json");
    if modelopt.is_file() {
        let json = read_json(&modelopt, MAX_CONFIG_BYTES)?;
        let algorithm = json.pointer("/quantization/quant_algo").and_then(Value::as_str).unwrap_or("weights");
        let found = format_args!("{algorithm:.100} of modelopt");
        return Err(LoadError::unexpected(&modelopt, "quantization.quant_algo", KNOWN, found));
    }
    Ok(None)
}

fn parse(settings: &Settings<'_>) -> Result<Scheme, LoadError> {
    // AutoGPTQ's own file does not name its method.
    let method = match settings.text(settings.json, "quant_method")? {
        Some(method) => method,
        None if settings.json.get("desc_act").is_some() => "gptq",
        None => return Err(settings.unexpected("quant_method", KNOWN, "none")),
    };
    if settings.text(settings.json, "activation_scheme")?.is_some() {
        tracing::info!("the checkpoint quantises activations too; its weights alone are used");
    }
    match method {
        "gptq" => gptq(settings),
        "awq" => awq(settings),
        "compressed-tensors" => compressed(settings),
        "fp8" => floats(settings),
        "fbgemm_fp8" => Ok(Scheme::Bytes { block: None }),
        other => Err(settings.unexpected("quant_method", KNOWN, other)),
    }
}

fn gptq(settings: &Settings<'_>) -> Result<Scheme, LoadError> {
    let zero_less = match settings.text(settings.json, "checkpoint_format")? {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(other) => return Err(settings.unexpected("checkpoint_format", "gptq or gptq_v2", other)),
    };
    if let Some(dynamic) = settings.json.get("dynamic").and_then(Value::as_object).filter(|map| !map.is_empty()) {
        // `-:` leaves modules out, whose weights are there as they were.
        if let Some(rule) = dynamic.keys().find(|rule| !rule.starts_with("-:")) {
            return Err(settings.unexpected("dynamic", "one setting for all layers", format_args!("{rule:.100}")));
        }
    }
    let bits = settings.bits(settings.json, "bits", &[4, 8])?;
    Ok(Scheme::Gptq { bits, group: settings.group(&["group_size"])?, zero_less })
}

fn awq(settings: &Settings<'_>) -> Result<Scheme, LoadError> {
    let version = settings.text(settings.json, "version")?.unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        return Err(settings.unexpected("version", "gemm", version));
    }
    let key = if settings.json.get("bits").is_some() { "bits" } else { "w_bit" };
    settings.bits(settings.json, key, &[4])?;
    Ok(Scheme::Awq { group: settings.group(&["group_size", "q_group_size"])? })
}

fn floats(settings: &Settings<'_>) -> Result<Scheme, LoadError> {
    match settings.text(settings.json, "fmt")? {
        None | Some("e4m3" | "e4m3fn" | "float8_e4m3fn") => {}
        Some(other) => return Err(settings.unexpected("fmt", "e4m3", other)),
    }
    Ok(Scheme::Bytes { block: settings.block(settings.json, "weight_block_size")? })
}

/// Source: compressed-tensors, `QuantizationConfig` and `QuantizationArgs`.
fn compressed(settings: &Settings<'_>) -> Result<Scheme, LoadError> {
    let sparsity = settings.json.get("sparsity_config").and_then(|sparsity| sparsity.get("format"));
    if let Some(format) = sparsity.and_then(Value::as_str).filter(|format| *format != "dense") {
        return Err(settings.unexpected("sparsity_config.format", "dense", format));
    }
    let format = settings.text(settings.json, "format")?.unwrap_or("none");
    let groups = settings.json.get("config_groups").and_then(Value::as_object);
    let groups: Vec<&Value> = groups.into_iter().flat_map(|groups| groups.values()).collect();
    let Some(weights) = groups.first().and_then(|group| group.get("weights")).filter(|weights| weights.is_object())
    else {
        return Err(settings.unexpected("config_groups", "a group with weights", "none"));
    };
    let same = |key: &str| groups.iter().all(|group| group.get("weights").and_then(|w| w.get(key)) == weights.get(key));
    if !["num_bits", "type", "block_structure"].into_iter().all(same) {
        return Err(settings.unexpected("config_groups", "one setting for the weights of all groups", "several"));
    }
    if groups.iter().any(|group| group.get("input_activations").is_some_and(|activations| !activations.is_null())) {
        tracing::info!("the checkpoint quantises activations too; its weights alone are used");
    }
    let kind = settings.text(weights, "type")?.unwrap_or("int");
    match (format, kind) {
        ("pack-quantized", "int") => Ok(Scheme::Packed { bits: settings.bits(weights, "num_bits", &[4, 8])? }),
        ("int-quantized" | "float-quantized" | "naive-quantized", "int" | "float") => {
            settings.bits(weights, "num_bits", &[8])?;
            Ok(Scheme::Bytes { block: settings.block(weights, "block_structure")? })
        }
        _ => {
            let expected = "pack-quantized, int-quantized, float-quantized or naive-quantized";
            Err(settings.unexpected("format", expected, format_args!("{format:.100} of type {kind:.100}")))
        }
    }
}

/// The settings of a file.
struct Settings<'a> {
    file: &'a Path,
    json: &'a Value,
}

impl<'a> Settings<'a> {
    fn unexpected(&self, key: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> LoadError {
        LoadError::unexpected(self.file, format_args!("quantization_config.{key}"), expected, found)
    }

    fn text(&self, object: &'a Value, key: &str) -> Result<Option<&'a str>, LoadError> {
        match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.unexpected(key, "a text", "something else")),
        }
    }

    fn bits(&self, object: &Value, key: &str, known: &[u32]) -> Result<u32, LoadError> {
        let found = object.get(key).and_then(Value::as_u64);
        match known.iter().find(|bits| found == Some(u64::from(**bits))) {
            Some(bits) => Ok(*bits),
            None => Err(self.unexpected(key, format_args!("one of {known:?}"), format_args!("{found:?}"))),
        }
    }

    /// Inputs of a group; -1 stands for all.
    fn group(&self, keys: &[&str]) -> Result<Option<usize>, LoadError> {
        let Some((key, value)) = keys.iter().find_map(|key| Some((*key, self.json.get(*key)?))) else {
            return Err(self.unexpected(keys[0], "a group size", "none"));
        };
        match (value.as_i64(), value.as_u64()) {
            (Some(-1), _) => Ok(None),
            (_, Some(size)) if (1..=MAX_GROUP).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.unexpected(key, format_args!("-1, or 1 to {MAX_GROUP}"), "something else")),
        }
    }

    /// Rows and columns of a block, where they are said.
    fn block(&self, object: &Value, key: &str) -> Result<Option<[usize; 2]>, LoadError> {
        let Some(value) = object.get(key).filter(|value| !value.is_null()) else { return Ok(None) };
        let size =
            |value: &Value| value.as_u64().filter(|size| (1..=MAX_GROUP).contains(size)).map(|size| size as usize);
        match value.as_array().map(Vec::as_slice) {
            Some([rows, columns]) => match (size(rows), size(columns)) {
                (Some(rows), Some(columns)) => Ok(Some([rows, columns])),
                _ => Err(self.unexpected(key, "two sizes", "others")),
            },
            _ => Err(self.unexpected(key, "two sizes", "something else")),
        }
    }
}
