//! The whole way from tokens to tokens, without a compiler. What rustc says of an expansion is
//! tested by `tests/ui` of the workspace.

use std::str::FromStr as _;
use std::time::{Duration, Instant};

use proc_macro2::{Delimiter, Group, Literal, TokenStream, TokenTree};
use quote::{ToTokens as _, quote};

use crate::{expand, source};

/// The messages of the `compile_error!`s in an expansion.
fn errors(tokens: &TokenStream) -> Vec<String> {
    let mut errors = Vec::new();
    let mut is_error = false;
    for token in tokens.clone() {
        match token {
            TokenTree::Ident(name) => is_error = name == "compile_error",
            TokenTree::Group(group) if is_error => {
                let message = syn::parse2::<syn::LitStr>(group.stream());
                errors.push(message.expect("the message of a compile_error").value());
                is_error = false;
            }
            TokenTree::Group(group) => errors.extend(self::errors(&group.stream())),
            _ => {}
        }
    }
    errors
}

fn retryable(arguments: &str, item: &str) -> TokenStream {
    let tokens = |text| TokenStream::from_str(text).expect("tokens");
    expand::retryable(tokens(arguments), tokens(item))
}

fn mistakes(arguments: &str, item: &str) -> Vec<String> {
    errors(&retryable(arguments, item))
}

/// Each mistake is told in turn, and none but these.
#[track_caller]
fn assert_mistakes(found: &[String], expected: &[&str]) {
    let is_told = |(found, expected): (&String, &&str)| found.contains(expected);
    let all = found.len() == expected.len() && found.iter().zip(expected).all(is_told);
    assert!(all, "found: {found:#?}\nexpected: {expected:#?}");
}

const SEND_SMS: &str = "
    /// Sends one SMS.
    #[instrument]
    pub async fn send_sms(
        order_id: u64, phone: &str, #[state] gateway: &SmsGateway, #[context] ctx: &TaskContext,
    ) -> Result<Receipt, SmsError> {
        gateway.send(phone, order_id).await
    }";

#[test]
fn an_expansion_is_two_items_of_one_name_a_struct_of_arguments_and_an_impl() {
    let expected = quote! {
        #[doc = " Sends one SMS."]
        #[allow(non_camel_case_types)]
        pub struct send_sms {}

        #[doc = " Sends one SMS."]
        #[allow(dead_code)]
        pub fn send_sms(order_id: u64, phone: &str) -> ::task_retry::Call<send_sms> {
            ::task_retry::__private::call(__send_sms_args {
                order_id,
                phone: <str as ::std::borrow::ToOwned>::to_owned(phone)
            })
        }

        #[doc(hidden)]
        #[allow(nonstandard_style)]
        #[derive(
            ::task_retry::__private::serde::Serialize,
            ::task_retry::__private::serde::Deserialize
        )]
        #[serde(crate = "::task_retry::__private::serde")]
        pub struct __send_sms_args {
            order_id: ::task_retry::__private::Checked<
                u64, { ::task_retry::__private::argument::<u64>() }
            >,
            phone: ::task_retry::__private::Owned<
                str, { ::task_retry::__private::argument::<<str as ::std::borrow::ToOwned>::Owned>() }
            >
        }

        impl send_sms {
            /// The body alone, for unit tests: nothing is stored, and nothing retried.
            #[instrument]
            pub async fn direct(
                order_id: u64,
                phone: &str,
                gateway: &SmsGateway,
                ctx: &TaskContext,
            ) -> Result<Receipt, SmsError> {
                gateway.send(phone, order_id).await
            }
        }

        const _: () = {
            impl ::task_retry::Retryable for send_sms {
                type Args = __send_sms_args;
                type Returned = ::task_retry::__private::Checked<
                    Result<Receipt, SmsError>,
                    { ::task_retry::__private::returned::<Result<Receipt, SmsError>>() }
                >;
                fn spec() -> ::task_retry::__private::Spec<Self> {
                    ::task_retry::__private::Spec::new(
                        "send_sms",
                        Sources::SendSms,
                        ::core::file!(),
                        ::core::line!(),
                        ::task_retry::__private::probes!(
                            <send_sms as ::task_retry::Retryable>::Returned
                        ),
                    )
                    .policy(
                        ::task_retry::Policy::new()
                            .max_retry(8)
                            .timeout(::core::time::Duration::from_millis(30000))
                    )
                    .needs::<SmsGateway>()
                }
                fn run(
                    __args: Self::Args,
                    __env: ::task_retry::__private::Env
                ) -> impl ::core::future::Future<Output = Self::Returned> + ::core::marker::Send {
                    async move {
                        send_sms::direct(
                            __args.order_id,
                            ::core::borrow::Borrow::<str>::borrow(&__args.phone),
                            __env.state::<SmsGateway>(),
                            __env.context()
                        )
                        .await
                    }
                }
            }
            ::task_retry::__private::inventory::submit! {
                ::task_retry::__private::Registration::of::<send_sms>()
            }
        };
    };
    let found = retryable("source = Sources::SendSms, max_retry = 8, timeout = \"30s\"", SEND_SMS);
    assert_eq!(spaced(found), spaced(expected));
}

