//! An [xxl-job](https://www.xuxueli.com/xxl-job/) admin triggers the retries: with the feature
//! `xxl-job`, a program is an executor of such an admin.
//!
//! With the section `xxl-job` in the configuration, or [`Builder::xxl_job`](crate::Builder::xxl_job),
//! [`start`](crate::Builder::start) registers the program at the admin, and
//! [`shutdown`](crate::TaskRetry::shutdown) removes it again. Calls are stored, and first run, as ever; retries, and what was
//! stored for later or by a transaction, wait until the admin triggers the pass. Both at once,
//! the workers' own looking as well, come with `with-workers: true`; without xxl-job's part, `job: false`.
//!
//! ```standalone_crate
//! use task_retry::xxl_job::XxlJobConfig;
//! use task_retry::{TaskRetry, retryable};
//!
//! /// Sends one SMS.
//! #[retryable(source = 30)]
//! async fn send_sms(order_id: u64) -> Result<u64, String> {
//!     Ok(order_id)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut xxl_job = XxlJobConfig::new("http://127.0.0.1:8080/xxl-job-admin");
//! xxl_job.access_token = Some("default_token".to_owned());
//! # xxl_job.port = 0;
//! # xxl_job.log_path = Some(std::env::temp_dir().join(format!("task-retry-doc-{}", std::process::id())));
//!
//! let retry = TaskRetry::builder()
//!     .project("shop")
//!     .database("sqlite::memory:")
//!     .xxl_job(xxl_job)
//!     .start() // also if the admin is away: it is told of us when it is back
//!     .await?;
//! send_sms(42).await?;
//! retry.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Jobs
//!
//! In the admin, an executor with the `app-name` (by default the project), registered by itself; then
//! jobs of the type BEAN:
//!
//! | `JobHandler` | parameter | does |
//! | --- | --- | --- |
//! | `taskRetryJob` | `blank`, or nothing | [`run_due`](crate::TaskRetry::run_due): runs what is due, and ends when that has ended |
//! | `taskRetryJob` | `7233190012345678901,7233190012345678902` | runs these tasks, whatever their status |
//! | `removeHistory` | | [`remove_history`](crate::TaskRetry::remove_history) |
//!
//! Every routing is fine. With the sharding broadcast each executor runs its share of the due tasks
//! ([`run_due_shard`](crate::TaskRetry::run_due_shard)). A run in which tasks fail is a success: these are retried by
//! later runs. It has failed if the database could not be asked. Its message says how many tasks
//! ended how, and its log, page by page in the admin, each task.
//!
//! A run that is killed, replaced (`COVER_EARLY`) or timed out claims nothing more. Tasks that it had begun go
//! on to their end under their leases; a `timeout` of their own stops them.
//!
//! # Admins
//!
//! 2.3 to 3.5. One thing cannot be served in all dialects at once, the shape of callbacks; by default
//! both are tried, see [`CallbackShape`]. The logs of runs, and the ends that the admin was not told of, are in
//! the folder `log-path`; a run whose process is killed is told as failed after the restart.
//!
//! The executor listens on `ip`, by default on loopback only, and elsewhere only with an access token.
//! Admins speak plain HTTP to executors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

mod admin;
mod journal;
mod protocol;
mod runs;
mod server;
mod work;

use self::admin::Admin;
use self::journal::{Journal, SWEEP};
use self::runs::Runs;
use self::server::Server;
pub use crate::config::xxl_job::{CallbackShape, XxlJobConfig};
use crate::runtime::Inner;
use crate::{Error, ErrorKind, Result};

/// Admins take an executor for dead after three times that.
const BEAT: Duration = Duration::from_secs(30);
/// When the admin is told again of what it did not take.
const AGAIN: Duration = Duration::from_secs(30);
/// Ends of runs in one message to the admin.
const BATCH: usize = 50;

/// An executor that has its port and its folder.
pub(crate) struct Prepared {
    config: XxlJobConfig,
    listener: TcpListener,
    journal: Journal,
    admin: Admin,
    token: Option<HeaderValue>,
    own: String,
}

