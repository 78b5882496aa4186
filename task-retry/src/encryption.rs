use std::collections::HashSet;
use std::error::Error as StdError;
use std::fmt;
use std::str::FromStr;

use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes256Gcm, KeyInit};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::codec::is_envelope;
use crate::{ContextCodec, ContextPlace, Error, ErrorKind, Result};

const ENVELOPE: &str = "enc:v1:";
const NONCE: usize = 12;
/// The longest name of a key.
const NAME: usize = 32;

/// Encrypts contexts with AES-256-GCM.
///
/// The first key encrypts, all of them decrypt. To change keys, add the new one behind the old one in
/// every process, then move it to the front; drop the old one when no row is left that needs it.
///
/// A row holds `enc:v1:KEY_NAME:…`, a random nonce, the encrypted text and its tag in base64. Project,
/// source and column are authenticated with it, so that it cannot be moved to another function's row;
/// it can be copied to another row of the same source by whoever can write the table. Rows that were stored
/// before, as plain text, are still read, until [`encrypted_only`](Self::encrypted_only) says
/// otherwise.
///
/// With random nonces a key is good for 4 billion (2³²) contexts.
///
/// ```
/// use task_retry::{Aes256GcmCodec, ContextCodec, ContextPlace};
///
/// // TASK_KEYS="2026-11:q5y…=,2026-05:kX0…=", each key from `openssl rand -base64 32`
/// # let keys = format!("2026-11:{0}=,2026-05:{0}=", "A".repeat(43));
/// let codec: Aes256GcmCodec = keys.parse()?;
///
/// let place = ContextPlace::new("shop", 30);
/// let stored = codec.encode(r#"{"card":"4111"}"#, place)?;
/// assert!(stored.starts_with("enc:v1:2026-11:"));
/// assert_eq!(codec.decode(&stored, place)?, r#"{"card":"4111"}"#);
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
pub struct Aes256GcmCodec {
    keys: Vec<(String, Aes256Gcm)>,
    encrypted_only: bool,
}

impl Aes256GcmCodec {
    /// A codec with these keys, each with its name; the first one encrypts.
    ///
    /// A name is stored beside what its key has encrypted: 1 to 32 of `A-Z a-z 0-9 . _ -`. A key of
    /// that name never changes.
    ///
    /// # Errors
    /// `Config` if there is no key, a name is not usable, or two are the same.
    pub fn new<N: Into<String>>(keys: impl IntoIterator<Item = (N, [u8; 32])>) -> Result<Self> {
        let mut codec = Self { keys: Vec::new(), encrypted_only: false };
        let mut names = HashSet::new();
        for (index, (name, key)) in keys.into_iter().enumerate() {
            let name = name.into();
            if !is_name(&name) {
                // Not quoted: it may be a key that was put in its place.
                return Err(config(format!(
                    "the name of key {} is not 1 to {NAME} of A-Z a-z 0-9 . _ -",
                    index + 1
                )));
            }
            if !names.insert(name.clone()) {
                return Err(config(format!("two keys are named `{name}`")));
            }
            codec.keys.push((name, Aes256Gcm::new(&key.into())));
        }
        match codec.keys.is_empty() {
            true => Err(config("no key was given: the first one encrypts".into())),
            false => Ok(codec),
        }
    }

    /// Rows that hold plain text are no longer read: for when none from before the encryption is left,
    /// so that whoever can write the table cannot slip one in.
    pub fn encrypted_only(mut self) -> Self {
        self.encrypted_only = true;
        self
    }

    fn has(&self) -> String {
        let names: Vec<_> = self.keys.iter().map(|(name, _)| format!("`{name}`")).collect();
        names.join(", ")
    }
}

/// Keys as `NAME:BASE64,NAME:BASE64`, for instance from an environment variable.
impl FromStr for Aes256GcmCodec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for (index, part) in text.split(',').map(str::trim).enumerate() {
            let number = index + 1;
            let Some((name, key)) = part.split_once(':') else {
                return Err(config(format!("key {number} is not written as `NAME:BASE64`")));
            };
            let key = STANDARD.decode(key.trim()).ok().and_then(|key| key.try_into().ok());
            let Some(key) = key else {
                let what = format!("key {number} is not 32 bytes in base64");
                return Err(config(format!("{what}: `openssl rand -base64 32` makes one")));
            };
            keys.push((name.trim().to_owned(), key));
        }
        Self::new(keys)
    }
}

