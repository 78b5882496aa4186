//! The section `xxl-job`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::Config;
use super::keys::{Value, whole};

/// The section `xxl-job` of the configuration: how an xxl-job admin is reached, and how it reaches
/// this program.
///
/// A field is named like its key, and has its variable: `TASK_RETRY__XXL_JOB__PORT=9999`. These are
/// the defaults; `admin-addresses` has to be given:
///
/// ```yaml
/// task-retry:
///   xxl-job:
///     admin-addresses: http://127.0.0.1:8080/xxl-job-admin
///     # access-token: none
///     # app-name: the project
///     # address: http://{ip}:{port}/
///     ip: 127.0.0.1
///     port: 9999
///     # log-path: logs/xxl-job-{port}
///     log-retention-days: 30
///     callback-shape: auto
///     timeout-second: 3
///     with-workers: false
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct XxlJobConfig {
    /// The addresses of the admin, with its context path, as a list or with commas between them:
    /// `http://10.0.0.5:8080/xxl-job-admin`. The first one that answers is told.
    pub admin_addresses: Vec<String>,
    /// The token that admin and executor show each other. Needed where [`ip`](Self::ip) is more than
    /// loopback. It is never shown or logged. Default: none.
    pub access_token: Option<String>,
    /// The executor's name, `AppName` in the admin. Default: the project.
    pub app_name: Option<String>,
    /// The URL at which the admin finds this executor, where it is not `http://{ip}:{port}/`.
    pub address: Option<String>,
    /// The address to listen on, and the one that the admin is told. Default `127.0.0.1`.
    pub ip: IpAddr,
    /// The port to listen on; 0: any that is free. Default 9999.
    pub port: u16,
    /// A folder for the logs of runs and for what the admin is still to be told; each executor needs
    /// one of its own, which survives its restart. Default: `logs/xxl-job-{port}` below the working
    /// folder.
    pub log_path: Option<PathBuf>,
    /// How many days these are kept. 1 to 3650, default 30.
    pub log_retention_days: u32,
    /// How the admin wants to be told of the ends of runs. Default [`CallbackShape::Auto`].
    pub callback_shape: CallbackShape,
    /// How long to wait for an answer of the admin, in seconds. 1 to 60, default 3.
    pub timeout_second: u64,
    /// Whether the workers look for due tasks and remove history by themselves as well. Default
    /// `false`: only when the admin says so.
    pub with_workers: bool,
}

/// How an admin wants to be told of the ends of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CallbackShape {
    /// `auto`: as the array; if that is refused, as the object.
    #[default]
    Auto,
    /// `array`: `[…]`, admins up to 3.4.
    Array,
    /// `object`: `{"callbackList":[…]}`, admins from 3.5.
    Object,
}

impl Default for XxlJobConfig {
    fn default() -> Self {
        Self {
            admin_addresses: Vec::new(),
            access_token: None,
            app_name: None,
            address: None,
            ip: Ipv4Addr::LOCALHOST.into(),
            port: 9999,
            log_path: None,
            log_retention_days: 30,
            callback_shape: CallbackShape::Auto,
            timeout_second: 3,
            with_workers: false,
        }
    }
}

impl XxlJobConfig {
    /// The defaults, with an admin at this address, or at these, with commas between them.
    pub fn new(admin_addresses: &str) -> Self {
        Self { admin_addresses: split(admin_addresses), ..Self::default() }
    }

    /// What is wrong with the section as a whole; each begins with its key.
    pub(super) fn lacks(&self) -> Vec<String> {
        let mut lacks = Vec::new();
        if self.admin_addresses.is_empty() {
            lacks.push(
                "admin-addresses is missing: give the admin's URL, such as \
                 `http://127.0.0.1:8080/xxl-job-admin`"
                    .to_owned(),
            );
        }
        for address in self.admin_addresses.iter().chain(&self.address) {
            let key =
                if Some(address) == self.address.as_ref() { "address" } else { "admin-addresses" };
            if let Err(error) = url(address) {
                lacks.push(format!("{key} is {address:?}: {error}"));
            }
        }
        let token = self.access_token.as_deref();
        if token.is_some_and(|token| !token.chars().all(|c| c.is_ascii_graphic())) {
            lacks.push("access-token must be printable ASCII without spaces".to_owned());
        }
        if token.is_none() && !self.ip.is_loopback() {
            lacks.push(format!(
                "access-token is missing: with ip {} whoever reaches this machine can trigger jobs; set \
                 the admin's token, or listen on 127.0.0.1",
                self.ip
            ));
        }
        if self.ip.is_unspecified() && self.address.is_none() {
            lacks.push(format!(
                "address is missing: {} is no address at which the admin finds this executor; give its \
                 URL, such as `http://10.0.0.7:{}/`",
                self.ip, self.port
            ));
        }
        if let Some(name) = &self.app_name
            && let Err(error) = app_name(name)
        {
            lacks.push(format!("app-name is {name:?}: {error}"));
        }
        lacks
    }
}

