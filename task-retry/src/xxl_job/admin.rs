//! The client to the admin.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::{Deserialize, Serialize};

use super::protocol::{Ended, Registration, SUCCESS, array, object};
use super::{CallbackShape, XxlJobConfig};

pub(super) const TOKEN: HeaderName = HeaderName::from_static("xxl-job-access-token");
const APP_NAME: HeaderName = HeaderName::from_static("xxl-job-appname");
/// The admin's answers are small.
const ANSWER: usize = 64 << 10;

pub(super) struct Admin {
    client: Http,
    addresses: Vec<String>,
    token: Option<HeaderValue>,
    app_name: String,
    /// The URL of this executor.
    own: String,
    timeout: Duration,
    shape: CallbackShape,
    /// The object was taken last.
    prefers_object: AtomicBool,
}

enum Http {
    Plain(Client<HttpConnector, Full<axum::body::Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<axum::body::Bytes>>),
}

/// Why an admin did not do what it was asked.
enum Refusal {
    /// It did not answer.
    Away(String),
    /// It answered something else than code 200.
    Refused(String),
}

impl Refusal {
    fn text(self) -> String {
        match self {
            Self::Away(text) | Self::Refused(text) => text,
        }
    }
}

impl Admin {
    /// # Errors
    /// If an admin is to be reached by https, and this machine has no certificates to know it by.
    pub(super) fn new(
        config: &XxlJobConfig,
        app_name: String,
        own: String,
        token: Option<HeaderValue>,
    ) -> std::io::Result<Self> {
        // Connections are not kept: there is one request in 30 s, and admins restart.
        let mut builder = Client::builder(TokioExecutor::new());
        let builder = builder.pool_max_idle_per_host(0);
        let client = if config.admin_addresses.iter().any(|address| address.starts_with("https:")) {
            let connector = hyper_rustls::HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(rustls::crypto::ring::default_provider())?
                .https_or_http()
                .enable_http1()
                .build();
            Http::Tls(builder.build(connector))
        } else {
            Http::Plain(builder.build(HttpConnector::new()))
        };
        let trim = |address: &String| address.trim_end_matches('/').to_owned();
        Ok(Self {
            client,
            addresses: config.admin_addresses.iter().map(trim).collect(),
            token,
            app_name,
            own,
            timeout: Duration::from_secs(config.timeout_second),
            shape: config.callback_shape,
            prefers_object: AtomicBool::new(false),
        })
    }

    /// Tells the first admin that answers that this executor is there.
    pub(super) async fn register(&self) -> Result<(), String> {
        self.tell_first("registry", &self.registration()).await
    }

    pub(super) async fn unregister(&self) -> Result<(), String> {
        self.tell_first("registryRemove", &self.registration()).await
    }

    fn registration(&self) -> Registration<'_> {
        Registration {
            registry_group: "EXECUTOR",
            registry_key: &self.app_name,
            registry_value: &self.own,
        }
    }

    /// Tells the first admin that takes it of the ends of runs.
    pub(super) async fn callback(&self, ends: &[Ended]) -> Result<(), String> {
        let (array, object) = (array(ends), object(ends));
        let mut mistakes = Vec::new();
        for address in &self.addresses {
            let prefers = self.prefers_object.load(Ordering::Relaxed);
            let shapes = match self.shape {
                CallbackShape::Array => &[false][..],
                CallbackShape::Object => &[true][..],
                CallbackShape::Auto => &[prefers, !prefers][..],
            };
            for is_object in shapes {
                let told = match is_object {
                    true => self.post(address, "callback", &object).await,
                    false => self.post(address, "callback", &array).await,
                };
                match told {
                    Ok(()) => {
                        self.prefers_object.store(*is_object, Ordering::Relaxed);
                        return Ok(());
                    }
                    Err(Refusal::Away(text)) => {
                        mistakes.push(format!("{address}: {text}"));
                        break;
                    }
                    Err(Refusal::Refused(text)) => mistakes.push(format!("{address}: {text}")),
                }
            }
        }
        mistakes.dedup();
        Err(mistakes.join("; "))
    }

    async fn tell_first(&self, what: &str, body: &impl Serialize) -> Result<(), String> {
        let mut mistakes = Vec::new();
        for address in &self.addresses {
            match self.post(address, what, body).await {
                Ok(()) => return Ok(()),
                Err(refusal) => mistakes.push(format!("{address}: {}", refusal.text())),
            }
        }
        Err(mistakes.join("; "))
    }

    async fn post(&self, address: &str, what: &str, body: &impl Serialize) -> Result<(), Refusal> {
        match tokio::time::timeout(self.timeout, self.ask(address, what, body)).await {
            Ok(answer) => answer,
            Err(_) => Err(Refusal::Away(format!("no answer in {:?}", self.timeout))),
        }
    }

    async fn ask(&self, address: &str, what: &str, body: &impl Serialize) -> Result<(), Refusal> {
        let away = |error: &dyn std::error::Error| Refusal::Away(with_sources(error));
        let body = serde_json::to_vec(body).map_err(|error| away(&error))?;
        let mut request = Request::post(format!("{address}/api/{what}"))
            .header(CONTENT_TYPE, "application/json;charset=UTF-8")
            .header(APP_NAME, &self.app_name);
        if let Some(token) = &self.token {
            request = request.header(TOKEN, token);
        }
        let request = request.body(Full::from(body)).map_err(|error| away(&error))?;
        let response = match &self.client {
            Http::Plain(client) => client.request(request).await,
            Http::Tls(client) => client.request(request).await,
        }
        .map_err(|error| away(&error))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), ANSWER).collect().await;
        let answer = answer.map_err(|error| away(&*error))?.to_bytes();
        judge(status, &answer).map_err(Refusal::Refused)
    }
}

/// The admin says with 200 what went wrong: a wrong token, for instance, and once nothing at all.
fn judge(status: StatusCode, answer: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Told {
        code: i32,
        msg: Option<String>,
    }
    if status != StatusCode::OK {
        return Err(format!("it answered {status}: is this the admin's address and context path?"));
    }
    match serde_json::from_slice::<Told>(answer) {
        Ok(told) if told.code == SUCCESS => Ok(()),
        Ok(Told { code, msg }) => {
            let msg: String = msg.unwrap_or_default().chars().take(300).collect();
            Err(format!("it answered code {code}: {msg:?}"))
        }
        Err(_) if answer.is_empty() => Err("its answer was empty".to_owned()),
        Err(_) => {
            Err("its answer was no JSON with a code: is this the admin's address?".to_owned())
        }
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_200_is_yes() {
        assert_eq!(judge(StatusCode::OK, br#"{"code":200,"msg":null}"#), Ok(()));
        for (answer, expected) in [
            (
                &br#"{"code":500,"msg":"The access token is wrong."}"#[..],
                "The access token is wrong.",
            ),
            (br#"{"code":203}"#, "code 203"),
            (b"", "empty"),
            (b"<html>", "no JSON"),
        ] {
            assert!(judge(StatusCode::OK, answer).unwrap_err().contains(expected));
        }
        assert!(judge(StatusCode::NOT_FOUND, b"").unwrap_err().contains("context path"));
    }
}