impl ContextCodec for Aes256GcmCodec {
    fn encode(
        &self,
        context: &str,
        place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn StdError + Send + Sync>> {
        let (name, key) = &self.keys[0];
        let mut nonce = [0_u8; NONCE];
        getrandom::fill(&mut nonce)?;
        let payload = Payload { msg: context.as_bytes(), aad: &bound_to(place) };
        let encrypted = key.encrypt(&nonce.into(), payload).map_err(|_| Unreadable::TooLarge)?;
        let mut stored = format!("{ENVELOPE}{name}:");
        URL_SAFE_NO_PAD.encode_string([&nonce[..], &encrypted].concat(), &mut stored);
        Ok(stored)
    }

    fn decode(
        &self,
        stored: &str,
        place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn StdError + Send + Sync>> {
        let Some(envelope) = stored.strip_prefix(ENVELOPE) else {
            return match (is_envelope(stored), self.encrypted_only) {
                (true, _) => Err(Unreadable::Envelope.into()),
                (false, true) => Err(Unreadable::Plain.into()),
                (false, false) => Ok(stored.to_owned()),
            };
        };
        let (name, text) = envelope.split_once(':').ok_or(Unreadable::Envelope)?;
        let Some((_, key)) = self.keys.iter().find(|(known, _)| known == name) else {
            return Err(match is_name(name) {
                true => Unreadable::Key { name: name.into(), has: self.has() },
                false => Unreadable::Envelope,
            }
            .into());
        };
        let changed = || Unreadable::Changed { name: name.into() };
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| changed())?;
        let (nonce, encrypted) = bytes.split_first_chunk::<NONCE>().ok_or_else(changed)?;
        let payload = Payload { msg: encrypted, aad: &bound_to(place) };
        let context = key.decrypt(nonce.into(), payload).map_err(|_| changed())?;
        Ok(String::from_utf8(context).map_err(|_| changed())?)
    }
}

/// Only the names of its keys.
impl fmt::Debug for Aes256GcmCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.keys.iter().map(|(name, _)| name).collect();
        f.debug_struct("Aes256GcmCodec")
            .field("keys", &names)
            .field("encrypted_only", &self.encrypted_only)
            .finish_non_exhaustive()
    }
}

/// Why a context cannot be encrypted or decrypted; it never quotes one.
#[derive(Debug)]
enum Unreadable {
    Plain,
    Envelope,
    Key { name: String, has: String },
    Changed { name: String },
    TooLarge,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("it is plain text, and only encrypted ones are read here"),
            Self::Envelope => f.write_str("its envelope is not one that this version knows"),
            Self::Key { name, has } => {
                write!(f, "it was encrypted with the key `{name}`; this process has {has}")
            }
            Self::Changed { name } => write!(
                f,
                "it does not fit the key `{name}`: it was changed, it belongs to another project or \
                 source, or this is another key of that name"
            ),
            Self::TooLarge => f.write_str("it is too large to be encrypted"),
        }
    }
}

impl StdError for Unreadable {}

/// What is authenticated beside the text. The project comes last, since it may hold any character.
fn bound_to(place: ContextPlace<'_>) -> Vec<u8> {
    let ContextPlace { project, source, column } = place;
    format!("task-retry {column}\0{source}\0{project}").into_bytes()
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=NAME).contains(&name.len()) && name.bytes().all(fits)
}

