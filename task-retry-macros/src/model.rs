//! A function → what the expansion needs of it, or every mistake in it.

use std::mem::take;

use proc_macro2::{Ident, TokenStream};
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream};
use syn::visit_mut::VisitMut;
use syn::{
    Abi, Attribute, Expr, FnArg, GenericArgument, GenericParam, Lifetime, Meta,
    ParenthesizedGenericArguments, Pat, PathArguments, ReturnType, Safety, Signature, Token, Type,
    TypeFnPtr, TypeImplTrait, TypeInfer, TypeReference, Visibility,
};

use crate::args::{named, split};
use crate::errors::{Errors, unknown};

/// The user's function. As tokens: that function without what was meant for this macro.
///
/// The body is never read: one that is being typed does not parse, and what an editor shows of
/// the function must not depend on it.
pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) sig: Signature,
    pub(crate) body: TokenStream,
    /// For each parameter the attributes that rustc would not know.
    helpers: Vec<Vec<Attribute>>,
}

/// A parameter and where its value comes from.
pub(crate) struct Param {
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
    pub(crate) role: Role,
}

pub(crate) enum Role {
    /// A parameter of the call.
    Stored(Stored),
    /// `#[state] x: &T`
    State(Type),
    /// `#[state] x: Arc<T>`
    Shared(Type),
    /// `#[context] x: &TaskContext`
    Context,
}

/// How an argument is stored.
#[derive(Default)]
pub(crate) struct Stored {
    /// The `T` of `&T`, of which the owned form is stored.
    pub(crate) borrowed: Option<Box<Type>>,
    /// `#[arg(default)]`
    pub(crate) default: bool,
    /// `#[arg(secret)]`
    pub(crate) secret: bool,
}

const HELPERS: [&str; 3] = ["state", "context", "arg"];

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        if !is_function(input) {
            return Err(input.error("`#[retryable]` goes on an `async fn`, and this is none"));
        }
        let mut sig: Signature = input.parse()?;
        let helpers = sig.inputs.iter_mut().map(take_helpers).collect();
        Ok(Self { attrs, vis, sig, body: input.parse()?, helpers })
    }
}

fn is_function(input: ParseStream<'_>) -> bool {
    let ahead = input.fork();
    let _ = ahead.parse::<Option<Token![const]>>();
    let _ = ahead.parse::<Option<Token![async]>>();
    let _ = ahead.parse::<Option<Token![unsafe]>>();
    let _ = ahead.parse::<Option<Abi>>();
    ahead.peek(Token![fn])
}

fn take_helpers(param: &mut FnArg) -> Vec<Attribute> {
    const RUSTC_KNOWS: [&str; 8] =
        ["allow", "expect", "warn", "deny", "forbid", "doc", "cfg", "cfg_attr"];
    let attrs = match param {
        FnArg::Receiver(receiver) => &mut receiver.attrs,
        FnArg::Typed(param) => &mut param.attrs,
    };
    let (kept, helpers) = take(attrs)
        .into_iter()
        .partition(|attr| name(attr).is_none_or(|name| RUSTC_KNOWS.contains(&name.as_str())));
    *attrs = kept;
    helpers
}

fn name(attr: &Attribute) -> Option<String> {
    attr.path().get_ident().map(Ident::to_string)
}

impl ToTokens for Function {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let Self { attrs, vis, sig, body, .. } = self;
        tokens.extend(quote!(#(#attrs)* #vis #sig #body));
    }
}

impl Function {
    /// The parameters, if the function can be made durable.
    pub(crate) fn check(&self, errors: &mut Errors) -> Option<Vec<Param>> {
        let mut params = Vec::new();
        let is_valid = errors.none_in(|errors| {
            self.check_head(errors);
            for (param, helpers) in self.sig.inputs.iter().zip(&self.helpers) {
                params.extend(check_param(param, helpers, errors));
            }
            check_contexts(&params, errors);
            if let ReturnType::Type(_, ty) = &self.sig.output {
                check_owned(ty, Place::Result, errors);
            }
        });
        is_valid.then_some(params)
    }

