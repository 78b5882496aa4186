//! Tokens → arguments: what stands in `#[retryable(…)]` and `#[source(…)]`.

use std::fmt::Display;
use std::ops::Range;

use proc_macro2::{Ident, Literal, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::ext::IdentExt as _;
use syn::parse::discouraged::Speculative as _;
use syn::parse::{End, ParseStream, Parser as _};
use syn::spanned::Spanned as _;
use syn::{Expr, ExprPath, Lit, LitStr, Token, UnOp};

use crate::errors::{Errors, is_near, unknown};

/// What `#[retryable(…)]` was given, as far as it is valid.
pub(crate) struct Arguments {
    pub(crate) krate: TokenStream,
    pub(crate) source: Option<Expr>,
    pub(crate) name: Option<LitStr>,
    pub(crate) type_name: Option<Ident>,
    pub(crate) policy: Policy,
    pub(crate) retry_if: Option<ExprPath>,
    pub(crate) on_exhausted: Option<ExprPath>,
    pub(crate) concurrency: Option<Literal>,
    pub(crate) store_result: Option<Ident>,
}

/// Every argument and how it is written.
const KNOWN: [(&str, &str); 15] = [
    ("source", "source = 30"),
    ("name", "name = \"send-sms\""),
    ("type", "type = SendSms"),
    ("max_retry", "max_retry = 8"),
    ("first_execute", "first_execute = \"5s\""),
    ("delay_base", "delay_base = \"10s\""),
    ("delay_multiplier", "delay_multiplier = 10.0"),
    ("max_delay", "max_delay = \"1h\""),
    ("jitter", "jitter = 0.1"),
    ("timeout", "timeout = \"30s\""),
    ("retry_if", "retry_if = is_temporary"),
    ("on_exhausted", "on_exhausted = tell_support"),
    ("concurrency", "concurrency = 4"),
    ("store_result", "store_result"),
    ("crate", "crate = my_crate::task_retry"),
];

/// Those that stand on sources, too.
const POLICY: Range<usize> = 3..10;

fn names(known: &[(&'static str, &str)]) -> Vec<&'static str> {
    known.iter().map(|(name, _)| *name).collect()
}

impl Arguments {
    pub(crate) fn parse(tokens: TokenStream, errors: &mut Errors) -> Self {
        let mut arguments = Self {
            krate: quote!(::task_retry),
            source: None,
            name: None,
            type_name: None,
            policy: Policy::default(),
            retry_if: None,
            on_exhausted: None,
            concurrency: None,
            store_result: None,
        };
        let names_source = tokens.clone().into_iter().any(is_like_source);
        let pieces = split(tokens, errors);
        if !names_source && !pieces.iter().any(|piece| matches!(piece, Piece::Bare(_))) {
            errors.push(
                TokenStream::new(),
                "the source is missing: write `#[retryable(source = 30)]`, with a number that no other \
                 function of this project has",
            );
        }
        for argument in named(pieces, "`name = value`, such as `source = 30`", errors) {
            arguments.set(&argument, errors);
        }
        arguments
    }

    fn set(&mut self, argument: &Argument, errors: &mut Errors) {
        match argument.name.to_string().as_str() {
            "source" => self.source = errors.ok(argument.source()),
            "name" => self.name = errors.ok(argument.task_name()),
            "type" => self.type_name = errors.ok(argument.ident()),
            "retry_if" => self.retry_if = errors.ok(argument.path("a function `fn(&E) -> bool`")),
            "on_exhausted" => {
                let what = "an async function `async fn(task: TaskLog, error: String)`";
                self.on_exhausted = errors.ok(argument.path(what));
            }
            "concurrency" => {
                self.concurrency = errors.ok(argument.integer(1, i64::from(u32::MAX)));
            }
            "store_result" => {
                self.store_result = errors.ok(argument.flag()).map(|()| argument.name.clone());
            }
            "crate" => {
                if let Some(path) = errors.ok(argument.path("`task_retry`")) {
                    self.krate = path.into_token_stream();
                }
            }
            name => {
                if !self.policy.set(argument, errors) {
                    errors.push(&argument.name, unknown("argument", name, &names(&KNOWN)));
                }
            }
        }
    }
}

/// Whether the source was at least meant, so that it is not called missing.
fn is_like_source(token: TokenTree) -> bool {
    matches!(token, TokenTree::Ident(name) if is_near(&name.to_string(), "source"))
}

/// The retry policy's arguments, which functions and sources share.
#[derive(Default)]
pub(crate) struct Policy(Vec<(Ident, TokenStream)>);

impl Policy {
    /// The names of its arguments.
    pub(crate) fn names() -> Vec<&'static str> {
        names(&KNOWN[POLICY])
    }

    /// Whether the argument is one of the policy's.
    pub(crate) fn set(&mut self, argument: &Argument, errors: &mut Errors) -> bool {
        let value = match argument.name.to_string().as_str() {
            "max_retry" => {
                argument.integer(0, i64::from(i32::MAX)).map(ToTokens::into_token_stream)
            }
            "delay_multiplier" => argument.float(1.0, f64::MAX).map(ToTokens::into_token_stream),
            "jitter" => argument.float(0.0, 1.0).map(ToTokens::into_token_stream),
            "first_execute" | "delay_base" | "max_delay" => argument.duration(0),
            "timeout" => argument.duration(1),
            _ => return false,
        };
        self.0.extend(errors.ok(value).map(|value| (argument.name.clone(), value)));
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The expression that builds it.
    pub(crate) fn build(&self, krate: &TokenStream) -> TokenStream {
        let calls = self.0.iter().map(|(name, value)| quote!(.#name(#value)));
        quote!(#krate::Policy::new() #(#calls)*)
    }
}

/// `name`, or `name = value`.
pub(crate) struct Argument {
    pub(crate) name: Ident,
    value: Option<Expr>,
}

/// One piece between commas.
pub(crate) enum Piece {
    Named(Argument),
    Bare(Expr),
}

/// Splits at commas. What cannot be read is noted, and the rest is read all the same.
pub(crate) fn split(tokens: TokenStream, errors: &mut Errors) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let parser = |input: ParseStream<'_>| {
        while !input.is_empty() {
            let ahead = input.fork();
            match piece(&ahead) {
                Ok(piece) => {
                    pieces.push(piece);
                    input.advance_to(&ahead);
                }
                Err(error) => {
                    errors.ok::<()>(Err(error));
                    while !input.is_empty() && !input.peek(Token![,]) {
                        input.parse::<TokenTree>()?;
                    }
                }
            }
            input.parse::<Option<Token![,]>>()?;
        }
        Ok(())
    };
    let result = parser.parse2(tokens);
    errors.ok(result);
    pieces
}

fn piece(input: ParseStream<'_>) -> syn::Result<Piece> {
    let is_named = input.peek2(Token![=]) && !input.peek2(Token![==]);
    let is_flag = input.peek2(Token![,]) || input.peek2(End);
    let piece = if input.peek(Ident::peek_any) && (is_named || is_flag) {
        let name = input.call(Ident::parse_any)?;
        let has_value = input.parse::<Option<Token![=]>>()?.is_some()
            && !input.is_empty()
            && !input.peek(Token![,]);
        Piece::Named(Argument { name, value: if has_value { Some(input.parse()?) } else { None } })
    } else {
        Piece::Bare(input.parse()?)
    };
    if input.is_empty() || input.peek(Token![,]) {
        Ok(piece)
    } else {
        Err(input.error("expected `,` between two arguments"))
    }
}

/// Keeps the pieces with a name, and of those that share one the first.
pub(crate) fn named(pieces: Vec<Piece>, expected: &str, errors: &mut Errors) -> Vec<Argument> {
    let mut arguments: Vec<Argument> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Bare(value) => {
                errors.push(value, format!("expected {expected}"));
            }
            Piece::Named(new) if arguments.iter().any(|old| old.name == new.name) => {
                errors.push(&new.name, format!("`{}` is given twice: remove one", new.name));
            }
            Piece::Named(new) => arguments.push(new),
        }
    }
    arguments
}

impl Argument {
    fn example(&self) -> &'static str {
        KNOWN.iter().find(|(name, _)| self.name == name).map_or("", |(_, example)| example)
    }

    fn wrong(&self, what: impl Display) -> syn::Error {
        let message = format!("`{}` has to be {what}: write `{}`", self.name, self.example());
        syn::Error::new_spanned(&self.value, message)
    }

    fn value(&self) -> syn::Result<&Expr> {
        self.value.as_ref().map(bare).ok_or_else(|| {
            let message = format!("`{}` has no value: write `{}`", self.name, self.example());
            syn::Error::new_spanned(&self.name, message)
        })
    }

    fn literal(&self) -> syn::Result<Option<&Lit>> {
        Ok(match self.value()? {
            Expr::Lit(literal) => Some(&literal.lit),
            _ => None,
        })
    }

    pub(crate) fn is_flag(&self) -> bool {
        self.value.is_none()
    }

    pub(crate) fn flag(&self) -> syn::Result<()> {
        match &self.value {
            None => Ok(()),
            Some(value) => {
                let message = format!("`{0}` takes no value: write `{0}`", self.name);
                Err(syn::Error::new_spanned(value, message))
            }
        }
    }

    fn source(&self) -> syn::Result<Expr> {
        let value = self.value()?;
        if let Expr::Lit(literal) = value
            && !matches!(literal.lit, Lit::Int(_))
        {
            return Err(self.wrong("a number, or a variant of an enum that derives `Source`"));
        }
        if integer(value).is_some() {
            source_number(value)?;
        }
        Ok(value.clone())
    }

    fn task_name(&self) -> syn::Result<LitStr> {
        let Some(Lit::Str(text)) = self.literal()? else {
            return Err(self.wrong("a string literal"));
        };
        let name = text.value();
        if name.trim() != name || name.contains('\0') || !(1..=191).contains(&name.chars().count())
        {
            return Err(self.wrong("1 to 191 characters with no white space around them"));
        }
        Ok(text.clone())
    }

    fn ident(&self) -> syn::Result<Ident> {
        match self.value()? {
            Expr::Path(path) if path.qself.is_none() => path.path.get_ident().cloned(),
            _ => None,
        }
        .filter(|ident| syn::parse2::<Ident>(ident.to_token_stream()).is_ok())
        .ok_or_else(|| self.wrong("a name for a type"))
    }

    pub(crate) fn path(&self, what: &str) -> syn::Result<ExprPath> {
        match self.value()? {
            Expr::Path(path) => Ok(path.clone()),
            _ => Err(self.wrong(format_args!("the path of {what}"))),
        }
    }

    fn integer(&self, min: i64, max: i64) -> syn::Result<Literal> {
        match integer(self.value()?) {
            Some(Ok(number)) if (min..=max).contains(&number) => {
                let mut literal = Literal::i64_unsuffixed(number);
                literal.set_span(self.value()?.span());
                Ok(literal)
            }
            _ => Err(self.wrong(format_args!("a whole number from {min} to {max}"))),
        }
    }

    fn float(&self, min: f64, max: f64) -> syn::Result<Literal> {
        let number = match self.literal()? {
            Some(Lit::Int(number)) if number.suffix().is_empty() => number.base10_parse().ok(),
            Some(Lit::Float(number)) if number.suffix().is_empty() => number.base10_parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if (min..=max).contains(&number) => Ok(Literal::f64_unsuffixed(number)),
            _ if max == f64::MAX => Err(self.wrong(format_args!("a number of at least {min:?}"))),
            _ => Err(self.wrong(format_args!("a number from {min:?} to {max:?}"))),
        }
    }

    fn duration(&self, min: u64) -> syn::Result<TokenStream> {
        let Some(Lit::Str(text)) = self.literal()? else {
            return Err(self.wrong("a duration in quotes"));
        };
        let millis = duration(&text.value()).map_err(|what| self.wrong(what))?;
        if millis < min {
            return Err(self.wrong("longer than zero"));
        }
        let millis = Literal::u64_unsuffixed(millis);
        Ok(quote!(::core::time::Duration::from_millis(#millis)))
    }
}

/// An expression without the groups that `macro_rules!` and parentheses put around it.
fn bare(mut expr: &Expr) -> &Expr {
    loop {
        expr = match expr {
            Expr::Group(group) => &group.expr,
            Expr::Paren(paren) => &paren.expr,
            _ => return expr,
        }
    }
}

/// The value of an integer literal, at most `i64::MAX`; `Err` if it has an odd suffix.
fn integer(expr: &Expr) -> Option<Result<i64, ()>> {
    match bare(expr) {
        Expr::Lit(literal) => match &literal.lit {
            Lit::Int(number) if matches!(number.suffix(), "" | "i32") => {
                Some(Ok(number.base10_parse().unwrap_or(i64::MAX)))
            }
            Lit::Int(_) => Some(Err(())),
            _ => None,
        },
        Expr::Unary(unary) if matches!(unary.op, UnOp::Neg(_)) => {
            integer(&unary.expr).map(|number| number.map(|number| -number))
        }
        _ => None,
    }
}

/// Reads the number of a source and tells why it cannot be one.
pub(crate) fn source_number(expr: &Expr) -> syn::Result<i32> {
    let what = match integer(expr) {
        None => "a source's number is written as an integer literal",
        Some(Err(())) => "a source's number is an `i32`, without a suffix",
        Some(Ok(number)) => match number {
            ..=0 => "a source's number is positive",
            10 => "source 10 is RocketMQ's (`task_retry::source::ROCKET_MQ`)",
            1..=29 => "the sources from 1 to 29 are reserved",
            30..=0x7fff_ffff => return Ok(number as i32),
            _ => "a source's number is an `i32`, so at most 2147483647",
        },
    };
    Err(syn::Error::new_spanned(expr, format!("{what}: write a number from 30 up")))
}

/// The milliseconds of `"1h30m"` and its like, or what a duration is.
fn duration(text: &str) -> Result<u64, &'static str> {
    const YEARS_100: f64 = 36_525.0 * 86_400_000.0;
    const WITH_UNITS: &str = "a duration in the units `ms`, `s`, `m`, `h` and `d`, which may be joined as in `\"1h30m\"`";
    let mut rest = text;
    let mut millis = 0.0;
    while !rest.is_empty() || text.is_empty() {
        let (number, after) = cut(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = cut(after, |c| c.is_ascii_alphabetic());
        let unit = match unit {
            "ms" => 1.0,
            "s" => 1_000.0,
            "m" => 60_000.0,
            "h" => 3_600_000.0,
            "d" => 86_400_000.0,
            _ => return Err(WITH_UNITS),
        };
        millis += number.parse::<f64>().map_err(|_| WITH_UNITS)? * unit;
        rest = after;
    }
    if millis > YEARS_100 {
        Err("a duration of at most 100 years (`\"36525d\"`)")
    } else if (millis - millis.round()).abs() > 1e-3 {
        Err("a duration in whole milliseconds")
    } else {
        Ok(millis.round() as u64)
    }
}

fn cut(text: &str, belongs: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !belongs(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0s", 0),
            ("250ms", 250),
            ("5s", 5_000),
            ("1.5m", 90_000),
            ("1h30m", 5_400_000),
            ("1d1h1m1s1ms", 90_061_001),
            ("0.001s", 1),
            ("36525d", 3_155_760_000_000),
        ] {
            assert_eq!(duration(text), Ok(millis), "{text}");
        }
        for text in [
            "", "s", "5", "5 s", " 5s", "5s ", "-5s", "+5s", "5S", "5sec", "1w", "1y", "5m30",
            "..5s", "1e3s", "1_000s", "٣s", "5µs", "5s,", "infs", "NaNs",
        ] {
            assert!(duration(text).unwrap_err().contains("in the units"), "{text}");
        }
        assert!(duration("0.5ms").unwrap_err().contains("whole milliseconds"));
        assert!(duration("36526d").unwrap_err().contains("100 years"));
        assert!(duration(&"9".repeat(400)).is_err());
        assert!(duration(&("9".repeat(400) + "s")).unwrap_err().contains("100 years"));
    }
}