/// With the same spaces, whoever wrote the tokens.
fn spaced(tokens: TokenStream) -> String {
    syn::parse2::<syn::File>(tokens).expect("items").into_token_stream().to_string()
}

#[test]
fn every_argument_arrives() {
    let found = retryable(
        "source = 30, name = \"x\", type = SendSms, max_retry = 0, first_execute = \"5s\",
         delay_base = \"1.5m\", delay_multiplier = 10, max_delay = \"1h30m\", jitter = 0.25,
         timeout = \"250ms\", retry_if = a::b, on_exhausted = c::d, concurrency = 4, store_result,
         crate = crate::again",
        "async fn send_sms(#[state] a: Arc<A>, #[arg(secret, default)] r#type: String) {}",
    );
    assert_eq!(errors(&found), Vec::<String>::new());
    let found = found.to_string();
    for expected in [
        quote!(
            struct SendSms {}
        ),
        quote!(fn send_sms(r#type: String) -> crate::again::Call<SendSms>),
        quote!(#[serde(crate = "crate::again::__private::serde")]),
        quote!(#[serde(default)] r#type: ),
        quote!(::argument::<String>(), <String as ::core::default::Default>::default),
        quote!(impl crate::again::Retryable for SendSms),
        quote!("x", 30, ::core::file!(), ::core::line!()),
        quote! {
            .policy(
                crate::again::Policy::new()
                    .max_retry(0)
                    .first_execute(::core::time::Duration::from_millis(5000))
                    .delay_base(::core::time::Duration::from_millis(90000))
                    .delay_multiplier(10.0)
                    .max_delay(::core::time::Duration::from_millis(5400000))
                    .jitter(0.25)
                    .timeout(::core::time::Duration::from_millis(250))
            )
            .retry_if(a::b)
            .on_exhausted(|task, error| ::std::boxed::Box::pin(c::d(task, error)))
            .concurrency(4)
            .store_result()
            .needs::<A>()
            .secret("type")
        },
        quote!(SendSms::direct(__env.shared::<A>(), __args.r#type)),
    ] {
        assert!(found.contains(&expected.to_string()), "{expected}\nis not in\n{found}");
    }
}

#[test]
fn attributes_go_where_they_belong() {
    let found = retryable(
        "source = 30",
        "#[cfg(unix)] #[doc = \"d\"] #[deprecated] #[must_use] #[allow(unused)] #[inline]
         async fn send_sms(#[allow(unused)] a: u8) {}",
    );
    let found = found.to_string();
    let count = |attr: TokenStream| found.matches(&attr.to_string()).count();
    assert_eq!(count(quote!(#[cfg(unix)])), 5, "{found}");
    assert_eq!(count(quote!(#[doc = "d"])), 2, "{found}");
    assert_eq!(count(quote!(#[deprecated])), 1, "{found}");
    assert_eq!(count(quote!(#[must_use])), 1, "{found}");
    assert_eq!(count(quote!(#[inline])), 1, "{found}");
    assert_eq!(count(quote!(#[allow(unused)])), 4, "{found}");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let found = mistakes(
        "sauce = 1, source = 10, max_retry = -1, timeout = \"5\", jitter = 2, jitter = 1, name, 7 +",
        "unsafe extern \"C\" fn send<'a, T>(
            &self, (a, b): T, c: Option<&str>, #[stat] d: u8, #[state] e: u8, #[arg(no)] f: u8,
            #[cfg(x)] g: u8, #[context] h: &C, #[context] i: &C, j: &mut u8, k: &dyn X, ...
         ) -> impl X where T: X {}",
    );
    assert_mistakes(
        &found,
        &[
            "unexpected end of input",
            "`jitter` is given twice",
            "unknown argument `sauce`; did you mean `source`?",
            "source 10 is RocketMQ's",
            "`max_retry` has to be a whole number from 0",
            "`timeout` has to be a duration in the units",
            "`jitter` has to be a number from 0.0 to 1.0",
            "`name` has no value: write `name = \"send-sms\"`",
            "write `async fn send`",
            "write a safe function",
            "cannot be `extern`",
            "a fixed number of arguments",
            "outlives every lifetime",
            "no type parameters",
            "remove the `where` clause",
            "`self` cannot be stored",
            "by its parameter's name",
            "its type cannot borrow",
            "unknown parameter attribute `stat`; did you mean `state`?",
            "write `&T` or `Arc<T>`",
            "unknown `#[arg]` option `no`",
            "put the `#[cfg]` on the function",
            "as in `mut x: T`",
            "a trait object cannot be stored",
            "the context is taken twice",
            "write a type instead of `impl Trait`",
        ],
    );
}

#[test]
fn after_a_mistake_the_function_is_still_there() {
    // In the arguments: the call can be expanded, so that nothing else fails.
    let found = retryable("max_retry = 3", SEND_SMS).to_string();
    assert!(found.contains("compile_error") && found.contains(":: Call < send_sms >"), "{found}");
    // In the function: as it was written, without what only this macro knows.
    let found =
        retryable("source = 30", "fn send_sms(#[state] #[stat] a: &A, #[allow(b)] b: B) {}");
    let expected = quote!(
        fn send_sms(a: &A, #[allow(b)] b: B) {}
    )
    .to_string();
    assert!(found.to_string().ends_with(&expected), "{found}");
    // Not a function at all.
    let found = retryable("source = 30", "struct SendSms;");
    assert_mistakes(&errors(&found), &["goes on an `async fn`"]);
    assert!(found.to_string().ends_with("struct SendSms ;"), "{found}");
}

#[test]
fn a_body_is_never_read() {
    let found = retryable("source = 30", "async fn send_sms(id: u64) { let x = id. }");
    assert_eq!(errors(&found), Vec::<String>::new());
    assert!(found.to_string().contains("let x = id ."));
    assert_mistakes(&mistakes("source = 30", "async fn send_sms(id: u64);"), &["needs a body"]);
}

#[test]
fn a_source_derives_numbers_names_and_policies() {
    let found = source::derive(quote! {
        #[source(retired(77), crate = crate::again)]
        pub enum Sources {
            #[source(30)]
            SendSms,
            #[source(31, max_retry = 8)]
            r#Type,
        }
    });
    let expected = quote! {
        #[automatically_derived]
        impl crate::again::Source for Sources {
            fn number(&self) -> i32 {
                match self {
                    Self::SendSms { .. } => 30i32,
                    Self::r#Type { .. } => 31i32
                }
            }
            fn name(&self) -> &str {
                match self {
                    Self::SendSms { .. } => "SendSms",
                    Self::r#Type { .. } => "Type"
                }
            }
            fn policy(&self) -> crate::again::Policy {
                match self {
                    Self::SendSms { .. } => crate::again::Policy::new(),
                    Self::r#Type { .. } => crate::again::Policy::new().max_retry(8)
                }
            }
        }
    };
    assert_eq!(found.to_string(), expected.to_string());
}

#[test]
fn all_mistakes_of_an_enum_are_told_at_once() {
    let found = errors(&source::derive(quote! {
        #[source(retired(50, 51), retired, krate = x)]
        #[source(retired(52))]
        enum Sources<T> {
            #[source(30)]
            A,
            #[source(30, 31)]
            B,
            #[source(50)]
            C(T),
            #[source(10, timeout = 3)]
            D,
            #[source(max_retries = 3)]
            E,
            #[source(SEND)]
            F,
            G,
        }
    }));
    assert_mistakes(
        &found,
        &[
            "given twice: put everything into one",
            "unknown argument `retired`",
            "unknown argument `krate`; did you mean `crate`?",
            "not generic",
            "expected `name = value`",
            "30 is the number of `A`",
            "has no fields: write `C` alone",
            "50 is retired",
            "RocketMQ",
            "`timeout` has to be a duration in quotes",
            "`E` has no number",
            "unknown argument `max_retries`; did you mean `max_retry`?",
            "written as an integer literal",
            "`G` has no number",
        ],
    );
    assert_mistakes(
        &errors(&source::derive(quote!(
            struct A;
        ))),
        &["variants of an enum"],
    );
    assert_mistakes(
        &errors(&source::derive(quote!(
            enum A {}
        ))),
        &["needs a variant"],
    );
}

/// Random tokens, mostly such as these macros look for.
struct Soup {
    seed: u64,
    words: Vec<TokenTree>,
}

impl Soup {
    fn new(seed: u64) -> Self {
        let words = "async fn struct enum impl for where dyn mut ref self Self crate type const unsafe \
             extern pub in _ x r#type retryable state context arg cfg default secret source name \
             max_retry timeout jitter retry_if concurrency store_result retired str Arc u8 'a 'static \
             30 10 -1 0 1.5 1e999 99999999999999999999 30u8 \"5s\" \"\" \"1h30m\" b\"x\" 'c' # # # = = \
             , , , : : ; < > & & -> => :: . .. ... ! ? | + * @ $ ~";
        let words = TokenStream::from_str(words).expect("tokens").into_iter().collect();
        Self { seed, words }
    }

    fn below(&mut self, end: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.seed >> 33) as usize % end
    }

    fn literal(&mut self) -> Literal {
        let pieces =
            ["1", "30", "9e9", ".", "-", "ms", "s", "m", "h", "d", "e", " ", "\0", "\"", "é", "１"];
        let text: String = (0..self.below(6)).map(|_| pieces[self.below(pieces.len())]).collect();
        match self.below(6) {
            0 => Literal::byte_string(text.as_bytes()),
            1 => Literal::u128_unsuffixed(u128::MAX >> self.below(128)),
            2 => Literal::f64_unsuffixed(f64::MAX / 10_f64.powi(self.below(400) as i32)),
            3 => Literal::string(&text.repeat(200)),
            _ => Literal::string(&text),
        }
    }

    fn token(&mut self, depth: usize) -> TokenTree {
        if self.below(16) == 0 {
            return self.literal().into();
        }
        if depth > 0 && self.below(4) == 0 {
            let delimiters =
                [Delimiter::Parenthesis, Delimiter::Bracket, Delimiter::Brace, Delimiter::None];
            let delimiter = delimiters[self.below(4)];
            return Group::new(delimiter, self.tokens(depth - 1)).into();
        }
        let word = self.below(self.words.len());
        self.words[word].clone()
    }

    fn tokens(&mut self, depth: usize) -> TokenStream {
        (0..self.below(9)).map(|_| self.token(depth)).collect()
    }

    /// Takes away, adds, and doubles tokens.
    fn spoil(&mut self, tokens: TokenStream) -> TokenStream {
        let mut spoilt = TokenStream::new();
        for token in tokens {
            let token = match token {
                TokenTree::Group(group) => {
                    Group::new(group.delimiter(), self.spoil(group.stream())).into()
                }
                token => token,
            };
            match self.below(100) {
                0 => {}
                1 => spoilt.extend([self.token(2), token]),
                2 => spoilt.extend([token.clone(), token]),
                _ => spoilt.extend([token]),
            }
        }
        spoilt
    }
}

#[test]
fn no_tokens_make_the_macros_panic() {
    let arguments = quote! {
        source = 30, type = X, max_retry = 8, timeout = "5s", jitter = 0.1, retry_if = a::b, store_result
    };
    let function = TokenStream::from_str(SEND_SMS).unwrap();
    let sources = quote! {
        #[source(retired(77), crate = x)]
        enum Sources { #[source(30)] A, #[source(31, timeout = "5s")] B }
    };
    let mut soup = Soup::new(1);
    let mut valid = 0;
    // `TASK_RETRY_FUZZ_SECONDS=60` goes on for longer.
    let seconds =
        std::env::var("TASK_RETRY_FUZZ_SECONDS").map_or(0.0, |text| text.parse().unwrap());
    let (began, time) = (Instant::now(), Duration::from_secs_f64(seconds));
    for round in 0.. {
        if round >= 2_000 && began.elapsed() >= time {
            break;
        }
        expand::retryable(soup.tokens(3), soup.tokens(3));
        source::derive(soup.tokens(3));
        source::derive(soup.spoil(sources.clone()));
        expand::retryable(soup.spoil(arguments.clone()), soup.tokens(3));
        let spoilt = expand::retryable(soup.spoil(arguments.clone()), soup.spoil(function.clone()));
        if errors(&spoilt).is_empty() && syn::parse2::<syn::File>(spoilt).is_ok() {
            valid += 1;
        }
    }
    assert!(valid > 10, "the soup is too thick to come by anything valid");
}
