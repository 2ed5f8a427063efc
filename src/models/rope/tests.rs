//! Frequencies and tables against transformers 5.17 (`LlamaRotaryEmbedding`, float32), in both forms of config.json.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::models::fields::Fields;

struct Case {
    rope: Value,
    max_positions: u32,
    /// Length of the pass: the last position is compared.
    length: usize,
    frequencies: [f32; 8],
    cos: [f32; 8],
    sin: [f32; 8],
}

const SHORT: [f64; 8] = [1.0, 1.0, 1.1, 1.1, 1.2, 1.3, 1.5, 1.6];
const LONG: [f64; 8] = [1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0];

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    vec![
        Case { rope: json!({"rope_type": "default"}), max_positions: 256, length: 256,
            frequencies: [1.0, 0.316_227_76, 0.1, 0.031_622_78, 0.01, 0.003_162_277_9, 0.001, 0.000_316_227_8],
            cos: [-0.862_303_6, 0.503_343_76, 0.933_315_1, -0.208_290_5, -0.830_053_5, 0.692_115_2, 0.967_663_3, 0.996_750_53],
            sin: [-0.506_391_64, -0.864_086_3, 0.359_058_35, 0.978_067, 0.557_683_77, 0.721_787_04, 0.252_245_43, 0.080_550_72] },
        Case { rope: json!({"rope_type": "linear", "factor": 4.0}), max_positions: 256, length: 256,
            frequencies: [0.25, 0.079_056_94, 0.025, 0.007_905_695, 0.0025, 0.000_790_569_5, 0.00025, 7.905_695e-5],
            cos: [0.607_293_4, 0.257_885_5, 0.995_788, -0.430_598_5, 0.803_586_24, 0.979_748_4, 0.997_968_7, 0.999_796_8],
            sin: [0.794_477_64, 0.966_175_5, 0.091_685_75, 0.902_543_6, 0.595_188_3, 0.200_232_49, 0.063_706_84, 0.020_158_157] },
        Case { rope: json!({"rope_type": "dynamic", "factor": 2.0}), max_positions: 128, length: 128,
            frequencies: [1.0, 0.316_227_76, 0.1, 0.031_622_78, 0.01, 0.003_162_277_9, 0.001, 0.000_316_227_8],
            cos: [0.232_359_1, -0.777_712_46, 0.991_084_9, -0.641_380_4, 0.296_280_9, 0.920_433_1, 0.991_946_34, 0.999_193_67],
            sin: [0.972_630_1, 0.628_620_15, 0.133_231_85, -0.767_223, 0.955_100_83, 0.390_900_1, 0.126_658_89, 0.040_150_13] },
        Case { rope: json!({"rope_type": "dynamic", "factor": 2.0}), max_positions: 128, length: 200,
            frequencies: [1.0, 0.283_945_14, 0.080_624_84, 0.022_893_03, 0.006_500_365, 0.001_845_747, 0.000_524_090_9, 0.000_148_813_07],
            cos: [-0.471_625_7, 0.999_050_44, -0.943_955_5, -0.156_035_6, 0.273_686_38, 0.933_299, 0.994_566_3, 0.999_561_55],
            sin: [-0.881_798_86, -0.043_568_976, -0.330_072_8, -0.987_751_4, 0.961_819, 0.359_100_22, 0.104_105_12, 0.029_609_472] },
        Case { rope: json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64}), max_positions: 256, length: 256,
            frequencies: [1.0, 0.244_384_59, 0.013_042_256, 0.003_952_847_3, 0.00125, 0.000_395_284_73, 0.000_125, 3.952_847_3e-5],
            cos: [-0.862_303_6, 0.870_891_2, -0.983_086_2, 0.533_573_57, 0.949_627_9, 0.994_924_2, 0.999_492_05, 0.999_949_2],
            sin: [-0.506_391_64, -0.491_475_88, -0.183_143_15, 0.845_753_67, 0.313_379_76, 0.100_627_005, 0.031_869_605, 0.010_079_591] },
        Case { rope: json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0,
                "original_max_position_embeddings": 64}), max_positions: 256, length: 256,
            frequencies: [1.0, 0.197_642_36, 0.025, 0.007_905_695, 0.0025, 0.000_790_569_5, 0.00025, 7.905_695e-5],
            cos: [-0.981_844_3, 1.128_525_6, 1.133_833_5, -0.490_292_13, 0.914_986_97, 1.115_570_4, 1.136_316_5, 1.138_398],
            sin: [-0.576_592_45, 0.151_349_9, 0.104_396_09, 1.027_662_8, 0.677_698_97, 0.227_990_61, 0.072_538_48, 0.022_952_67] },
        Case { rope: json!({"rope_type": "yarn", "factor": 40.0, "mscale": 1.2, "mscale_all_dim": 0.8, "truncate": false,
                "original_max_position_embeddings": 4096}), max_positions: 163_840, length: 256,
            frequencies: [1.0, 0.316_227_76, 0.1, 0.027_710_859, 0.005_524_062_6, 0.000_722_638_16, 2.5e-5, 7.905_694_5e-6],
            cos: [-0.960_548, 0.560_690_94, 1.039_65, 0.789_490_2, 0.179_845_06, 1.095_073_3, 1.113_909_8, 1.113_930_2],
            sin: [-0.564_086_1, -0.962_533_8, 0.399_966_78, 0.785_843_97, 1.099_318_6, 0.204_107_67, 0.007_101_271_3, 0.002_245_633] },
        Case { rope: json!({"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 64}),
            max_positions: 512, length: 256,
            frequencies: [1.0, 0.223_994_66, 0.041_666_664, 0.003_952_847_3, 0.00125, 0.000_395_284_73, 0.000_125, 3.952_847_3e-5],
            cos: [-1.041_614_7, 1.016_989_3, -0.437_459_02, 0.644_527_1, 1.147_097_5, 1.201_812_9, 1.207_330_6, 1.207_882_8],
            sin: [-0.611_692_85, 0.651_814_16, -1.125_948, 1.021_623_3, 0.378_545_25, 0.121_551_804, 0.038_496_703, 0.012_175_582] },
        Case { rope: json!({"rope_type": "longrope", "factor": 4.0, "short_factor": SHORT, "long_factor": LONG,
                "original_max_position_embeddings": 64}), max_positions: 256, length: 64,
            frequencies: [1.0, 0.316_227_76, 0.090_909_09, 0.028_747_98, 0.008_333_333, 0.002_432_521_4, 0.000_666_666_66, 0.000_197_642_37],
            cos: [1.138_415_3, 0.551_567_44, 0.980_824_95, -0.274_841_34, 0.999_19, 1.141_167_9, 1.153_682_2, 1.154_611],
            sin: [0.193_245_71, 1.014_448_9, -0.609_356_8, 1.121_514_8, 0.578_750_9, 0.176_264_69, 0.048_483_167, 0.014_377_346] },
        Case { rope: json!({"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                "original_max_position_embeddings": 64}), max_positions: 1024, length: 65,
            frequencies: [1.0, 0.263_523_13, 0.066_666_67, 0.015_811_39, 0.004, 0.001_054_092_7, 0.000_285_714_28, 7.905_695e-5],
            cos: [0.505_885_5, -0.518_482_15, -0.556_560_04, 0.684_519_2, 1.248_921_6, 1.288_057_8, 1.290_778_5, 1.290_977_8],
            sin: [1.187_748_6, -1.182_304, -1.164_863_7, 1.094_577_6, 0.326_896_52, 0.087_026_924, 0.023_605_44, 0.006_531_945] },
    ]
}

/// The case's configuration as transformers 5, as today's hubs and as the oldest files write it.
fn forms(rope: &Value) -> [Value; 3] {
    let mut modern = rope.clone();
    modern["rope_theta"] = json!(10_000.0);
    let mut oldest = rope.clone();
    if let Some(object) = oldest.as_object_mut() {
        let kind = object.remove("rope_type").expect("every case has a type");
        object.insert("type".to_owned(), kind);
    }
    [
        json!({"rope_parameters": modern}),
        json!({"rope_theta": 10_000.0, "rope_scaling": rope}),
        json!({"rope_scaling": oldest}),
    ]
}

fn read(config: &Value, max_positions: u32) -> Result<RopeSpec, crate::weights::LoadError> {
    let file = Path::new("config.json");
    read::from_config(Fields::root(file, config)?, 16, max_positions)
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * expected.abs().max(1e-3), "{what}: {found} is not {expected}");
    }
}