    fn check_head(&self, errors: &mut Errors) {
        let sig = &self.sig;
        for attr in &self.attrs {
            if attr.path().segments.last().is_some_and(|last| last.ident == "retryable") {
                errors.push(attr, "a function is `#[retryable]` only once: remove one of the two");
            }
        }
        if sig.asyncness.is_none() {
            let message =
                format!("only an `async fn` can be retried: write `async fn {}`", sig.ident);
            errors.push(sig.fn_token, message);
        }
        if let Some(constness) = &sig.constness {
            errors.push(constness, "a retryable function cannot be `const`: remove it");
        }
        if !matches!(sig.safety, Safety::Default) {
            errors.push(
                &sig.safety,
                "a retry has no caller who could keep the promises of an `unsafe fn`: write a safe \
                 function with an `unsafe` block inside",
            );
        }
        if let Some(abi) = &sig.abi {
            errors.push(abi, "a retryable function cannot be `extern`: remove it");
        }
        if let Some(variadic) = &sig.variadic {
            errors.push(variadic, "a stored call has a fixed number of arguments: take a `Vec<T>`");
        }
        for param in &sig.generics.params {
            let message = match param {
                GenericParam::Lifetime(_) => {
                    "a stored argument outlives every lifetime: write `&str`, `&T` or an owned type, \
                     without a lifetime"
                }
                _ => {
                    "a stored call has no type parameters: write a retryable function for each type, \
                     which may call a generic one"
                }
            };
            errors.push(param, message);
        }
        if let Some(clause) = &sig.generics.where_clause {
            errors.push(clause, "a retryable function is not generic: remove the `where` clause");
        }
        if self.body.is_empty() || self.body.to_string() == ";" {
            errors.push(&sig.ident, "a retryable function needs a body");
        }
    }
}

fn check_param(param: &FnArg, helpers: &[Attribute], errors: &mut Errors) -> Option<Param> {
    let param = match param {
        FnArg::Typed(param) => param,
        FnArg::Receiver(receiver) => {
            errors.push(
                receiver,
                "`self` cannot be stored: write a free function, whose parameters are stored, and take \
                 what lives in the process by `#[state] this: &T`",
            );
            return None;
        }
    };
    for attr in
        param.attrs.iter().filter(|attr| name(attr).is_some_and(|name| name.starts_with("cfg")))
    {
        errors.push(
            attr,
            "the parameters of a stored call are the same in every build: put the `#[cfg]` on the \
             function, or inside its body",
        );
    }
    let helper = check_helpers(helpers, errors);
    let role = check_type(helper, &param.ty, errors);
    match &*param.pat {
        Pat::Ident(pat) if pat.by_ref.is_none() && pat.subpat.is_none() && pat.attrs.is_empty() => {
            Some(Param { ident: pat.ident.clone(), ty: (*param.ty).clone(), role: role? })
        }
        pattern => {
            let message = "an argument is stored by its parameter's name: write `name: T`, and take it \
                           apart inside the body";
            errors.push(pattern, message);
            None
        }
    }
}

/// Which of the helper attributes a parameter has.
enum Helper {
    State,
    Context,
    Arg(Stored),
}

fn check_helpers(attrs: &[Attribute], errors: &mut Errors) -> Helper {
    let mut found: Option<(String, Helper)> = None;
    for attr in attrs {
        let name = name(attr).unwrap_or_default();
        let helper = match name.as_str() {
            "state" => Helper::State,
            "context" => Helper::Context,
            "arg" => Helper::Arg(check_arg(attr, errors)),
            _ => {
                errors.push(attr, unknown("parameter attribute", &name, &HELPERS));
                continue;
            }
        };
        if name != "arg" && !matches!(attr.meta, Meta::Path(_)) {
            errors.push(attr, format!("`#[{name}]` takes no arguments: write `#[{name}]`"));
        }
        match &found {
            None => found = Some((name, helper)),
            Some((first, _)) if *first == name => {
                errors.push(attr, format!("`#[{name}]` is given twice: remove one"));
            }
            Some((first, _)) => errors.push(
                attr,
                format!("a parameter cannot be `#[{first}]` and `#[{name}]` at once: remove one"),
            ),
        }
    }
    found.map_or(Helper::Arg(Stored::default()), |(_, helper)| helper)
}

fn check_arg(attr: &Attribute, errors: &mut Errors) -> Stored {
    let mut stored = Stored::default();
    match &attr.meta {
        Meta::List(list) if !list.tokens.is_empty() => {
            for option in named(split(list.tokens.clone(), errors), "`default` or `secret`", errors)
            {
                errors.ok(option.flag());
                match option.name.to_string().as_str() {
                    "default" => stored.default = true,
                    "secret" => stored.secret = true,
                    name => {
                        let message = unknown("`#[arg]` option", name, &["default", "secret"]);
                        errors.push(&option.name, message);
                    }
                }
            }
        }
        _ => errors
            .push(attr, "write `#[arg(default)]`, `#[arg(secret)]` or `#[arg(default, secret)]`"),
    }
    stored
}

fn check_type(helper: Helper, ty: &Type, errors: &mut Errors) -> Option<Role> {
    match helper {
        Helper::State => check_state(ty, errors),
        Helper::Context => {
            let is_valid =
                matches!(bare(ty), Type::Reference(TypeReference { mutability: None, .. }));
            if !is_valid {
                errors.push(ty, "the context comes by reference: write `&TaskContext`");
            }
            is_valid.then_some(Role::Context)
        }
        Helper::Arg(stored) => {
            let borrowed = check_stored(ty, errors)?;
            Some(Role::Stored(Stored { borrowed, ..stored }))
        }
    }
}

/// The `T` of a stored `&T`, or none for a type that is stored as it is.
fn check_stored(ty: &Type, errors: &mut Errors) -> Option<Option<Box<Type>>> {
    match bare(ty) {
        Type::Reference(reference) => {
            let elem = bare(&reference.elem);
            if let Some(mutability) = &reference.mutability {
                errors.push(
                    mutability,
                    "every attempt gets its arguments from the table: take the value itself, as in \
                     `mut x: T`",
                );
            } else if matches!(elem, Type::TraitObject(_)) {
                errors.push(
                    ty,
                    "a trait object cannot be stored: take a type of its own, or `#[state]` for what \
                     lives in the process",
                );
            } else if let Some(lifetime) = reference.lifetime.as_ref().filter(|it| it.ident != "_")
            {
                errors.push(lifetime, "a stored argument outlives every lifetime: remove it");
            } else if check_owned(elem, Place::Argument, errors) {
                return Some(Some(Box::new(elem.clone())));
            }
            None
        }
        ty => check_owned(ty, Place::Argument, errors).then_some(None),
    }
}

fn check_state(ty: &Type, errors: &mut Errors) -> Option<Role> {
    let (state, role): (_, fn(Type) -> Role) = match bare(ty) {
        Type::Reference(TypeReference { mutability: None, lifetime: None, elem, .. }) => {
            (bare(elem), Role::State)
        }
        other => match arc_of(other) {
            Some(state) => (bare(state), Role::Shared),
            None => {
                errors.push(ty, "a state is shared by all attempts: write `&T` or `Arc<T>`");
                return None;
            }
        },
    };
    let is_unsized = match state {
        Type::TraitObject(_) | Type::Slice(_) => true,
        Type::Path(path) => path.path.is_ident("str"),
        _ => false,
    };
    if is_unsized {
        errors.push(
            ty,
            "a state is found by its type, which has to be sized: put it into a struct of its own, or \
             give the builder an `Arc<dyn Trait>` and take `&Arc<dyn Trait>`",
        );
        return None;
    }
    check_owned(state, Place::State, errors).then(|| role(state.clone()))
}

/// The `T` of `Arc<T>`, under whatever path.
fn arc_of(ty: &Type) -> Option<&Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == "Arc")?;
    match &last.arguments {
        PathArguments::AngleBracketed(generics) if generics.args.len() == 1 => {
            match generics.args.first()? {
                GenericArgument::Type(ty) => Some(ty),
                _ => None,
            }
        }
        _ => None,
    }
}

