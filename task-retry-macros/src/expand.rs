//! Model → tokens. The expansion describes the function; the runtime acts.

use proc_macro2::{Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{Attribute, ReturnType, Type};

use crate::args::Arguments;
use crate::errors::Errors;
use crate::model::{Function, Param, Role, Stored};

pub(crate) fn retryable(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut errors = Errors::default();
    let args = Arguments::parse(arguments, &mut errors);
    let Some(function) = errors.ok(syn::parse2::<Function>(item.clone())) else {
        return quote!(#errors #item);
    };
    match function.check(&mut errors) {
        // Also after a mistake in the arguments, so that the function's callers do not fail, too.
        Some(params) => {
            let expansion = Expansion::new(&args, &function, &params).expand();
            quote!(#errors #expansion)
        }
        None => quote!(#errors #function),
    }
}

struct Expansion<'a> {
    args: &'a Arguments,
    function: &'a Function,
    params: &'a [Param],
    krate: &'a TokenStream,
    /// The type that names the function.
    handle: Ident,
    /// The struct of its arguments.
    stored: Ident,
    /// On which every item depends.
    cfgs: Vec<&'a Attribute>,
}

impl<'a> Expansion<'a> {
    fn new(args: &'a Arguments, function: &'a Function, params: &'a [Param]) -> Self {
        let name = &function.sig.ident;
        Self {
            args,
            function,
            params,
            krate: &args.krate,
            handle: args.type_name.clone().unwrap_or_else(|| name.clone()),
            stored: format_ident!(
                "__{}_args",
                name,
                span = Span::call_site().located_at(name.span())
            ),
            cfgs: function.attrs.iter().filter(|attr| is(attr, &["cfg"])).collect(),
        }
    }

    fn expand(&self) -> TokenStream {
        let Self { krate, handle, cfgs, .. } = self;
        let items = [self.handle(), self.call(), self.stored(), self.direct()];
        let (stored, returned) = (&self.stored, self.returned());
        let (spec, run) = (self.spec(), self.run());
        quote! {
            #(#items)*
            #(#cfgs)*
            const _: () = {
                impl #krate::Retryable for #handle {
                    type Args = #stored;
                    #returned
                    #spec
                    #run
                }
                #krate::__private::inventory::submit! {
                    #krate::__private::Registration::of::<#handle>()
                }
            };
        }
    }

    /// The type; its braces leave the name free for the function.
    fn handle(&self) -> TokenStream {
        let (vis, handle) = (&self.function.vis, &self.handle);
        let attrs = self.attrs(&["cfg", "doc", "allow"]);
        quote! {
            #(#attrs)*
            #[allow(non_camel_case_types)]
            #vis struct #handle {}
        }
    }

    /// The function that callers see.
    fn call(&self) -> TokenStream {
        let Self { krate, function, handle, stored, .. } = self;
        let (vis, name, fn_token) = (&function.vis, &function.sig.ident, &function.sig.fn_token);
        let attrs = self.attrs(&["cfg", "doc", "allow", "deprecated", "must_use"]);
        let params = self.stored_params().map(|(ident, ty, _)| quote!(#ident: #ty));
        let values = self.stored_params().map(|(ident, _, stored)| match &stored.borrowed {
            Some(ty) => quote_spanned! {ty.span()=>
                #ident: <#ty as ::std::borrow::ToOwned>::to_owned(#ident)
            },
            None => quote!(#ident),
        });
        // Rows of the table call it, so it is used even where no code of the program does.
        quote! {
            #(#attrs)*
            #[allow(dead_code)]
            #vis #fn_token #name(#(#params),*) -> #krate::Call<#handle> {
                #krate::__private::call(#stored { #(#values),* })
            }
        }
    }

    /// The arguments as they are stored.
    fn stored(&self) -> TokenStream {
        let Self { krate, function, stored, cfgs, .. } = self;
        let vis = &function.vis;
        let fields = self.stored_params().map(|(ident, ty, stored)| self.field(ident, ty, stored));
        let serde = format!("{krate}::__private::serde").replace(' ', "");
        quote! {
            #(#cfgs)*
            #[doc(hidden)]
            #[allow(nonstandard_style)]
            #[derive(#krate::__private::serde::Serialize, #krate::__private::serde::Deserialize)]
            #[serde(crate = #serde)]
            #vis struct #stored { #(#fields),* }
        }
    }

    fn field(&self, ident: &Ident, ty: &Type, stored: &Stored) -> TokenStream {
        let krate = self.krate;
        let owned = match &stored.borrowed {
            Some(ty) => quote_spanned!(ty.span()=> <#ty as ::std::borrow::ToOwned>::Owned),
            None => ty.to_token_stream(),
        };
        let default = stored.default.then(|| quote!(#[serde(default)]));
        let check = quote_spanned!(owned.span()=> #krate::__private::argument::<#owned>());
        let check = match stored.default {
            true => quote_spanned! {owned.span()=>
                (#check, <#owned as ::core::default::Default>::default).0
            },
            false => check,
        };
        let ty = match &stored.borrowed {
            Some(ty) => quote!(#krate::__private::Owned<#ty, { #check }>),
            None => quote!(#krate::__private::Checked<#ty, { #check }>),
        };
        quote!(#default #ident: #ty)
    }

    /// The user's function itself.
    fn direct(&self) -> TokenStream {
        let Self { function, handle, cfgs, .. } = self;
        let Function { vis, body, .. } = function;
        let attrs = function
            .attrs
            .iter()
            .filter(|attr| !is(attr, &["cfg", "doc", "deprecated", "must_use"]));
        let mut sig = function.sig.clone();
        sig.ident = Ident::new("direct", sig.ident.span());
        quote! {
            #(#cfgs)*
            impl #handle {
                /// The body alone, for unit tests: nothing is stored, and nothing retried.
                #(#attrs)*
                #vis #sig #body
            }
        }
    }

    fn returned(&self) -> TokenStream {
        let krate = self.krate;
        let ReturnType::Type(_, ty) = &self.function.sig.output else {
            return quote! { type Returned = (); };
        };
        let check = quote_spanned!(ty.span()=> #krate::__private::returned::<#ty>());
        quote_spanned!(ty.span()=> type Returned = #krate::__private::Checked<#ty, { #check }>;)
    }

    /// What the function's arguments say.
    fn spec(&self) -> TokenStream {
        let Self { krate, args, function, handle, .. } = self;
        let name = match &args.name {
            Some(name) => name.to_token_stream(),
            None => function.sig.ident.unraw().to_string().into_token_stream(),
        };
        let source = match &args.source {
            Some(source) => source.to_token_stream(),
            None => quote!(0),
        };
        let policy = (!args.policy.is_empty()).then(|| args.policy.build(krate));
        let options = [
            policy.map(|policy| quote!(.policy(#policy))),
            args.retry_if.as_ref().map(|path| quote_spanned!(path.span()=> .retry_if(#path))),
            args.on_exhausted.as_ref().map(|path| {
                quote_spanned! {path.span()=>
                    .on_exhausted(|task, error| ::std::boxed::Box::pin(#path(task, error)))
                }
            }),
            args.concurrency.as_ref().map(|limit| quote!(.concurrency(#limit))),
            args.store_result.as_ref().map(|flag| quote!(.#flag())),
        ];
        let options = options.iter().flatten();
        let params = self.params.iter().filter_map(|Param { ident, role, .. }| match role {
            Role::State(ty) | Role::Shared(ty) => Some(quote_spanned!(ty.span()=> .needs::<#ty>())),
            Role::Stored(stored) if stored.secret => {
                let name = ident.unraw().to_string();
                Some(quote!(.secret(#name)))
            }
            _ => None,
        });
        quote! {
            fn spec() -> #krate::__private::Spec<Self> {
                #krate::__private::Spec::new(
                    #name,
                    #source,
                    ::core::file!(),
                    ::core::line!(),
                    #krate::__private::probes!(<#handle as #krate::Retryable>::Returned),
                )
                #(#options)*
                #(#params)*
            }
        }
    }

    /// One attempt.
    fn run(&self) -> TokenStream {
        let Self { krate, handle, .. } = self;
        let args = Ident::new("__args", Span::mixed_site());
        let env = Ident::new("__env", Span::mixed_site());
        let values = self.params.iter().map(|Param { ident, ty, role }| match role {
            Role::Stored(Stored { borrowed: None, .. }) => quote!(#args.#ident),
            Role::Stored(Stored { borrowed: Some(ty), .. }) => quote_spanned! {ty.span()=>
                ::core::borrow::Borrow::<#ty>::borrow(&#args.#ident)
            },
            Role::State(state) => at(ty, quote!(#env.state::<#state>())),
            Role::Shared(state) => at(ty, quote!(#env.shared::<#state>())),
            Role::Context => at(ty, quote!(#env.context())),
        });
        let future = quote_spanned! {self.function.sig.ident.span()=>
            impl ::core::future::Future<Output = Self::Returned> + ::core::marker::Send
        };
        quote! {
            fn run(#args: Self::Args, #env: #krate::__private::Env) -> #future {
                async move { #handle::direct(#(#values),*).await }
            }
        }
    }

    fn attrs(&self, names: &'static [&'static str]) -> impl Iterator<Item = &'a Attribute> {
        self.function.attrs.iter().filter(|attr| is(attr, names))
    }

    fn stored_params(&self) -> impl Iterator<Item = (&'a Ident, &'a Type, &'a Stored)> {
        self.params.iter().filter_map(|Param { ident, ty, role }| match role {
            Role::Stored(stored) => Some((ident, ty, stored)),
            _ => None,
        })
    }
}

/// Shows errors of an expression at the type that it comes from.
fn at(ty: &Type, expr: TokenStream) -> TokenStream {
    let place = match ty {
        Type::Reference(reference) => reference.elem.span(),
        _ => ty.span(),
    };
    let locate = |mut token: TokenTree| {
        token.set_span(token.span().located_at(place));
        token
    };
    expr.into_iter().map(locate).collect()
}

fn is(attr: &Attribute, names: &[&str]) -> bool {
    names.iter().any(|name| attr.path().is_ident(name))
}