impl Prepared {
    pub(crate) async fn new(config: XxlJobConfig, project: &str) -> Result<Self> {
        let refuse = |message: String| Error::new(ErrorKind::Config, message);
        let app_name = config.app_name.clone().unwrap_or_else(|| project.to_owned());
        crate::config::xxl_job::app_name(&app_name).map_err(|error| {
            refuse(format!("task-retry.xxl-job.app-name is {app_name:?}, the project: {error}"))
        })?;
        let mut token =
            config.access_token.as_deref().map(HeaderValue::from_str).transpose().map_err(
                |_| refuse("task-retry.xxl-job.access-token cannot stand in a header".to_owned()),
            )?;
        token.iter_mut().for_each(|token| token.set_sensitive(true));
        let asked = SocketAddr::new(config.ip, config.port);
        let listener = TcpListener::bind(asked).await.map_err(|error| {
            refuse(format!(
                "xxl-job's executor cannot listen on {asked}: is another one there, or is it not an \
                 address of this machine? `ip` and `port` of the section `xxl-job` say where"
            ))
            .with_source(error)
        })?;
        let address = listener.local_addr().unwrap_or(asked);
        let own = config.address.clone().unwrap_or_else(|| format!("http://{address}/"));
        let folder = config.log_path.clone();
        let folder = folder.unwrap_or_else(|| format!("logs/xxl-job-{}", address.port()).into());
        let journal = Journal::open(folder)?;
        let admin = Admin::new(&config, app_name, own.clone(), token.clone()).map_err(|error| {
            refuse("no certificates to know an https admin by: install ca-certificates".to_owned())
                .with_source(error)
        })?;
        Ok(Self { config, listener, journal, admin, token, own })
    }

    pub(crate) fn with_workers(&self) -> bool {
        self.config.with_workers
    }

    /// Runs until the runtime closes.
    pub(crate) fn start(self, inner: &Arc<Inner>) {
        let end = CancellationToken::new();
        let _ = inner.executor.set(end.clone());
        info!(address = self.own, log_path = ?self.journal.folder(), "xxl-job's executor has started");
        let inner = inner.clone();
        inner.handle.clone().spawn(async move {
            // Also when it panics: the shutdown waits for it.
            let _end = end.drop_guard();
            self.run(inner).await;
        });
    }

    async fn run(self, inner: Arc<Inner>) {
        let runs = Arc::new(Runs::new(inner.clone(), self.journal));
        let server = Arc::new(Server { runs: runs.clone(), token: self.token });
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server::serve(server, self.listener, stop.clone()));
        let admin = &self.admin;
        let days = self.config.log_retention_days;
        let work = async {
            tokio::join!(
                keep_registered(&inner, admin),
                tell(&inner, &runs, admin),
                sweep(&inner, &runs, days)
            )
        };
        tokio::select! {
            () = inner.closing.cancelled() => {}
            _ = work => {}
        }
        // No admin sends anything to one that is not registered.
        match admin.unregister().await {
            Ok(()) => debug!("xxl-job's executor is no longer registered"),
            Err(error) => debug!(error, "xxl-job's executor cannot be unregistered"),
        }
        runs.close(inner.grace).await;
        if let Err(error) = tell_all(&runs, admin).await {
            warn!(
                error,
                "the admin was not told of the ends of all runs; after the next start it is"
            );
        }
        stop.cancel();
        let _ = serving.await;
    }
}

/// Tells the admin again and again that this executor is there.
async fn keep_registered(inner: &Inner, admin: &Admin) {
    let mut registered = None;
    loop {
        let told = admin.register().await;
        // What has not changed is not worth a line.
        let news = registered != Some(told.is_ok());
        registered = Some(told.is_ok());
        match told {
            Ok(()) if news => info!("xxl-job's executor is registered"),
            Ok(()) => {}
            Err(error) if news => {
                warn!(error, "xxl-job's executor cannot be registered now; trying every 30 s");
            }
            Err(error) => debug!(error, "xxl-job's executor cannot be registered"),
        }
        inner.clock.sleep(BEAT).await;
    }
}

/// Tells the admin of the ends of runs, as they come.
async fn tell(inner: &Inner, runs: &Runs, admin: &Admin) {
    let mut away = false;
    loop {
        match tell_all(runs, admin).await {
            Ok(()) => {
                away = false;
                runs.ended.notified().await;
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    warn!(
                        error,
                        "the admin cannot be told of the ends of runs now; trying every 30 s"
                    );
                }
                inner.clock.sleep(AGAIN).await;
            }
        }
    }
}

async fn tell_all(runs: &Runs, admin: &Admin) -> Result<(), String> {
    loop {
        let ends = runs.batch(BATCH);
        if ends.is_empty() {
            return Ok(());
        }
        admin.callback(&ends).await?;
        runs.told(&ends);
    }
}

async fn sweep(inner: &Inner, runs: &Runs, days: u32) {
    loop {
        runs.sweep(days);
        inner.clock.sleep(SWEEP).await;
    }
}
