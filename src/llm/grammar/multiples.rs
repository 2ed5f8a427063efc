//! How large the multiples of schemas may be (`multipleOf`): the parser has a state for each remainder, and for each pair of
//! remainders where two numbers are asked for at once, which none of its own limits bounds.
//!
//! Knows no parser.

use serde_json::{Deserializer, Number, Value};

use super::Grammar;

/// Most remainders of a number; where several may be asked for at once, of all together.
const MAX_REMAINDERS: u64 = 20_000;
/// Most remainders of all numbers of a grammar.
const MAX_REMAINDERS_IN_ALL: u64 = 100_000;

/// Keywords by which one value may have to be a multiple of several numbers: a property may match several patterns.
const JOINING: [&str; 6] = ["allOf", "anyOf", "oneOf", "patternProperties", "$ref", "$dynamicRef"];

/// Whether the multiples of `grammar` can be counted.
///
/// # Errors
/// Which are too large, in the client's words.
pub(super) fn check(grammar: &Grammar) -> Result<(), String> {
    match grammar {
        Grammar::JsonSchema(schema) => check_schema(schema),
        // Schemas stand within it.
        Grammar::Lark(text) => text.split("%json").skip(1).try_for_each(|rest| {
            let schema = Deserializer::from_str(rest).into_iter().next();
            schema.and_then(Result::ok).map_or(Ok(()), |schema| check_schema(&schema))
        }),
        Grammar::Calls(calls) => check(calls.written()),
        Grammar::JsonObject | Grammar::Regex(_) | Grammar::Choice(_) => Ok(()),
    }
}

fn check_schema(schema: &Value) -> Result<(), String> {
    let mut found = Found::default();
    found.add(schema);
    let too_large = || format!("keyword multipleOf: more than {MAX_REMAINDERS} remainders would have to be counted");
    let (mut all, mut joint) = (0_u64, 1_u64);
    let most_places = found.numbers.iter().map(|(_, places)| *places).max().unwrap_or(0);
    for (digits, places) in &found.numbers {
        let digits = digits.filter(|digits| *digits <= MAX_REMAINDERS).ok_or_else(too_large)?;
        all = all.saturating_add(digits);
        if found.joins {
            let scale = 10_u64.checked_pow(most_places - places);
            let number = scale.and_then(|scale| digits.checked_mul(scale)).ok_or_else(too_large)?;
            joint = least_common_multiple(joint, number.max(1)).ok_or_else(too_large)?;
        }
    }
    // What all have in common has no remainders of its own.
    let common = found.numbers.iter().filter_map(|(digits, places)| {
        digits.and_then(|digits| digits.checked_mul(10_u64.checked_pow(most_places - places)?))
    });
    let common = common.reduce(greatest_common_divisor).unwrap_or(1).max(1);
    if joint / common > MAX_REMAINDERS || all > MAX_REMAINDERS_IN_ALL {
        return Err(too_large());
    }
    Ok(())
}

/// The numbers of all `multipleOf`s.
#[derive(Default)]
struct Found {
    /// Digits without the decimal point, `None` where they are too many, and how many of them stand behind it.
    numbers: Vec<(Option<u64>, u32)>,
    /// Whether one value may have to be a multiple of several.
    joins: bool,
}

impl Found {
    fn add(&mut self, schema: &Value) {
        match schema {
            Value::Object(keywords) => {
                for (keyword, value) in keywords {
                    self.joins |= JOINING.contains(&keyword.as_str());
                    match value {
                        Value::Number(number) if keyword == "multipleOf" => self.numbers.push(digits(number)),
                        value => self.add(value),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.add(item)),
            _ => {}
        }
    }
}

fn digits(number: &Number) -> (Option<u64>, u32) {
    let text = number.to_string();
    let (base, exponent) = text.split_once(['e', 'E']).unwrap_or((&text, "0"));
    let (whole, fraction) = base.split_once('.').unwrap_or((base, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}").trim_start_matches('-').parse::<u64>().ok();
    let Ok(exponent) = exponent.parse::<i64>() else { return (None, 0) };
    let places = fraction.len() as i64 - exponent;
    if places >= 0 {
        return (digits, u32::try_from(places).unwrap_or(u32::MAX));
    }
    let scale = u32::try_from(-places).ok().and_then(|zeros| 10_u64.checked_pow(zeros));
    (digits.zip(scale).and_then(|(digits, scale)| digits.checked_mul(scale)), 0)
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

fn least_common_multiple(a: u64, b: u64) -> Option<u64> {
    (a / greatest_common_divisor(a, b)).checked_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(multiple: Value) -> Value {
        json!({"type": "number", "multipleOf": multiple})
    }

    #[test]
    fn multiples_that_people_ask_for_are_taken() {
        let prices =
            json!({"properties": {"price": of(json!(0.01)), "count": of(json!(1000)), "percent": of(json!(0.5))}});
        let joint = json!({"anyOf": [of(json!(5)), of(json!(10)), of(json!(15)), of(json!(60)), of(json!(100))]});
        let cents =
            json!({"$defs": {"a": of(json!(0.01))}, "properties": {"a": {"$ref": "#/$defs/a"}, "b": of(json!(0.25))}});
        for schema in [of(json!(7)), of(json!(1e-7)), of(json!(2.50)), prices, joint, cents] {
            assert_eq!(check(&Grammar::JsonSchema(schema.clone())), Ok(()), "{schema}");
            assert_eq!(check(&Grammar::Lark(format!("start: a\na: %json {schema}\n"))), Ok(()), "{schema}");
        }
    }

    #[test]
    fn multiples_that_would_take_without_end_are_refused() {
        let many = (0..20).map(|number| (format!("p{number}"), of(json!(10_007)))).collect();
        let schemas = [
            of(json!(9_999_991)),
            of(json!(1e300)),
            of(json!(0.123456789)),
            json!({"allOf": [of(json!(9973)), of(json!(9967))]}),
            json!({"allOf": [of(json!(7777)), of(json!(0.0003))]}),
            json!({"properties": Value::Object(many)}),
            json!({"items": {"properties": {"x": of(json!(123_457))}}}),
            json!({"properties": {"ab": of(json!(9973))}, "patternProperties": {"^a": of(json!(9967))}}),
        ];
        for schema in schemas {
            for grammar in [Grammar::JsonSchema(schema.clone()), Grammar::Lark(format!("start: %json {schema}"))] {
                let error = check(&grammar).expect_err("too large");
                assert!(error.contains("multipleOf"), "{error}");
            }
        }
    }
}
