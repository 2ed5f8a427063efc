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
        // Where a template has no word for tools, they are listed for it: `tools_are_listed_...`.
        let is_own = !matches!(template.tools, ToolsPlace::SystemMessage(_));
        let rendered = template.render(
            case["messages"].as_array().unwrap(),
            case.get("tools").filter(|tools| is_own && !tools.is_null()),
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
        ("smollm2.jinja", true, false, false),
        ("qwen3.jinja", true, false, true),
        ("deepseek_v3.jinja", false, true, false),
        ("deepseek_r1_distill.jinja", false, true, false),
        ("deepseek_v3_1.jinja", false, false, true),
        ("environment.jinja", true, false, true),
    ];
    for (name, text_content, null_content, object_arguments) in cases {
        assert_eq!(expected(name), Expectations { text_content, null_content, object_arguments }, "{name}");
    }
    assert_eq!(template(DEEPSEEK_V31).expected, Expectations::default());
}

/// Writes calls as DeepSeek-V3.1's own template does, and as little as it of tools.
const DEEPSEEK_V31: &str = "{{ bos_token }}\
    {% for m in messages if m['role'] == 'system' %}{{ m['content'] }}{% endfor %}\
    {% for m in messages %}\
    {% if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% endif %}\
    {% if m['role'] == 'assistant' %}{{ '<｜Assistant｜></think>' }}{{ m['content'] if m['content'] is not none else '' }}\
    {% for tool in m['tool_calls'] or [] %}{{ ('<｜tool▁calls▁begin｜>' if loop.first else '') + '<｜tool▁call▁begin｜>' + \
    tool['function']['name'] + '<｜tool▁sep｜>' + tool['function']['arguments'] + '<｜tool▁call▁end｜>' }}{% endfor %}\
    {{ ('<｜tool▁calls▁end｜>' if m['tool_calls'] else '') + '<｜end▁of▁sentence｜>' }}{% endif %}\
    {% if m['role'] == 'tool' %}{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}{% endif %}\
    {% endfor %}\
    {% if add_generation_prompt %}{{ '<｜Assistant｜></think>' }}{% endif %}";

fn weather() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let function = json!({"name": "weather", "description": "It is <so>", "parameters": parameters});
    json!([{"type": "function", "function": function}])
}

#[test]
fn calls_stay_in_the_history_whatever_stands_beside_them() {
    let turns = |content: Value, calls: &[&str]| {
        let call = |city: &&str| {
            let arguments = json!({"city": city});
            json!({"id": "c", "type": "function", "function": {"name": "weather", "arguments": arguments}})
        };
        let calls: Vec<_> = calls.iter().map(call).collect();
        json!([
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": content, "tool_calls": calls},
            {"role": "tool", "content": "12", "tool_call_id": "c"},
        ])
    };
    let templates = ["deepseek_v3.jinja", "deepseek_r1_distill.jinja", "qwen3.jinja"]
        .map(source_of)
        .into_iter()
        .chain([DEEPSEEK_V31]);
    for source in templates {
        let shown = |content: Value| render(source, turns(content, &["Rome", "Oslo"])).unwrap();
        let null = shown(Value::Null);
        for text in ["weather", "Rome", "Oslo", "12"] {
            assert!(null.contains(text), "{text}: {null}");
        }
        // Ollama's and Anthropic's clients send no text so.
        assert_eq!(shown(json!("")), null);
        let said = shown(json!("I look."));
        for text in ["I look.", "weather", "Rome", "Oslo", "12"] {
            assert!(said.contains(text), "{text}: {said}");
        }
        assert!(said.find("I look.") < said.find("Rome"), "{said}");
    }
}

#[test]
fn tools_are_listed_for_templates_that_have_marks_of_calls_and_no_word_for_tools() {
    let v3_call = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>FUNCTION_NAME\n```json\n";
    let v31_call =
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>";
    let parameters = r#"{"type": "object", "properties": {"city": {"type": "string"}}}"#;
    for (source, call) in [
        (source_of("deepseek_v3.jinja"), v3_call),
        (source_of("deepseek_r1_distill.jinja"), v3_call),
        (DEEPSEEK_V31, v31_call),
    ] {
        let template = template(source);
        assert!(template.knows_tools());
        let shown = |messages: Value, tools: Option<Value>| {
            template.render(messages.as_array().unwrap(), tools.as_ref(), true, &Map::new()).unwrap()
        };
        let user = json!({"role": "user", "content": "Hi"});
        let system = |content: &str| json!({"role": "system", "content": content});
        let alone = shown(json!([user]), Some(weather()));
        let text = listed_tools::text(weather().as_array().unwrap(), template.call_format()).unwrap();
        assert!(text.starts_with("## Tools\n") && text.contains("weather") && text.contains("It is <so>"), "{text}");
        assert!(text.contains(parameters) && text.contains(call), "{text}");
        assert_eq!(alone, shown(json!([system(&text), user]), None));
        assert!(alone.starts_with(&format!("<s>{text}")), "{alone}");
        let beside = shown(json!([system("Be brief."), user]), Some(weather()));
        assert_eq!(beside, shown(json!([system(&format!("Be brief.\n\n{text}")), user]), None));
        // Of several system messages some templates show the last alone.
        let last = shown(json!([system("a"), system("b"), user]), Some(weather()));
        assert!(last.contains(&format!("b\n\n{text}")), "{last}");
        assert!(!shown(json!([user]), None).contains("## Tools"));
        // The form that a model was taught is the one it is shown, whichever is read.
        let overridden = ChatTemplate::new(source, None, None).unwrap().with_tool_parser(ToolParser::Hermes);
        assert_eq!(overridden.call_format(), CallFormat::Hermes);
        let shown = overridden.render(&[user], Some(&weather()), true, &Map::new()).unwrap();
        assert!(shown.contains(&text), "{shown}");
    }
    for (name, knows) in [("smollm2.jinja", false), ("qwen3.jinja", true)] {
        assert_eq!(template(source_of(name)).knows_tools(), knows, "{name}");
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
