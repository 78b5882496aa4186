//! Collects every mistake of an item, so that one build shows all of them.

use std::fmt::Display;

use proc_macro2::TokenStream;
use quote::{ToTokens, TokenStreamExt as _};

/// The mistakes found so far. As tokens: a `compile_error!` for each.
#[derive(Default)]
pub(crate) struct Errors(Vec<syn::Error>);

impl Errors {
    /// Notes a mistake at `place`.
    pub(crate) fn push(&mut self, place: impl ToTokens, message: impl Display) {
        self.0.push(syn::Error::new_spanned(place, message));
    }

    /// Takes the value of a result, or notes its error.
    pub(crate) fn ok<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push(error)).ok()
    }

    /// Whether `check` passed without a mistake.
    pub(crate) fn none_in(&mut self, check: impl FnOnce(&mut Self)) -> bool {
        let before = self.0.len();
        check(self);
        self.0.len() == before
    }
}

impl ToTokens for Errors {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        tokens.append_all(self.0.iter().map(syn::Error::to_compile_error));
    }
}

/// Says that something is unknown, what may have been meant, and what there is.
pub(crate) fn unknown(what: &str, given: &str, known: &[&str]) -> String {
    let hint = match known.iter().find(|name| is_near(given, name)) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => String::new(),
    };
    let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    format!("unknown {what} `{given}`{hint}\nexpected one of {}", known.join(", "))
}

/// Whether one may have been written for the other.
pub(crate) fn is_near(given: &str, name: &str) -> bool {
    distance(given, name) <= given.len().max(3) * 2 / 5
}

/// How many letters have to be changed, added or taken away (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let change = diagonal + usize::from(left != *right);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_offered_and_far_ones_are_not() {
        assert_eq!(distance("kitten", "sitting"), 3);
        let known = ["source", "max_retry", "timeout"];
        assert!(unknown("argument", "max_retries", &known).contains("did you mean `max_retry`?"));
        assert!(unknown("argument", "time_out", &known).contains("did you mean `timeout`?"));
        assert!(unknown("argument", "sauce", &known).contains("did you mean `source`?"));
        assert!(!unknown("argument", "queue", &known).contains("did you mean"));
        assert!(!unknown("argument", "", &known).contains("did you mean"));
    }
}
