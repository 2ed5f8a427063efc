//! Templates that are not in the repository, against hashes of what `jinja2` made of the same conversations.
//!
//! `LANTERN_TEST_TOKENIZERS` names the folder of `tests/scripts/fetch_tokenizers.sh`; `.ci/run` fetches it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

const HASHES: &str = include_str!("../../../../tests/fixtures/templates/hashes.json");

#[derive(Deserialize)]
struct Expected {
    bos_token: String,
    eos_token: String,
    /// Of each variant in the order of `expected.json`; `None`: the template refuses.
    conversations: BTreeMap<String, Vec<Option<String>>>,
}

/// FNV-1a.
fn hash(text: &str) -> String {
    let start = 0xCBF2_9CE4_8422_2325_u64;
    let hash = text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    format!("{hash:016x}")
}

#[test]
#[ignore = "needs templates that a script fetches; .ci/run does and runs this"]
fn fetched_templates_render_as_in_transformers() {
    let folder = std::env::var_os("LANTERN_TEST_TOKENIZERS").expect("LANTERN_TEST_TOKENIZERS names the folder");
    let folder = std::path::PathBuf::from(folder).join("templates");
    let expected: BTreeMap<String, Expected> = serde_json::from_str(HASHES).unwrap();
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (name, Expected { bos_token, eos_token, mut conversations }) in expected {
        let source = std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap();
        let template = ChatTemplate::new(&source, Some(&bos_token), Some(&eos_token)).unwrap();
        // Where a template has no word for tools, they are listed for it: `tools_are_listed_...`.
        let is_own = !matches!(template.tools, ToolsPlace::SystemMessage(_));
        // Any template's cases hold the same conversations.
        for case in cases.iter().filter(|case| case["template"] == "smollm2.jinja") {
            let conversation = case["conversation"].as_str().unwrap();
            let mut extra = case["extra"].as_object().unwrap().clone();
            extra.insert("date_string".into(), "26 Jul 2024".into());
            let rendered = template.render(
                case["messages"].as_array().unwrap(),
                case.get("tools").filter(|tools| is_own && !tools.is_null()),
                case["add_generation_prompt"].as_bool().unwrap(),
                &extra,
            );
            let wanted = conversations.get_mut(conversation).unwrap().remove(0);
            if rendered.as_ref().ok().map(|text| hash(text)) != wanted {
                wrong.push(format!("{name}, {conversation}: {wanted:?} is not of {rendered:?}"));
            }
            seen += 1;
        }
        assert!(conversations.values().all(Vec::is_empty), "{name}");
    }
    assert!(seen >= 80, "{seen} conversations");
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
