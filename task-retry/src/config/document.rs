//! YAML and TOML: both become the same small tree.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Config;
use super::keys::{Loader, Spelling, Value, is_ours_alone, uniform};
use crate::error::{Error, ErrorKind, Result};

impl Config {
    /// Reads the section `task-retry` of a YAML document, such as a Spring `application.yml`; other
    /// sections are ignored, and without that section it is the defaults.
    ///
    /// ```
    /// use task_retry::Config;
    ///
    /// let config = Config::from_yaml(
    ///     "
    ///     spring: { application: { name: shop } }
    ///     task-retry:
    ///       task-limit: 20
    ///       thread-pool-param: { maxPoolSize: 8 }
    ///     ",
    /// )?;
    /// assert_eq!(config.task_limit, 20);
    /// assert_eq!(config.thread_pool_param.max_pool_size, 8);
    /// assert_eq!(config.task_max_retry, 4);
    ///
    /// let error = Config::from_yaml("task-retry: { task-limt: 20 }").unwrap_err();
    /// assert!(error.to_string().contains("did you mean `task-limit`?"));
    /// # Ok::<(), task_retry::Error>(())
    /// ```
    pub fn from_yaml(text: &str) -> Result<Self> {
        // Without snippets: the rest of the document may hold passwords.
        let options = serde_saphyr::options! {
            with_snippet: false,
            null_as_string: true,
            non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
        };
        match serde_saphyr::from_str_with_options::<Document>(text, options) {
            Ok(document) => document.load(),
            Err(serde_saphyr::Error::MultipleDocuments { .. }) => Err(Error::new(
                ErrorKind::Config,
                "more than one YAML document: put `task-retry` into a file of its own",
            )),
            Err(error) => Err(Error::new(ErrorKind::Config, "not valid YAML").with_source(error)),
        }
    }

    /// Reads the table `task-retry` of a TOML document; other tables are ignored, and without that
    /// table it is the defaults.
    ///
    /// ```
    /// use task_retry::Config;
    ///
    /// let config = Config::from_toml("[task-retry]\ntask-limit = 20\ntime-zone = '+08:00'")?;
    /// assert_eq!(config.task_limit, 20);
    /// assert_eq!(config.time_zone.to_string(), "+08:00");
    /// # Ok::<(), task_retry::Error>(())
    /// ```
    pub fn from_toml(text: &str) -> Result<Self> {
        let document: Document = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            let message = format!("not valid TOML: line {line}: {}", error.message());
            Error::new(ErrorKind::Config, message)
        })?;
        document.load()
    }

    /// Reads a file, by its extension: `.yaml` and `.yml` as [`from_yaml`](Self::from_yaml) does,
    /// `.toml` as [`from_toml`](Self::from_toml).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let shown = path.display();
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let parse = match extension.to_str() {
            Some("yaml" | "yml") => Self::from_yaml,
            Some("toml") => Self::from_toml,
            _ => {
                let message = format!("{shown}: a configuration file is .yaml, .yml or .toml");
                return Err(Error::new(ErrorKind::Config, message));
            }
        };
        let text = std::fs::read_to_string(path).map_err(|error| {
            Error::new(ErrorKind::Config, format!("cannot read {shown}")).with_source(error)
        })?;
        parse(&text)
            .map_err(|error| Error::new(ErrorKind::Config, format!("{shown}")).with_source(error))
    }
}

#[derive(Default)]
struct Document {
    /// Paths below `task-retry`, and what stands there; Spring also allows
    /// `task-retry.task-limit: 50` at the top.
    ours: Vec<(String, Value)>,
    /// Keys that can only be meant for that section, but stand beside it.
    stray: Vec<String>,
}

impl Document {
    fn load(self) -> Result<Config> {
        let mut loader = Loader::new(Config::default(), Spelling::Keys);
        for (path, value) in &self.ours {
            if path.is_empty() { loader.put_section("", value) } else { loader.put(path, value) }
        }
        if self.ours.is_empty() {
            self.stray.iter().for_each(|name| loader.stray(name));
        }
        loader.finish()
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sections;

        impl<'de> Visitor<'de> for Sections {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("sections, `task-retry` among them")
            }

            fn visit_unit<E>(self) -> Result<Document, E> {
                Ok(Document::default())
            }

            /// serde's own error would quote the whole text.
            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Document, E> {
                Err(E::custom("it is one text, and not sections, `task-retry` among them"))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
                let mut document = Document::default();
                while let Some(name) = map.next_key::<String>()? {
                    let (section, path) = name.split_once('.').unwrap_or((&name, ""));
                    if uniform(section) == "taskretry" {
                        document.ours.push((path.to_owned(), map.next_value()?));
                        continue;
                    }
                    map.next_value::<IgnoredAny>()?;
                    if is_ours_alone(&name) {
                        document.stray.push(name);
                    }
                }
                Ok(document)
            }
        }

        deserializer.deserialize_any(Sections)
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tree;

        impl<'de> Visitor<'de> for Tree {
            type Value = Value;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E>(self, truth: bool) -> Result<Value, E> {
                Ok(Value::Bool(truth))
            }

            fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
                Ok(Value::Int(number.into()))
            }

            fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
                Ok(Value::Int(number.into()))
            }

            fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
                Ok(Value::Float(number))
            }

            fn visit_str<E>(self, text: &str) -> Result<Value, E> {
                Ok(Value::Str(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = seq.next_element()? {
                    list.push(value);
                }
                Ok(Value::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Value::Map(entries))
            }
        }

        deserializer.deserialize_any(Tree)
    }
}
