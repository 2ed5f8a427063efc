//! The input of a request as items with ids: what refers to stored ones is resolved, and they are listed in pages.
//!
//! Knows no messages.

use std::collections::HashMap;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::server::error::ApiError;

/// Items in a page, where nobody says.
const PAGE: usize = 20;
/// Most items in a page.
const MAX_PAGE: usize = 100;
/// Items that one input may refer to.
const MAX_REFERENCES: usize = 1024;

/// The id that `item` refers to, if it is a reference; those may come without a type.
fn referred(item: &Value) -> Option<&str> {
    let is_reference = match &item["type"] {
        Value::Null => item["role"].is_null(),
        kind => kind == "item_reference",
    };
    item["id"].as_str().filter(|_| is_reference)
}

/// Puts the items that `find` has where `input` refers to them. They count as if they had been sent: `most_bytes` of JSON in
/// all.
///
/// # Errors
/// 400: they are too many or too large. 404: there is none of that id.
pub(super) fn resolve(
    input: &mut Value,
    most_bytes: usize,
    find: impl Fn(&str) -> Option<Value>,
) -> Result<(), ApiError> {
    let (mut references, mut bytes) = (0, 0);
    for (index, item) in input.as_array_mut().into_iter().flatten().enumerate() {
        let Some(id) = referred(item) else { continue };
        references += 1;
        if references > MAX_REFERENCES {
            return Err(ApiError::invalid("input", format!("more than {MAX_REFERENCES} references to items")));
        }
        let found = find(id).ok_or_else(|| {
            let message = format!(
                "no item `{id}` is stored here: its response was not to be stored, is another client's, or was too long \
                 ago (max_stored_responses)"
            );
            let error = ApiError::client(StatusCode::NOT_FOUND, Some("item_not_found"), message);
            ApiError { param: Some(format!("input[{index}].id")), ..error }
        })?;
        bytes += found.to_string().len();
        if bytes > most_bytes {
            let message = format!("the items referred to are larger than the limit of {most_bytes} bytes (body_bytes)");
            return Err(ApiError::invalid("input", message));
        }
        *item = found;
    }
    Ok(())
}

/// `input` as items with ids, which `unique_id` makes where there are none; a text is a message of the user's.
pub(super) fn with_ids(input: &Value, unique_id: impl Fn() -> String) -> Vec<Value> {
    let items = match input {
        Value::String(text) => vec![json!({ "role": "user", "content": text })],
        Value::Array(items) => items.clone(),
        _ => Vec::new(),
    };
    items.into_iter().map(|item| with_id(item, &unique_id)).collect()
}

fn with_id(mut item: Value, unique_id: impl Fn() -> String) -> Value {
    let Some(fields) = item.as_object_mut() else { return item };
    let kind = fields.entry("type").or_insert_with(|| "message".into()).as_str().unwrap_or_default();
    let prefix = match kind {
        "message" => "msg",
        "reasoning" => "rs",
        _ => "fc",
    };
    let is_message = kind == "message";
    if !fields.get("id").is_some_and(Value::is_string) {
        fields.insert("id".into(), format!("{prefix}_{}", unique_id()).into());
    }
    if is_message {
        let kind =
            if fields.get("role").is_some_and(|role| role == "assistant") { "output_text" } else { "input_text" };
        if let Some(Value::String(text)) = fields.get("content") {
            let part = json!([{ "type": kind, "text": text }]);
            fields.insert("content".into(), part);
        }
        fields.entry("status").or_insert_with(|| "completed".into());
    }
    item
}

