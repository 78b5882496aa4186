use std::fmt;
use std::str::FromStr;

/// A time zone without summer time: how far its clocks are ahead of UTC, -18:00 to +18:00.
///
/// ```
/// use task_retry::UtcOffset;
///
/// let china: UtcOffset = "+08:00".parse()?;
/// assert_eq!(china.seconds(), 8 * 3600);
/// assert_eq!(china.to_string(), "+08:00");
/// assert_eq!("UTC".parse(), Ok(UtcOffset::UTC));
/// assert!("Asia/Shanghai".parse::<UtcOffset>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct UtcOffset(i32);

impl UtcOffset {
    /// No offset.
    pub const UTC: Self = Self(0);

    /// What the configuration accepts, as errors put it.
    pub(super) const ALLOWED: &str = "an offset such as \"+08:00\", from -18:00 to +18:00, or UTC";

    const MOST: i32 = 18 * 3600;

    /// This many seconds ahead of UTC; `None` beyond 18 hours.
    pub const fn from_seconds(seconds: i32) -> Option<Self> {
        if seconds < -Self::MOST || seconds > Self::MOST { None } else { Some(Self(seconds)) }
    }

    /// How many seconds its clocks are ahead of UTC.
    pub const fn seconds(self) -> i32 {
        self.0
    }
}

/// Reads `+08:00`, `-5:30`, `+8`, each also behind `UTC` or `GMT`, and `Z`, `UTC` and `GMT` alone.
impl FromStr for UtcOffset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text.trim()).ok_or_else(|| format!("{text:?} is not {}", Self::ALLOWED))
    }
}

fn parse(text: &str) -> Option<UtcOffset> {
    let upper = text.to_ascii_uppercase();
    let offset = upper.strip_prefix("UTC").or(upper.strip_prefix("GMT")).unwrap_or(&upper);
    if offset.is_empty() && !upper.is_empty() || upper == "Z" {
        return Some(UtcOffset::UTC);
    }
    let (sign, clock) = match offset.as_bytes().first()? {
        b'+' => (1, &offset[1..]),
        b'-' => (-1, &offset[1..]),
        _ => return None,
    };
    let (hours, minutes) = clock.split_once(':').unwrap_or((clock, "00"));
    if !(1..=2).contains(&hours.len()) || minutes.len() != 2 {
        return None;
    }
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok());
    let (hours, minutes): (i32, i32) = (digits(hours)??, digits(minutes)??);
    (minutes < 60).then(|| UtcOffset::from_seconds(sign * (hours * 3600 + minutes * 60)))?
}

impl fmt::Display for UtcOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { '-' } else { '+' };
        let (minutes, seconds) = (self.0.abs() / 60, self.0.abs() % 60);
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)?;
        if seconds == 0 { Ok(()) } else { write!(f, ":{seconds:02}") }
    }
}