fn check_contexts(params: &[Param], errors: &mut Errors) {
    let contexts = params.iter().filter(|param| matches!(param.role, Role::Context));
    for param in contexts.skip(1) {
        errors.push(&param.ident, "the context is taken twice: remove one `#[context]` parameter");
    }
}

/// A type without the groups that `macro_rules!` and parentheses put around it.
fn bare(mut ty: &Type) -> &Type {
    loop {
        ty = match ty {
            Type::Group(group) => &group.elem,
            Type::Paren(paren) => &paren.elem,
            _ => return ty,
        }
    }
}

/// Where a type stands, and so for how long it has to live.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Argument,
    State,
    Result,
}

/// Whether a type can be named outside the function and owns what it holds.
fn check_owned(ty: &Type, place: Place, errors: &mut Errors) -> bool {
    errors.none_in(|errors| Owned { place, errors }.visit_type_mut(&mut ty.clone()))
}

struct Owned<'a> {
    place: Place,
    errors: &'a mut Errors,
}

impl Owned<'_> {
    fn borrows(&mut self, at: impl ToTokens) {
        let message = match self.place {
            Place::Argument => {
                "an argument is stored, so its type cannot borrow: write an owned type, such as `String`"
            }
            Place::State => "a state lives as long as the process, so its type cannot borrow",
            Place::Result => {
                "a result outlives its call, so its type cannot borrow: return an owned type, such as \
                 `String`"
            }
        };
        self.errors.push(at, message);
    }
}

impl VisitMut for Owned<'_> {
    fn visit_type_reference_mut(&mut self, reference: &mut TypeReference) {
        let is_static =
            reference.lifetime.as_ref().is_some_and(|lifetime| lifetime.ident == "static");
        if is_static && self.place != Place::Argument {
            self.visit_type_mut(&mut reference.elem);
        } else {
            self.borrows(reference);
        }
    }

    fn visit_lifetime_mut(&mut self, lifetime: &mut Lifetime) {
        if lifetime.ident != "static" {
            self.borrows(lifetime);
        }
    }

    fn visit_type_impl_trait_mut(&mut self, ty: &mut TypeImplTrait) {
        self.errors
            .push(ty, "a stored call has to name its types: write a type instead of `impl Trait`");
    }

    fn visit_type_infer_mut(&mut self, ty: &mut TypeInfer) {
        self.errors.push(ty, "a stored call has to name its types: write a type instead of `_`");
    }

    // What these borrow, they borrow from their own callers.
    fn visit_type_fn_ptr_mut(&mut self, _: &mut TypeFnPtr) {}
    fn visit_parenthesized_generic_arguments_mut(&mut self, _: &mut ParenthesizedGenericArguments) {
    }
    fn visit_expr_mut(&mut self, _: &mut Expr) {}
}
