//! Configurations of quantised checkpoints: those that are refused, by name.

use super::*;
use crate::weights::Weights;

fn refusal(config: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), config).expect("it can be written");
    read(folder.path()).expect_err("it is not read").to_string()
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let cases = [
        (r#"{"quant_method": "bitsandbytes", "load_in_4bit": true}"#, "bitsandbytes"),
        (r#"{"quant_method": "gptq", "bits": 3, "group_size": 128}"#, "bits: expected one of [4, 8], found Some(3)"),
        (r#"{"quant_method": "gptq", "bits": 4}"#, "group_size: expected a group size"),
        (r#"{"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"}"#, "found marlin"),
        (r#"{"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}"#, "version: expected gemm"),
        (r#"{"quant_method": "fp8", "fmt": "e5m2"}"#, "fmt: expected e4m3, found e5m2"),
        (
            r#"{"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups":
            {"g": {"weights": {"num_bits": 4, "type": "float"}}}}"#,
            "nvfp4-pack-quantized of type float",
        ),
        (r#"{"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}"#, "config_groups"),
    ];
    for (settings, expected) in cases {
        let error = refusal(&format!(r#"{{"quantization_config": {settings}}}"#));
        assert!(error.contains("config.json: quantization_config.") && error.contains(expected), "{error}: {expected}");
    }
}

#[test]
fn both_files_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(read(folder.path()).expect("nothing is said"), None);
    let settings = r#"{"bits": 4, "group_size": -1, "desc_act": true}"#;
    std::fs::write(folder.path().join("quantize_config.json"), settings).expect("it can be written");
    let expected = Scheme::Gptq { bits: 4, group: None, zero_less: 1 };
    assert_eq!(read(folder.path()).expect("it is right"), Some(expected));
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"quantization_config": {"quant_method": "fp8", "weight_block_size":
        [128, 128]}}"#,
    )
    .expect("it can be written");
    assert_eq!(read(folder.path()).expect("it is right"), Some(Scheme::Bytes { block: Some([128, 128]) }));
}

#[test]
fn modelopt_is_refused_by_name_unless_config_json_says_another_method() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("it can be written");
    write("config.json", "{}");
    write("hf_quant_config.json", r#"{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}"#);
    let error = read(folder.path()).expect_err("it is not read").to_string();
    assert!(error.contains("hf_quant_config.json") && error.contains("found FP8 of modelopt"), "{error}");
    write("config.json", r#"{"quantization_config": {"quant_method": "fp8"}}"#);
    assert_eq!(read(folder.path()).expect("it is read"), Some(Scheme::Bytes { block: None }));
}

/// However many bytes its embedding takes in BF16.
#[test]
fn a_checkpoint_is_called_by_the_method_that_quantised_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantized");
    let known = [
        ("awq", "AWQ-Int4"),
        ("compressed_fp8", "FP8"),
        ("compressed_int4", "compressed-tensors-Int4"),
        ("compressed_int8", "compressed-tensors-Int8"),
        ("fp8_blocks", "FP8"),
        ("fp8_tensor", "FP8"),
        ("gptq_8bit", "GPTQ-Int8"),
        ("gptq_act_order", "GPTQ-Int4"),
    ];
    for (name, expected) in known {
        let weights = Weights::open(&folder.join(name)).expect("the fixture opens");
        assert_eq!(weights.format_name(), expected, "{name}");
        assert_eq!(weights.quantized_as().as_deref(), Some(expected), "{name}");
    }
}