fn config(what: String) -> Error {
    Error::new(ErrorKind::Config, format!("the keys of the codec are not usable: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"card":"4111 1111"}"#;

    fn place(source: i32) -> ContextPlace<'static> {
        ContextPlace::new("shop", source)
    }

    fn codec(keys: &[(&str, u8)]) -> Aes256GcmCodec {
        Aes256GcmCodec::new(keys.iter().map(|(name, byte)| (*name, [*byte; 32]))).unwrap()
    }

    fn refusal(codec: &Aes256GcmCodec, stored: &str, place: ContextPlace<'_>) -> String {
        codec.decode(stored, place).unwrap_err().to_string()
    }

    #[test]
    fn what_was_encrypted_comes_back_and_shows_nothing() {
        let codec = codec(&[("a", 1)]);
        for text in ["", "{}", TEXT, "\0é", &"x".repeat(1 << 20)] {
            let stored = codec.encode(text, place(30)).unwrap();
            assert!(stored.starts_with("enc:v1:a:") && stored.is_ascii(), "{stored}");
            assert_eq!(codec.decode(&stored, place(30)).unwrap(), text);
            // Encrypting twice gives two texts, since each has a nonce of its own.
            assert_ne!(codec.encode(text, place(30)).unwrap(), stored);
        }
        assert!(serde_json::from_str::<serde_json::Value>("enc:v1:a:").is_err());
    }

    /// By another implementation, Python's `cryptography`:
    /// `AESGCM(bytes(range(32))).encrypt(bytes(12), TEXT, b"task-retry context\0" b"30\0shop")`.
    #[test]
    fn the_envelope_stays_what_it_is() {
        let key: [u8; 32] = std::array::from_fn(|index| index as u8);
        let codec = Aes256GcmCodec::new([("k.1", key)]).unwrap();
        let stored = "enc:v1:k.1:AAAAAAAAAAAAAAAAdZ7Wv8dIoYcqnJgEKQygqONydC76kiUx2jCcuLIhf8bzjYNe";
        assert_eq!(codec.decode(stored, place(30)).unwrap(), TEXT);
    }

    #[test]
    fn keys_rotate() {
        let old = codec(&[("old", 1)]);
        let both = codec(&[("new", 2), ("old", 1)]);
        let new = codec(&[("new", 2)]);
        let before = old.encode(TEXT, place(30)).unwrap();
        let after = both.encode(TEXT, place(30)).unwrap();
        assert!(after.starts_with("enc:v1:new:"));
        assert_eq!(both.decode(&before, place(30)).unwrap(), TEXT);
        assert_eq!(new.decode(&after, place(30)).unwrap(), TEXT);
        assert_eq!(
            refusal(&new, &before, place(30)),
            "it was encrypted with the key `old`; this process has `new`"
        );
    }

    #[test]
    fn what_was_changed_or_moved_is_refused() {
        let codec = codec(&[("a", 1)]);
        let stored = codec.encode(TEXT, place(30)).unwrap();
        assert!(refusal(&codec, &stored, place(31)).contains("does not fit the key `a`"));
        for elsewhere in [ContextPlace::new("shop2", 30), ContextPlace::of_result("shop", 30)] {
            assert!(refusal(&codec, &stored, elsewhere).contains("does not fit the key `a`"));
        }
        let start = "enc:v1:a:".len();
        for at in start..stored.len() {
            let mut bytes = stored.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(codec.decode(&changed, place(30)).is_err(), "{changed}");
        }
        for end in start..stored.len() {
            assert!(codec.decode(&stored[..end], place(30)).is_err());
        }
        for damaged in ["enc:v1:", "enc:v1:a", "enc:v1::AAAA", "enc:v2:a:AAAA", "enc:v1:%:AAAA"] {
            assert!(refusal(&codec, damaged, place(30)).starts_with("its envelope"), "{damaged}");
        }
    }

    #[test]
    fn plain_rows_are_read_until_they_are_refused() {
        let codec = codec(&[("a", 1)]);
        for plain in [TEXT, "", "enc:", "enc:v", "enc:vx:"] {
            assert_eq!(codec.decode(plain, place(30)).unwrap(), plain);
        }
        let codec = codec.encrypted_only();
        assert!(refusal(&codec, TEXT, place(30)).contains("plain text"));
    }

    #[test]
    fn mistakes_in_keys_are_told_and_keys_are_not() {
        let key = STANDARD.encode([7; 32]);
        for (text, told) in [
            (String::new(), "key 1 is not written as `NAME:BASE64`"),
            (key.clone(), "key 1 is not written"),
            (format!("a:{key},{key}"), "key 2 is not written"),
            (format!("a:{}", &key[..40]), "key 1 is not 32 bytes in base64"),
            (format!("{key}:a"), "key 1 is not 32 bytes in base64"),
            (format!("{key}:{key}"), "the name of key 1 is not"),
            (format!(":{key}"), "the name of key 1 is not"),
            (format!("a:{key},a:{key}"), "two keys are named `a`"),
        ] {
            let error = text.parse::<Aes256GcmCodec>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let error = error.to_string();
            assert!(error.contains(told) && !error.contains(&key[..40]), "{error}");
        }
        let codec: Aes256GcmCodec = format!(" a:{key} , b:{key} ").parse().unwrap();
        assert_eq!(
            format!("{codec:?}"),
            r#"Aes256GcmCodec { keys: ["a", "b"], encrypted_only: false, .. }"#
        );
        assert!(Aes256GcmCodec::new([] as [(&str, [u8; 32]); 0]).is_err());
    }
}
