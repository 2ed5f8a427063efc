//! Real templates against what `jinja2`, set up as in transformers, made of the same messages
//! (`tests/scripts/render_templates.py`), and the limits.

mod real;

use super::*;

const CASES: &str = include_str!("../../../tests/fixtures/templates/expected.json");

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, Some("<s>"), Some("</s>")).unwrap()
}

fn render(source: &str, messages: Value) -> Result<String, TemplateError> {
    template(source).render(messages.as_array().unwrap(), None, true, &Map::new())
}

fn source_of(name: &str) -> &'static str {
    match name {
        "smollm2.jinja" => include_str!("../../../tests/fixtures/templates/smollm2.jinja"),
        "qwen3.jinja" => include_str!("../../../tests/fixtures/templates/qwen3.jinja"),
        "deepseek_v3.jinja" => include_str!("../../../tests/fixtures/templates/deepseek_v3.jinja"),
        "deepseek_r1_distill.jinja" => {
            include_str!("../../../tests/fixtures/templates/deepseek_r1_distill.jinja")
        }
        "deepseek_v3_1.jinja" => include_str!("../../../tests/fixtures/templates/deepseek_v3_1.jinja"),
        "environment.jinja" => include_str!("../../../tests/fixtures/templates/environment.jinja"),
        other => panic!("no template {other}"),
    }
}

#[test]
fn real_templates_render_as_in_transformers() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    assert!(cases.len() > 20);
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let text = |key: &str| case[key].as_str();
        let template = ChatTemplate::new(source_of(name), text("bos_token"), text("eos_token")).unwrap();
        let rendered = template.render(
            case["messages"].as_array().unwrap(),
            case.get("tools").filter(|tools| !tools.is_null()),
            case["add_generation_prompt"].as_bool().unwrap(),
            case["extra"].as_object().unwrap(),
        );
        let conversation = &case["conversation"];
        assert_eq!(rendered.unwrap(), case["expected"], "{name}, {conversation}");
    }
}

#[test]
fn a_template_is_given_what_it_expects_of_a_tool_turn() {
    let expected = |name| template(source_of(name)).expected;
    let cases = [
        ("smollm2.jinja", true, false),
        ("qwen3.jinja", true, true),
        ("deepseek_v3.jinja", false, false),
        ("deepseek_r1_distill.jinja", false, false),
        ("deepseek_v3_1.jinja", false, true),
    ];
    for (name, text_content, object_arguments) in cases {
        assert_eq!(expected(name), Expectations { text_content, object_arguments }, "{name}");
    }
}

#[test]
fn an_endless_template_ends_in_an_error() {
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% set x = a %}{% endfor %}{% endfor %}";
    assert!(matches!(render(loops, json!([])), Err(TemplateError::TooManySteps)));
    let recursion = "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}";
    assert!(matches!(render(recursion, json!([])), Err(TemplateError::Failed(_) | TemplateError::TooManySteps)));
    let growth =
        "{% set ns = namespace(x='aaaaaaaa') %}{% for a in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}";
    assert!(matches!(render(growth, json!([])), Err(TemplateError::TooManySteps)));
    let long = "{% for a in range(40) %}{{ messages[0].content }}{% endfor %}";
    let message = json!([{"role": "user", "content": "x".repeat(1 << 20)}]);
    assert!(matches!(render(long, message), Err(TemplateError::TooLong)));
}

#[test]
fn refusals_and_faults_are_told_apart() {
    let refusal = render("{{ raise_exception('roles must alternate') }}", json!([])).unwrap_err();
    assert!(matches!(refusal, TemplateError::Refused(message) if message == "roles must alternate"));
    let syntax = ChatTemplate::new("{% for %}", None, None).unwrap_err();
    assert!(matches!(syntax, TemplateError::Syntax(_)));
    assert!(matches!(render("{{ nothing.at.all }}", json!([])), Err(TemplateError::Failed(_))));
    let image = json!([{"role": "user", "content": [{"type": "image_url"}]}]);
    assert!(matches!(render("x", image), Err(TemplateError::Unsupported(_))));
}

#[test]
fn the_tools_template_is_picked_for_tools() {
    let list = json!([{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]);
    assert_eq!(ChatTemplate::pick(&list, false), Some("d"));
    assert_eq!(ChatTemplate::pick(&list, true), Some("t"));
    assert_eq!(ChatTemplate::pick(&json!("one"), true), Some("one"));
    assert_eq!(ChatTemplate::pick(&Value::Null, true), None);
}

#[test]
fn extra_variables_cannot_replace_the_conversation() {
    let extra = json!({"messages": [], "bos_token": "x", "mode": "y"});
    let rendered = template("{{ messages | length }}{{ bos_token }}{{ mode }}").render(
        &[json!({"role": "user", "content": "q"})],
        None,
        true,
        extra.as_object().unwrap(),
    );
    assert_eq!(rendered.unwrap(), "1<s>y");
}

#[test]
fn chatml_stands_in_for_no_template() {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    assert_eq!(render(CHATML_TEMPLATE, messages).unwrap(), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn generation_tags_render_what_they_hold() {
    let source = "{%- if true -%}{% generation %}a{%- endgeneration -%} b{% endif %}";
    assert_eq!(render(source, json!([])).unwrap(), "ab");
}
