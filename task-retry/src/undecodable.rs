//! What is said of a context that does not decode. It goes into the log and into `last_error`, so it
//! names types and parameters, and never quotes a value.

use serde_json::error::Category;

/// Kinds of values, as serde calls them.
const KINDS: [&str; 10] = [
    "boolean",
    "integer",
    "floating point",
    "character",
    "string",
    "byte array",
    "null",
    "Option value",
    "sequence",
    "map",
];

/// Describes an error of decoding this text.
pub(crate) fn explain(error: &serde_json::Error, text: &str) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = error.to_string();
    let message = message.strip_suffix(&place).unwrap_or(&message);
    let what = match error.classify() {
        // serde_json's own words, which quote nothing.
        Category::Syntax | Category::Eof | Category::Io => message.to_owned(),
        Category::Data => without_values(message),
    };
    let mut until = offset(error, text);
    // Some errors are only placed when serde_json has looked at what follows the value.
    let follows = text[..until].ends_with([',', '}']) && !message.starts_with("missing field");
    until -= usize::from(follows);
    match parameter(text, until) {
        Some(name) => format!("`{name}`: {what}{place}"),
        None => format!("{what}{place}"),
    }
}

/// What serde says of data, as far as it tells of types only.
fn without_values(message: &str) -> String {
    let expected = || message.rfind(", expected ").map_or("", |at| &message[at..]);
    for what in ["invalid type", "invalid value"] {
        if let Some(found) = message.strip_prefix(what).and_then(|rest| rest.strip_prefix(": ")) {
            let kind = KINDS.iter().find(|kind| found.starts_with(**kind));
            let kind = kind.map(|kind| format!(": {kind}")).unwrap_or_default();
            return format!("{what}{kind}{}", expected());
        }
    }
    for what in ["unknown variant", "unknown field"] {
        if message.starts_with(what) {
            return format!("{what}{}", expected());
        }
    }
    let named = ["missing field `", "duplicate field `"];
    let name = named.iter().find_map(|what| message.strip_prefix(what)?.strip_suffix('`'));
    let untagged = "data did not match any variant of untagged enum ";
    let name = name.or_else(|| message.strip_prefix(untagged));
    let length = message.strip_prefix("invalid length ").and_then(|rest| rest.split_once(", "));
    let length = length.and_then(|(length, _)| length.parse::<u64>().ok());
    match name.is_some_and(is_name) || length.is_some() {
        true => message.to_owned(),
        // Of somebody's own `Deserialize`, which may quote anything.
        false => "its type refused the value".to_owned(),
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Where in the text the error was found.
fn offset(error: &serde_json::Error, text: &str) -> usize {
    let before = error.line().saturating_sub(1);
    let lines: usize = text.split_inclusive('\n').take(before).map(str::len).sum();
    let mut offset = (lines + error.column()).min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// The parameter whose value stands there: the last key of the outer object before it.
fn parameter(text: &str, offset: usize) -> Option<&str> {
    let bytes = text.as_bytes();
    let (mut depth, mut at) = (0, 0);
    let (mut string, mut key) = (None, None);
    while at < offset {
        match bytes[at] {
            b'"' => {
                let start = at + 1;
                at = start;
                while at < offset && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if depth == 1 && at < offset {
                    string = text.get(start..at);
                }
            }
            b':' if depth == 1 => key = string,
            b',' if depth == 1 => key = None,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    key.filter(|name| depth > 0 && is_name(name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Args {
        id: u8,
        name: String,
        mode: Option<Mode>,
        pair: Option<(u8, u8)>,
        inner: Option<Inner>,
        at: Option<chrono_like::At>,
        any: Option<Any>,
        map: Option<HashMap<String, u8>>,
    }

    #[derive(Debug, Deserialize)]
    enum Mode {
        Fast,
        Safe,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        secret: u8,
    }

    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    #[allow(dead_code)]
    enum Any {
        Number(u8),
    }

    mod chrono_like {
        #[derive(Debug)]
        pub(super) struct At;

        impl<'de> serde::Deserialize<'de> for At {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                Err(serde::de::Error::custom(format!("`{text}` is not a time")))
            }
        }
    }

    fn explained(text: &str) -> String {
        explain(&serde_json::from_str::<Args>(text).unwrap_err(), text)
    }

    #[test]
    fn types_and_parameters_are_told_and_values_are_not() {
        for (text, told) in [
            (r#"{"id":"SECRET"}"#, "`id`: invalid type: string, expected u8 at line 1 column 14"),
            (r#"{"id":77777}"#, "`id`: invalid value: integer, expected u8 at line 1 column 11"),
            (
                r#"{"id":7.25}"#,
                "`id`: invalid type: floating point, expected u8 at line 1 column 10",
            ),
            (r#"{"id":null}"#, "`id`: invalid type: null, expected u8 at line 1 column 10"),
            (
                r#"{"id":", expected SECRET"}"#,
                "`id`: invalid type: string, expected u8 at line 1 column 25",
            ),
            (r#"{"id":1}"#, "missing field `name` at line 1 column 8"),
            (r#"{"id":1,"id":2}"#, "duplicate field `id` at line 1 column 12"),
            (
                r#"{"mode":"SECRET"}"#,
                "`mode`: unknown variant, expected `Fast` or `Safe` at line 1 column 16",
            ),
            (
                r#"{"pair":[1]}"#,
                "`pair`: invalid length 1, expected a tuple of size 2 at line 1 column 11",
            ),
            (
                r#"{"inner":{"SECRET":1}}"#,
                "`inner`: unknown field, expected `secret` at line 1 column 18",
            ),
            (
                "{\n  \"inner\": {\"secret\": true}}",
                "`inner`: invalid type: boolean, expected u8 at line 2 column 26",
            ),
            (
                r#"{"any":"SECRET"}"#,
                "`any`: data did not match any variant of untagged enum Any at line 1 column 16",
            ),
            (
                r#"{"any":"SECRET","id":1}"#,
                "`any`: data did not match any variant of untagged enum Any at line 1 column 15",
            ),
            (r#"{"inner":{}}"#, "`inner`: missing field `secret` at line 1 column 11"),
            (r#"{"inner":{},"id":1}"#, "`inner`: missing field `secret` at line 1 column 11"),
            (r#"{"at":"SECRET"}"#, "`at`: its type refused the value at line 1 column 15"),
            (
                r#"{"map":{"SECRET":"x"}}"#,
                "`map`: invalid type: string, expected u8 at line 1 column 20",
            ),
            (r#"{"id":1,"name":SECRET}"#, "`name`: expected value at line 1 column 16"),
            (r#"{"id":1,"name":"SECRET"#, "`name`: EOF while parsing a string at line 1 column 22"),
            ("SECRET", "expected value at line 1 column 1"),
            (r#"["SECRET"]"#, "invalid type: string, expected u8 at line 1 column 9"),
            (r#""SECRET""#, "invalid type: string, expected struct Args at line 1 column 8"),
            ("", "EOF while parsing a value at line 1 column 0"),
        ] {
            assert_eq!(explained(text), told, "{text}");
        }
    }

    #[test]
    fn no_text_makes_it_panic() {
        let text = r#"{"id":1,"näme\"":["\\",{"a":"é\\\""}],"x":"}"#;
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            for offset in 0..=end {
                let _ = parameter(&text[..end], offset);
            }
        }
        let fails = serde_json::from_str::<Args>("{\"id\":\n\n\"\u{1F600}\"}").unwrap_err();
        explain(&fails, "");
    }
}