#[test]
fn every_scaling_is_as_in_transformers() {
    for case in cases() {
        for config in forms(&case.rope) {
            let spec = read(&config, case.max_positions).expect("the configuration is right");
            assert_eq!((spec.theta, spec.rotary_dim, spec.layout), (10_000.0, 16, RopeLayout::Halves));
            let what = format!("{config} over {}", case.length);
            assert_close(&inverse_frequencies(&spec, case.length), &case.frequencies, 3e-7, &what);
            let angles = table(&spec, case.length);
            assert_eq!((angles.cos.len(), angles.sin.len()), (case.length * 8, case.length * 8));
            let last = (case.length - 1) * 8..;
            // A frequency that differs in its last bit moves an angle of 255 radians by 3e-5.
            assert_close(&angles.cos[last.clone()], &case.cos, 4e-5, &what);
            assert_close(&angles.sin[last], &case.sin, 4e-5, &what);
        }
    }
}

#[test]
fn position_zero_does_not_turn() {
    let spec = read(&json!({}), 64).expect("an absent scaling is none");
    let angles = table(&spec, 1);
    assert_eq!((angles.cos, angles.sin), (vec![1.0; 8], vec![0.0; 8]));
}

#[test]
fn gguf_divisors_divide() {
    let scaling = RopeScaling::PerFrequency { factors: vec![1.0, 1.0, 2.0, 8.0, 8.0, 8.0, 8.0, 8.0] };
    let spec = RopeSpec { theta: 10_000.0, rotary_dim: 16, layout: RopeLayout::Interleaved, scaling };
    let expected = [1.0, 0.316_227_76, 0.05, 0.003_952_847_3, 0.00125, 0.000_395_284_73, 0.000_125, 3.952_847_3e-5];
    assert_close(&inverse_frequencies(&spec, 4), &expected, 3e-7, "divided");
}

