//! How a worker can run a platform, and when a build may fall back to emulation (DESIGN: grades, fallback policy).

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// How well a worker runs a platform; better grades order first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// The engine's own architecture.
    Native,
    /// The same CPU in its 32-bit mode: arm on arm64 with AArch32, 386 on amd64.
    Compat,
    /// QEMU through `binfmt_misc`.
    Emulated,
}

impl Grade {
    #[must_use]
    pub const fn is_emulated(self) -> bool {
        matches!(self, Self::Emulated)
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Compat => "compat",
            Self::Emulated => "emulated",
        })
    }
}

/// When a task may run emulated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EmulationPolicy {
    /// When it is predicted to finish earlier than on a native worker; native is preferred within 20 %.
    #[default]
    Auto,
    /// Never: wait for a native or compat worker.
    Never,
    /// Once the task has waited this long for a native or compat worker.
    Wait(Duration),
    /// As soon as any worker is free.
    Now,
}

/// The text is not a fallback policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an emulation policy; use auto, never, now or wait=DURATION (for example wait=30s)")]
pub struct InvalidEmulationPolicy {
    pub text: String,
}

impl FromStr for EmulationPolicy {
    type Err = InvalidEmulationPolicy;

    fn from_str(text: &str) -> Result<Self, InvalidEmulationPolicy> {
        let invalid = || InvalidEmulationPolicy { text: text.chars().take(64).collect() };
        match text {
            "auto" => Ok(Self::Auto),
            "never" => Ok(Self::Never),
            "now" => Ok(Self::Now),
            other => {
                let duration = other.strip_prefix("wait=").and_then(parse_duration).ok_or_else(invalid)?;
                Ok(Self::Wait(duration))
            }
        }
    }
}

impl fmt::Display for EmulationPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Never => f.write_str("never"),
            Self::Now => f.write_str("now"),
            Self::Wait(duration) => write!(f, "wait={}", format_duration(*duration)),
        }
    }
}

/// Whole milliseconds, seconds, minutes or hours: `250ms`, `30s`, `5m`, `2h`; `None` for anything else.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.checked_mul(millis)?))
}

/// The shortest form that [`parse_duration`] reads back.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        m if m % 3_600_000 == 0 => format!("{}h", m / 3_600_000),
        m if m % 60_000 == 0 => format!("{}m", m / 60_000),
        m if m % 1_000 == 0 => format!("{}s", m / 1_000),
        m => format!("{m}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_read_back_as_they_are_written() {
        for text in ["auto", "never", "now", "wait=30s", "wait=5m", "wait=1500ms", "wait=0s"] {
            assert_eq!(text.parse::<EmulationPolicy>().expect(text).to_string(), text);
        }
        for text in ["", "wait", "wait=", "wait=soon", "wait=-1s", "wait=99999999999999999999s", "AUTO"] {
            assert!(text.parse::<EmulationPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn native_orders_before_compat_before_emulated() {
        assert!(Grade::Native < Grade::Compat && Grade::Compat < Grade::Emulated);
    }
}