/// What goes into a header and into the admin's table.
pub(crate) fn app_name(name: &str) -> Result<(), &'static str> {
    if !name.is_empty() && name.len() <= 64 && name.chars().all(|c| c.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("it must be 1 to 64 printable ASCII characters without spaces")
    }
}

fn url(address: &str) -> Result<(), &'static str> {
    let rest = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://"));
    let host = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let parsed = address.parse::<axum::http::Uri>();
    match host.is_empty() || address.contains(['?', '#', '@']) || parsed.is_err() {
        true => Err("it must be a URL such as `http://127.0.0.1:8080/xxl-job-admin`"),
        false => Ok(()),
    }
}

fn split(addresses: &str) -> Vec<String> {
    let parts = addresses.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(str::to_owned).collect()
}

impl fmt::Debug for XxlJobConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XxlJobConfig")
            .field("admin_addresses", &self.admin_addresses)
            .field("access_token", &self.access_token.as_ref().map(|_| "…"))
            .field("app_name", &self.app_name)
            .field("address", &self.address)
            .field("ip", &self.ip)
            .field("port", &self.port)
            .field("log_path", &self.log_path)
            .field("log_retention_days", &self.log_retention_days)
            .field("callback_shape", &self.callback_shape)
            .field("timeout_second", &self.timeout_second)
            .field("with_workers", &self.with_workers)
            .finish()
    }
}

/// The section, made if it was not there.
pub(super) fn xxl_job(config: &mut Config) -> &mut XxlJobConfig {
    config.xxl_job.get_or_insert_default()
}

/// Where a value of the section goes that is neither a number nor a switch.
pub(super) enum Slot<'a> {
    Text(&'a mut Option<String>),
    /// A text that no error may show.
    Secret(&'a mut Option<String>),
    Texts(&'a mut Vec<String>),
    Ip(&'a mut IpAddr),
    Port(&'a mut u16),
    Folder(&'a mut Option<PathBuf>),
    Shape(&'a mut CallbackShape),
}

impl Slot<'_> {
    pub(super) fn value(self) -> Value {
        let text = |text: Option<String>| text.map_or(Value::Null, Value::Str);
        match self {
            Self::Text(place) | Self::Secret(place) => text(place.clone()),
            Self::Texts(place) => Value::List(place.iter().cloned().map(Value::Str).collect()),
            Self::Ip(place) => Value::Str(place.to_string()),
            Self::Port(place) => Value::Int((*place).into()),
            Self::Folder(place) => text(place.as_ref().map(|path| path.display().to_string())),
            Self::Shape(place) => Value::Str(place.name().to_owned()),
        }
    }

    pub(super) fn set(self, value: &Value) -> Result<(), String> {
        match self {
            Self::Text(place) => *place = text(value)?,
            Self::Secret(place) => {
                *place = text(value).map_err(|_| "not a text: put it in quotes".to_owned())?;
            }
            Self::Texts(place) => *place = texts(value)?,
            Self::Ip(place) => {
                let given = text(value)?.unwrap_or_default();
                *place = given.parse().map_err(|_| {
                    format!("{value}: it must be an address of this machine, such as 127.0.0.1")
                })?;
            }
            Self::Port(place) => *place = whole(value, 0..=u16::MAX)?,
            // A path that is no UTF-8 comes from the builder, and stays.
            Self::Folder(place) => match text(value)? {
                Some(path) if place.as_ref().is_some_and(|it| it.display().to_string() == path) => {
                }
                path => *place = path.map(PathBuf::from),
            },
            Self::Shape(place) => {
                let named = |shape: &CallbackShape| matches!(value, Value::Str(name) if name == shape.name());
                *place = *CallbackShape::ALL.iter().find(|shape| named(shape)).ok_or_else(|| {
                    format!(
                        "{value}: it must be `auto`, `array` (admins up to 3.4) or `object` (admins from \
                         3.5)"
                    )
                })?;
            }
        }
        Ok(())
    }
}

impl CallbackShape {
    const ALL: [Self; 3] = [Self::Auto, Self::Array, Self::Object];

    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Array => "array",
            Self::Object => "object",
        }
    }
}

/// An empty text is none: templates leave such.
fn text(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Str(text) => {
            Ok(Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned))
        }
        _ => Err(format!("{value}: it must be a text, put it in quotes")),
    }
}

fn texts(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::List(values) => {
            let mut texts = Vec::new();
            for value in values {
                texts.extend(split(&text(value)?.unwrap_or_default()));
            }
            Ok(texts)
        }
        _ => Ok(split(&text(value)?.unwrap_or_default())),
    }
}
