//! At module level, inside function bodies, in nested modules, from macros, under `cfg`.
#![deny(warnings)]

use task_retry::{Retryable, retryable};

fn takes<R: Retryable>(_: task_retry::Call<R>) {}

mod outer {
    pub(crate) mod inner {
        use task_retry::retryable;

        #[retryable(source = 30)]
        pub(in crate::outer) async fn restricted() {}

        #[retryable(source = 31)]
        pub(super) async fn parent() {}

        #[retryable(source = 32)]
        pub(self) async fn own() {}

        pub(crate) fn all() {
            super::super::takes(own());
        }
    }

    pub(crate) fn all() {
        super::takes(inner::restricted());
        super::takes(inner::parent());
        inner::all();
    }
}

macro_rules! durable {
    ($vis:vis $name:ident, $source:expr, $wait:literal, ($($arg:ident: $ty:ty),*) -> $out:ty, $body:block) => {
        #[retryable(source = $source, timeout = $wait)]
        $vis async fn $name($($arg: $ty),*) -> $out $body
    };
}

durable!(pub(crate) generated, 33, "5s", (text: &str, count: Option<u64>) -> Result<usize, String>, {
    Ok(text.len() + count.unwrap_or(0) as usize)
});
durable!(private, 30 + 4, "5s", () -> Result<(), String>, { Ok(()) });

#[retryable(source = 35)]
#[cfg(any())]
async fn absent(what: DoesNotExist) -> AlsoNot {}

#[cfg(any())]
#[retryable(source = 36)]
async fn absent(what: DoesNotExist) -> AlsoNot {}

#[retryable(source = 36)]
#[cfg(all())]
#[cfg_attr(all(), allow(unused_variables))]
async fn present(what: u8) {}

#[retryable(source = 37)]
#[deprecated]
#[must_use = "only a stored call is safe"]
#[inline]
#[expect(unused_variables)]
async fn old(what: u8) {}

mod reexport {
    pub(crate) use task_retry as again;
}

#[retryable(source = 38, crate = crate::reexport::again)]
async fn renamed(text: &str) -> Result<usize, String> {
    Ok(text.len())
}

fn main() {
    #[derive(Clone, serde::Serialize, serde::Deserialize)]
    struct Local(u8);

    #[retryable(source = 39)]
    async fn local(a: &Local, b: Local) -> Result<u8, String> {
        #[retryable(source = 40)]
        async fn deeper() {}

        takes(deeper());
        Ok(a.0 + b.0)
    }

    takes(local(&Local(1), Local(2)));
    takes(generated("x", None));
    takes(private());
    takes(present(1));
    takes(renamed("x"));
    outer::all();
}
