//! From a request's body to typed JSON, within limits.
//!
//! Knows no API: any type that serde reads.

use std::fmt;
use std::marker::PhantomData;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use futures::StreamExt as _;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};

use super::error::ApiError;
use crate::server::ServerConfig;

/// Values that an array or object counts for: what one takes of memory beside its content, in those of a number.
const VALUES_OF_A_CONTAINER: usize = 8;

/// Reads the whole body of `request` and checks that it is no deeper than the limit, and of no more values.
///
/// # Errors
/// 413, 408, or 400 where it is nested too deep, has too many values or ends early.
pub(super) async fn read(config: &ServerConfig, request: Request) -> Result<Vec<u8>, ApiError> {
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > config.body_bytes as u64) {
        return Err(too_large(config.body_bytes));
    }
    let bytes = tokio::time::timeout(config.body_timeout, collect(request.into_body(), config.body_bytes))
        .await
        .map_err(|_| {
            let message = format!("the body did not arrive within {} s (body_timeout)", config.body_timeout.as_secs());
            ApiError::client(StatusCode::REQUEST_TIMEOUT, Some("body_timeout"), message)
        })??;
    check_shape(&bytes, config.json_depth, config.json_values)?;
    Ok(bytes)
}

async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| {
            ApiError::client(StatusCode::BAD_REQUEST, Some("body_incomplete"), "the body ended before it was complete")
        })?;
        if bytes.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn too_large(limit: usize) -> ApiError {
    let message = format!("the body is larger than the limit of {limit} bytes (body_bytes)");
    ApiError::client(StatusCode::PAYLOAD_TOO_LARGE, Some("body_too_large"), message)
}

/// A `T` that is written as an object. What serde derives for a struct would take a list of its fields' values too.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ReadObject(PhantomData))
    }
}

struct ReadObject<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ReadObject<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// One type's view of the body, which is an object. Fields that the type does not have are passed over, so a body may be read as several.
///
/// # Errors
/// 400, with the path of the value that is wrong as `param`.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        // Some wrong values are told as if they were no JSON.
        let is_json = || inner.is_data() || serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok();
        if path != "." && is_json() { ApiError::invalid(path, inner) } else { not_json(&inner) }
    })?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> ApiError {
    let (code, what) =
        if error.is_data() { (None, "the body") } else { (Some("invalid_json"), "the body is not JSON") };
    ApiError::client(StatusCode::BAD_REQUEST, code, format!("{what}: {error}"))
}

/// Counts brackets and commas outside strings, before any parser recurses into them or makes room for values, of which each
/// takes many times as much as the two bytes that it may be written in.
fn check_shape(json: &[u8], max_depth: usize, max_values: usize) -> Result<(), ApiError> {
    let (mut depth, mut values, mut in_string, mut escaped) = (0_usize, 1_usize, false, false);
    for byte in json {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'[' | b'{' => (depth, values) = (depth + 1, values + VALUES_OF_A_CONTAINER),
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if depth > max_depth {
            let message = format!("the body is nested deeper than the limit of {max_depth} levels (json_depth)");
            return Err(ApiError::client(StatusCode::BAD_REQUEST, Some("json_too_deep"), message));
        }
        if values > max_values {
            let message = format!(
                "the body has more than the limit of {max_values} JSON values, of which an array or object counts for \
                 {VALUES_OF_A_CONTAINER} (json_values)"
            );
            return Err(ApiError::client(StatusCode::BAD_REQUEST, Some("json_too_many_values"), message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let cases = [
            (r#"{"a":[1,{"b":2}]}"#, 3, true),
            (r#"{"a":[1,{"b":2}]}"#, 2, false),
            (r#"["[[[[", "\"[[[[", "\\"]"#, 1, true),
            (r#"[[],[],[],[]]"#, 2, true),
            ("]]]]]", 1, true),
        ];
        for (json, limit, fits) in cases {
            assert_eq!(check_shape(json.as_bytes(), limit, 100).is_ok(), fits, "{json} at {limit}");
        }
    }

    #[test]
    fn values_are_counted_outside_strings_and_arrays_and_objects_more_than_once() {
        for (json, values) in [("[1,2,3]", 11), (r#"{"a,,":",,,","b":[]}"#, 18), ("[[],[]]", 26)] {
            assert!(check_shape(json.as_bytes(), 9, values).is_ok(), "{json}");
            let error = check_shape(json.as_bytes(), 9, values - 1).expect_err(json);
            assert_eq!((error.status.as_u16(), error.code), (400, Some("json_too_many_values")), "{json}");
        }
    }

    #[test]
    fn errors_name_the_value() {
        #[derive(serde::Deserialize, Debug)]
        struct Outer {
            #[expect(dead_code, reason = "only its type matters")]
            inner: Vec<u32>,
            #[expect(dead_code, reason = "only its type matters")]
            level: Option<Level>,
        }
        #[derive(serde::Deserialize, Debug)]
        enum Level {}
        let error = parse::<Outer>(br#"{"inner": [1, "x"]}"#).expect_err("a string is no number");
        assert_eq!(error.param.as_deref(), Some("inner[1]"));
        for (json, name) in [(r#"{"inner": [], "level": 5}"#, "level"), (r#"{"inner": [1e400]}"#, "inner[0]")] {
            let error = parse::<Outer>(json.as_bytes()).expect_err(json);
            assert_eq!((error.code, error.param.as_deref()), (None, Some(name)), "{json}: {}", error.message);
        }
        let error = parse::<Outer>(b"{}").expect_err("inner is required");
        assert!(error.message.contains("missing field `inner`"), "{}", error.message);
        let error = parse::<Outer>(b"[[1]]").expect_err("a list is no object");
        assert!(error.message.contains("expected an object"), "{}", error.message);
        for broken in ["{", "", "{\"inner\": []} x", "{\"inner\": [1,]}", "\u{0}"] {
            let error = parse::<Outer>(broken.as_bytes()).expect_err(broken);
            assert_eq!((error.status, error.code), (StatusCode::BAD_REQUEST, Some("invalid_json")), "{broken}");
        }
    }
}