/// The page of `items`, which are oldest first, that the query asks for with `order`, `after` and `limit`.
///
/// # Errors
/// 400, naming what is wrong.
pub(super) fn page(mut items: Vec<Value>, query: &HashMap<String, String>) -> Result<Value, ApiError> {
    let asked = |name: &str| query.get(name).map(String::as_str);
    let limit = asked("limit").map_or(Ok(PAGE), |text| {
        let limit = text.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
        limit.ok_or_else(|| ApiError::invalid("limit", format!("`{text}` is no number from 1 to {MAX_PAGE}")))
    })?;
    match asked("order") {
        Some("asc") => {}
        None | Some("desc") => items.reverse(),
        Some(other) => {
            return Err(ApiError::invalid("order", format!("`{other}` is not known; `asc` and `desc` are")));
        }
    }
    if let Some(id) = asked("after") {
        let at = items.iter().position(|item| item["id"] == id);
        let at = at.ok_or_else(|| ApiError::invalid("after", format!("no item of the list has the id `{id}`")))?;
        items.drain(..=at);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    let (first_id, last_id) = (id(items.first()), id(items.last()));
    Ok(json!({ "object": "list", "data": items, "first_id": first_id, "last_id": last_id, "has_more": has_more }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_become_what_they_refer_to() {
        let stored = json!({"type": "message", "id": "msg_1", "role": "assistant", "content": []});
        let find = |id: &str| (id == "msg_1").then(|| stored.clone());
        let other = json!({"role": "user", "content": "hi", "id": "msg_1"});
        let mut input = json!([{"type": "item_reference", "id": "msg_1"}, other, {"id": "msg_1"}]);
        assert_eq!(resolve(&mut input, 1 << 20, find), Ok(()));
        assert_eq!(input, json!([stored, other, stored]));
        let mut gone = json!([other, {"type": "item_reference", "id": "msg_2"}]);
        let error = resolve(&mut gone, 1 << 20, find).expect_err("it is not there");
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (404, Some("input[1].id")));
        assert_eq!(resolve(&mut json!("msg_2"), 1 << 20, find), Ok(()));
    }

    #[test]
    fn items_that_are_referred_to_count_as_if_they_had_been_sent() {
        let find = |_: &str| Some(json!({"role": "user", "content": "y".repeat(1000)}));
        let references = |count: usize| Value::from(vec![json!({"id": "m1"}); count]);
        assert_eq!(resolve(&mut references(9), 10_000, find), Ok(()));
        let large = resolve(&mut references(11), 10_000, find).expect_err("too large").message;
        assert!(large.contains("10000 bytes"), "{large}");
        let many = resolve(&mut references(1025), usize::MAX, find).expect_err("too many").message;
        assert!(many.contains("1024 references"), "{many}");
    }

    #[test]
    fn all_input_is_listed_as_items_with_ids() {
        let message = |role: &str, kind: &str| {
            json!({"type": "message", "id": "msg_n", "role": role, "status": "completed",
                   "content": [{"type": kind, "text": "hi"}]})
        };
        let id = || "n".to_owned();
        assert_eq!(with_ids(&json!("hi"), id), [message("user", "input_text")]);
        let call = json!({"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"});
        let output = json!({"type": "function_call_output", "call_id": "c", "output": "1"});
        let items = with_ids(&json!([{"role": "assistant", "content": "hi"}, call, output]), id);
        assert_eq!(items[..2], [message("assistant", "output_text"), call]);
        assert_eq!((&items[2]["id"], &items[2]["output"]), (&json!("fc_n"), &json!("1")));
    }

    #[test]
    fn pages_follow_one_another() {
        let items: Vec<_> = (0..25).map(|number| json!({"id": format!("m{number}")})).collect();
        let page = |query: &[(&str, &str)]| {
            let query = query.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            page(items.clone(), &query)
        };
        let first = page(&[]).expect("a page");
        assert_eq!((first["data"].as_array().map(Vec::len), &first["has_more"]), (Some(20), &json!(true)));
        assert_eq!((&first["first_id"], &first["last_id"]), (&json!("m24"), &json!("m5")));
        let second = page(&[("after", "m5")]).expect("a page");
        assert_eq!((second["data"].as_array().map(Vec::len), &second["has_more"]), (Some(5), &json!(false)));
        let oldest = page(&[("order", "asc"), ("limit", "1")]).expect("a page");
        assert_eq!((&oldest["data"], &oldest["has_more"]), (&json!([{"id": "m0"}]), &json!(true)));
        assert_eq!(page(&[("after", "m0")]).expect("a page")["first_id"], Value::Null);
        for query in [("limit", "0"), ("limit", "101"), ("limit", "x"), ("order", "up"), ("after", "m99")] {
            assert_eq!(page(&[query]).expect_err(query.1).param.as_deref(), Some(query.0));
        }
    }
}
