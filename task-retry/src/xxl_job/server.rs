//! The server: what the admin asks of the executor.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::admin::TOKEN;
use super::protocol::{Answer, LogAsked, OfJob, Trigger};
use super::runs::Runs;

/// A trigger is a few hundred bytes; the sources that it may carry are for other kinds of jobs.
const BODY: usize = 1 << 20;
/// How long a request may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(10);
const CONNECTIONS: usize = 256;

pub(super) struct Server {
    pub(super) runs: Arc<Runs>,
    pub(super) token: Option<HeaderValue>,
}

/// Serves until it is told to stop, then lets begun answers end.
pub(super) async fn serve(server: Arc<Server>, listener: TcpListener, stop: CancellationToken) {
    let router = Router::new().fallback(answer).with_state(server);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = GracefulShutdown::new();
    loop {
        let place = tokio::select! {
            place = places.clone().acquire_owned() => place,
            () = stop.cancelled() => break,
        };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Of one connection, or out of files.
                    warn!(%error, "xxl-job's executor cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(Duration::from_secs(60))
            .serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            let _place = place;
            if let Err(error) = connection.await {
                debug!(%error, "a connection to xxl-job's executor ended");
            }
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(Duration::from_secs(2), connections.shutdown()).await;
}

/// Every answer has status 200: admins look at nothing else otherwise.
async fn answer(State(server): State<Arc<Server>>, request: Request<Body>) -> Json<Answer> {
    let (head, body) = request.into_parts();
    if head.method != Method::POST {
        return Json(Answer::refusal(format!("{} is not served here: POST is", head.method)));
    }
    if !server.admits(&head.headers) {
        return Json(Answer::refusal("The access token is wrong."));
    }
    let body = match tokio::time::timeout(ARRIVAL, to_bytes(body, BODY)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let message = format!("the request has more than {BODY} bytes, or was cut off");
            return Json(Answer::refusal(message));
        }
        Err(_) => return Json(Answer::refusal(format!("the request took more than {ARRIVAL:?}"))),
    };
    Json(server.obey(head.uri.path(), &body).await)
}

impl Server {
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let given = headers.get(TOKEN).map_or(&[][..], HeaderValue::as_bytes);
        given.ct_eq(token.as_bytes()).into()
    }

    async fn obey(&self, path: &str, body: &[u8]) -> Answer {
        // Admins write `//run` where the address ends with a slash, and there may be a prefix.
        let what = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or_default();
        match what {
            "beat" => Answer::ok(),
            "idleBeat" => read(body, |OfJob { job_id }| match self.runs.is_busy(job_id) {
                false => Answer::ok(),
                true => Answer::refusal("the job runs, or waits to run"),
            }),
            // The second one since 3.5.
            "run" | "trigger" => read(body, |trigger: Trigger| self.runs.trigger(&trigger)),
            "kill" => read(body, |OfJob { job_id }| {
                self.runs.kill(job_id);
                Answer::ok()
            }),
            "log" => match serde_json::from_slice::<LogAsked>(body) {
                Ok(asked) => {
                    let runs = self.runs.clone();
                    match tokio::task::spawn_blocking(move || runs.log(&asked)).await {
                        Ok(page) => Answer::page(page),
                        Err(_) => Answer::refusal("the log cannot be read"),
                    }
                }
                Err(error) => unreadable(&error),
            },
            _ => Answer::refusal(format!(
                "there is nothing at {path}: beat, idleBeat, run, trigger, kill and log are here"
            )),
        }
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8], then: impl FnOnce(T) -> Answer) -> Answer {
    match serde_json::from_slice(body) {
        Ok(asked) => then(asked),
        Err(error) => unreadable(&error),
    }
}

fn unreadable(error: &serde_json::Error) -> Answer {
    Answer::refusal(format!("the request is not understood: {error}"))
}
