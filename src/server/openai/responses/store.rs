//! Responses that later ones may refer to: in memory, bounded, each for its tenant alone.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use crate::llm::Message;
use crate::request::Tenant;

struct Stored {
    tenant: Tenant,
    id: String,
    response: Value,
    /// The items that were asked with.
    input: Vec<Value>,
    /// What was said until and with this response, instructions apart.
    conversation: Vec<Message>,
    bytes: usize,
}

/// The latest responses; the oldest leave.
pub(in crate::server) struct ResponseStore {
    stored: Mutex<VecDeque<Stored>>,
    max_responses: usize,
    max_bytes: usize,
}

impl ResponseStore {
    pub(in crate::server) fn new(max_responses: usize, max_bytes: usize) -> Self {
        Self { stored: Mutex::default(), max_responses, max_bytes }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Stored>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(
        &self,
        tenant: Tenant,
        id: &str,
        response: Value,
        input: Vec<Value>,
        conversation: Vec<Message>,
    ) {
        let of_message = |message: &Message| {
            let text = message.role.len() + message.content.as_ref().map_or(0, String::len);
            size_of::<Message>() + text + map_bytes(&message.extra)
        };
        let of_input = input.iter().map(value_bytes).sum::<usize>();
        let bytes = size_of::<Stored>()
            + value_bytes(&response)
            + of_input
            + conversation.iter().map(of_message).sum::<usize>();
        let mut stored = self.lock();
        stored.push_back(Stored { tenant, id: id.to_owned(), response, input, conversation, bytes });
        let mut total: usize = stored.iter().map(|stored| stored.bytes).sum();
        while stored.len() > self.max_responses || total > self.max_bytes {
            let Some(oldest) = stored.pop_front() else { break };
            total -= oldest.bytes;
        }
    }

    fn with<T>(&self, tenant: &Tenant, id: &str, take: impl FnOnce(&Stored) -> T) -> Option<T> {
        self.lock().iter().find(|stored| stored.id == id && stored.tenant == *tenant).map(take)
    }

    pub(super) fn conversation(&self, tenant: &Tenant, id: &str) -> Option<Vec<Message>> {
        self.with(tenant, id, |stored| stored.conversation.clone())
    }

    pub(super) fn response(&self, tenant: &Tenant, id: &str) -> Option<Value> {
        self.with(tenant, id, |stored| stored.response.clone())
    }

    /// The items that a response was asked with, oldest first.
    pub(super) fn input(&self, tenant: &Tenant, id: &str) -> Option<Vec<Value>> {
        self.with(tenant, id, |stored| stored.input.clone())
    }

    /// The item of that id, of what was asked or answered.
    pub(super) fn item(&self, tenant: &Tenant, id: &str) -> Option<Value> {
        let stored = self.lock();
        let of = |stored: &Stored| {
            let output = stored.response["output"].as_array().into_iter().flatten();
            output.chain(&stored.input).find(|item| item["id"] == id).cloned()
        };
        stored.iter().rev().filter(|stored| stored.tenant == *tenant).find_map(of)
    }

    /// Whether there was one.
    pub(super) fn remove(&self, tenant: &Tenant, id: &str) -> bool {
        let mut stored = self.lock();
        let before = stored.len();
        stored.retain(|stored| stored.id != id || stored.tenant != *tenant);
        stored.len() < before
    }
}

/// Bytes of an entry of a map beside its key's text and its value: hash, key, and its place in the index.
const ENTRY_BYTES: usize = size_of::<String>() + 2 * size_of::<usize>();

/// Bytes of memory that a value takes, about: many small ones take several times those of their text.
fn value_bytes(value: &Value) -> usize {
    let content = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(value_bytes).sum(),
        Value::Object(map) => map_bytes(map),
    };
    size_of::<Value>() + content
}

fn map_bytes(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| ENTRY_BYTES + key.len() + value_bytes(value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_oldest_leave_and_each_tenant_sees_its_own() {
        let (ann, ben) = (Tenant::new("ann"), Tenant::new("ben"));
        let store = ResponseStore::new(2, 10_000);
        store.insert(ann.clone(), "r1", json!({"n": 1}), Vec::new(), vec![Message::user("a")]);
        store.insert(ben.clone(), "r2", json!({"n": 2}), Vec::new(), Vec::new());
        assert_eq!(store.conversation(&ann, "r1"), Some(vec![Message::user("a")]));
        assert_eq!((store.response(&ann, "r2"), store.remove(&ann, "r2")), (None, false));
        store.insert(ann.clone(), "r3", json!({"n": 3}), Vec::new(), Vec::new());
        assert_eq!((store.response(&ann, "r1"), store.response(&ben, "r2")), (None, Some(json!({"n": 2}))));
        store.insert(ann.clone(), "r4", json!("x".repeat(9_700)), Vec::new(), Vec::new());
        assert_eq!((store.response(&ann, "r3"), store.response(&ann, "r4").is_some()), (None, true));
        store.insert(ann.clone(), "r5", json!("x".repeat(20_000)), Vec::new(), Vec::new());
        assert!(store.response(&ann, "r5").is_none(), "more than all the room");
        store.insert(ann.clone(), "r6", json!(6), Vec::new(), Vec::new());
        assert!(store.remove(&ann, "r6") && !store.remove(&ann, "r6"));
        let items = vec![json!({"id": "msg_1", "text": "x".repeat(9_000)})];
        store.insert(ann.clone(), "r7", json!({"output": [{"id": "msg_2"}]}), items.clone(), Vec::new());
        assert_eq!(store.input(&ann, "r7"), Some(items.clone()));
        assert_eq!((store.item(&ann, "msg_1"), store.item(&ben, "msg_1")), (Some(items[0].clone()), None));
        assert_eq!(store.item(&ann, "msg_2"), Some(json!({"id": "msg_2"})));
        store.insert(ann.clone(), "r8", json!("x".repeat(1_000)), Vec::new(), Vec::new());
        assert_eq!(store.input(&ann, "r7"), None, "what was asked takes room too");
    }

    #[test]
    fn small_values_count_as_much_as_they_take() {
        let ann = Tenant::new("ann");
        let store = ResponseStore::new(2, 10_000);
        for many in [json!(vec![json!([]); 200]), json!(vec![0; 200]), json!(vec![json!({"a": 1}); 100])] {
            assert!(many.to_string().len() < 1_000);
            store.insert(ann.clone(), "r1", many.clone(), Vec::new(), Vec::new());
            assert_eq!(store.response(&ann, "r1"), None, "{many}");
        }
    }
}
