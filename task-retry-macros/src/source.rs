//! `#[derive(Source)]`: an enum → the numbers, names and policies of its variants.

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::ext::IdentExt as _;
use syn::{Attribute, Data, DeriveInput, Expr, Fields, Meta, Variant};

use crate::args::{Piece, Policy, named, source_number, split};
use crate::errors::{Errors, unknown};

pub(crate) fn derive(input: TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let Some(input) = errors.ok(syn::parse2::<DeriveInput>(input)) else {
        return errors.into_token_stream();
    };
    let settings = Settings::parse(&input.attrs, &mut errors);
    let mut sources: Vec<Source<'_>> = Vec::new();
    for variant in check_enum(&input, &mut errors) {
        let source = Source::parse(variant, &mut errors);
        source.check_number(&settings.retired, &sources, &mut errors);
        sources.push(source);
    }
    // Also after a mistake, so that what uses the enum does not fail, too.
    let expansion = expand(&input, &settings.krate, &sources);
    quote!(#errors #expansion)
}

/// What `#[source(…)]` on the enum says.
struct Settings {
    krate: TokenStream,
    retired: Vec<i32>,
}

impl Settings {
    fn parse(attrs: &[Attribute], errors: &mut Errors) -> Self {
        let mut settings = Self { krate: quote!(::task_retry), retired: Vec::new() };
        let (retired, others): (Vec<_>, _) =
            pieces(attrs, errors).into_iter().partition(is_retired);
        for piece in retired {
            if let Piece::Bare(Expr::Call(call)) = piece {
                let numbers =
                    call.args.iter().filter_map(|number| errors.ok(source_number(number)));
                settings.retired.extend(numbers);
            }
        }
        for argument in named(others, "`retired(31, 32)` or `crate = path`", errors) {
            if argument.name == "crate" {
                let path = errors.ok(argument.path("`task_retry`"));
                settings.krate = path.map_or(settings.krate, ToTokens::into_token_stream);
            } else {
                let known = ["retired(…)", "crate"];
                let message = unknown("argument", &argument.name.to_string(), &known);
                errors.push(&argument.name, message);
            }
        }
        settings
    }
}

fn is_retired(piece: &Piece) -> bool {
    let Piece::Bare(Expr::Call(call)) = piece else { return false };
    matches!(&*call.func, Expr::Path(path) if path.path.is_ident("retired"))
}

/// What stands in the one `#[source(…)]`.
fn pieces(attrs: &[Attribute], errors: &mut Errors) -> Vec<Piece> {
    let mut attrs = attrs.iter().filter(|attr| attr.path().is_ident("source"));
    let first = attrs.next();
    for again in attrs {
        errors.push(again, "`#[source(…)]` is given twice: put everything into one");
    }
    match first.map(|attr| &attr.meta) {
        Some(Meta::List(list)) => split(list.tokens.clone(), errors),
        _ => Vec::new(),
    }
}

fn check_enum<'a>(input: &'a DeriveInput, errors: &mut Errors) -> Vec<&'a Variant> {
    if !input.generics.params.is_empty() {
        errors.push(&input.generics, "an enum of sources is not generic: remove the parameters");
    }
    match &input.data {
        Data::Enum(data) if data.variants.is_empty() => {
            errors.push(
                &input.ident,
                "an enum of sources needs a variant: write `#[source(30)] SendSms`",
            );
            Vec::new()
        }
        Data::Enum(data) => data.variants.iter().collect(),
        Data::Struct(_) | Data::Union(_) => {
            errors.push(
                &input.ident,
                "sources are the variants of an enum: write `enum` with unit variants",
            );
            Vec::new()
        }
    }
}

/// A number, or the constant that somebody wrote for one.
fn is_number(piece: &Piece) -> bool {
    match piece {
        Piece::Bare(_) => true,
        Piece::Named(argument) => {
            argument.is_flag() && !Policy::names().iter().any(|name| argument.name == name)
        }
    }
}

/// One variant, as far as it is valid.
struct Source<'a> {
    name: &'a Ident,
    number: Option<(i32, Expr)>,
    policy: Policy,
}

impl<'a> Source<'a> {
    fn parse(variant: &'a Variant, errors: &mut Errors) -> Self {
        if !matches!(variant.fields, Fields::Unit) {
            let message = format!("a source has no fields: write `{}` alone", variant.ident);
            errors.push(&variant.fields, message);
        }
        let (numbers, mut others): (Vec<_>, Vec<_>) =
            pieces(&variant.attrs, errors).into_iter().partition(is_number);
        let mut numbers = numbers.into_iter();
        let number = match numbers.next() {
            Some(Piece::Bare(expr)) => errors.ok(source_number(&expr)).map(|number| (number, expr)),
            Some(Piece::Named(name)) => {
                errors.push(name.name, "a source's number is written as an integer literal");
                None
            }
            None => {
                let message = format!("`{}` has no number: write `#[source(30)]`", variant.ident);
                errors.push(&variant.ident, message);
                None
            }
        };
        others.extend(numbers);
        let mut policy = Policy::default();
        for argument in named(others, "`name = value`, such as `max_retry = 8`", errors) {
            if !policy.set(&argument, errors) {
                let message = unknown("argument", &argument.name.to_string(), &Policy::names());
                errors.push(&argument.name, message);
            }
        }
        Self { name: &variant.ident, number, policy }
    }

    fn check_number(&self, retired: &[i32], others: &[Self], errors: &mut Errors) {
        let Some((number, expr)) = &self.number else { return };
        let same = |other: &&Self| other.number.as_ref().is_some_and(|(taken, _)| taken == number);
        if let Some(other) = others.iter().find(same) {
            let message = format!("{number} is the number of `{}`: take another one", other.name);
            errors.push(expr, message);
        }
        if retired.contains(number) {
            let message = format!(
                "{number} is retired: rows of its former meaning may be in the table, so take another one"
            );
            errors.push(expr, message);
        }
    }
}

fn expand(input: &DeriveInput, krate: &TokenStream, sources: &[Source<'_>]) -> TokenStream {
    if sources.is_empty() {
        return TokenStream::new();
    }
    let name = &input.ident;
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    let numbers = sources.iter().map(|Source { name, number, .. }| {
        let number = number.as_ref().map_or(0, |(number, _)| *number);
        quote!(Self::#name { .. } => #number)
    });
    let names = sources.iter().map(|Source { name, .. }| {
        let text = name.unraw().to_string();
        quote!(Self::#name { .. } => #text)
    });
    let policies = sources.iter().map(|Source { name, policy, .. }| {
        let policy = policy.build(krate);
        quote!(Self::#name { .. } => #policy)
    });
    quote! {
        #[automatically_derived]
        impl #impl_generics #krate::Source for #name #type_generics #where_clause {
            fn number(&self) -> i32 {
                match self { #(#numbers),* }
            }
            fn name(&self) -> &str {
                match self { #(#names),* }
            }
            fn policy(&self) -> #krate::Policy {
                match self { #(#policies),* }
            }
        }
    }
}