#[test]
fn contexts_stretch_where_the_formula_says_so() {
    let cases = [
        (json!({}), 256, 256),
        (json!({"rope_scaling": {"type": "linear", "factor": 4.0}}), 256, 256),
        (json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), 128, 256),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}),
            32768,
            131_072,
        ),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}), 256, 256),
        (
            json!({"rope_scaling": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
            "original_max_position_embeddings": 64}}),
            256,
            256,
        ),
    ];
    for (config, stated, expected) in cases {
        let spec = read(&config, stated).expect("the configuration is right");
        assert_eq!(read::max_context(&spec.scaling, stated), expected, "{config}");
    }
}

#[test]
fn wrong_scalings_are_refused_by_key() {
    let cases = [
        (json!({"rope_scaling": {"type": "mrope"}}), "rope_scaling.type: expected default, linear"),
        (json!({"rope_parameters": {"rope_type": "warp"}}), "rope_parameters.rope_type: expected default"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor is missing"),
        (json!({"rope_scaling": {"type": "linear", "factor": 0.0}}), "rope_scaling.factor: expected a number from"),
        (json!({"rope_scaling": {"type": "linear", "factor": "4"}}), "rope_scaling.factor: expected a number"),
        (json!({"rope_scaling": [1]}), "rope_scaling: expected an object"),
        (json!({"rope_theta": 1e300}), "rope_theta: expected a number from"),
        (json!({"rope_theta": -1.0}), "rope_theta: expected a number from"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor: expected a number from 1 to 1"),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}}),
            "high_freq_factor: expected more than low_freq_factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": LONG}}),
            "short_factor: expected 8 numbers above 0, found a list of 1",
        ),
        (json!({"rope_scaling": {"rope_type": "longrope", "short_factor": SHORT}}), "long_factor is missing"),
        (
            json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}}),
            "original_max_position_embeddings: expected a whole number from 1",
        ),
    ];
    for (config, expected) in cases {
        let error = read(&config, 256).expect_err("the configuration is wrong").to_string();
        assert!(error.starts_with("config.json") && error.contains(expected), "{error} should say: {expected}");
    }
}
