//! How much disk stays free: three marks, each a size or a share of the disk.
//!
//! Below `low` the keeper prunes until `target` is free; below `min` the farm gives the worker no task.

use std::{fmt, str::FromStr};

use kiln_common::size::parse_bytes;

const GIB: u64 = 1 << 30;

/// `10%`, `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    Percent(u8),
    Bytes(u64),
}

/// What an operator set; `None` is the default that fits the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskPolicy {
    pub low: Option<Amount>,
    pub target: Option<Amount>,
    pub min: Option<Amount>,
}

/// The marks of one disk, in bytes that are free: `min <= low <= target <= total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    pub min: u64,
    pub low: u64,
    pub target: u64,
}

/// The text is not an amount of disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an amount of disk; write a size as 2GiB or a share as 10%")]
pub struct InvalidAmount(String);

impl DiskPolicy {
    /// The marks for a disk of `total` bytes. Unset ones are 5, 10 and 20 %, at most 1, 10 and 20 GiB, and twice a `low`
    /// that was set; marks that cross each other are drawn apart upwards.
    #[must_use]
    pub fn marks(&self, total: u64) -> Marks {
        let of = |amount: Option<Amount>| amount.map(|amount| amount.of(total));
        let min = of(self.min).unwrap_or((total / 20).min(GIB));
        let low = of(self.low).unwrap_or((total / 10).min(10 * GIB));
        let low = low.max(min).min(total);
        let target = of(self.target).unwrap_or(low.saturating_mul(2));
        Marks { min: min.min(total), low, target: target.max(low).min(total) }
    }
}

impl Marks {
    /// How much has to be freed; `None` while there is enough.
    #[must_use]
    pub fn needed(&self, available: u64) -> Option<u64> {
        (available < self.low).then(|| self.target - available)
    }
}

impl Amount {
    fn of(self, total: u64) -> u64 {
        match self {
            // First divided, so that no disk is too large to be multiplied.
            Self::Percent(percent) => total / 100 * u64::from(percent),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl FromStr for Amount {
    type Err = InvalidAmount;

    fn from_str(text: &str) -> Result<Self, InvalidAmount> {
        let percent = text.strip_suffix('%').map(|digits| digits.parse().ok().filter(|percent| *percent <= 90));
        let amount = match percent {
            Some(percent) => percent.map(Self::Percent),
            None => parse_bytes(text).map(Self::Bytes),
        };
        amount.ok_or_else(|| InvalidAmount(text.chars().take(64).collect()))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: u64 = 16_000_000_000;

    #[test]
    fn a_small_card_and_a_large_disk_get_marks_that_fit() {
        let card = DiskPolicy::default().marks(CARD);
        assert_eq!((card.min, card.low, card.target), (CARD / 20, CARD / 10, CARD / 5));
        let disk = DiskPolicy::default().marks(4 << 40);
        assert_eq!((disk.min, disk.low, disk.target), (GIB, 10 * GIB, 20 * GIB));
    }

    #[test]
    fn nothing_is_freed_while_enough_is_free_and_then_up_to_the_target() {
        let marks = DiskPolicy::default().marks(CARD);
        assert_eq!(marks.needed(marks.low), None);
        assert_eq!(marks.needed(marks.low - 1), Some(marks.target - marks.low + 1));
    }

    #[test]
    fn marks_that_an_operator_set_never_cross_and_never_leave_the_disk() {
        let policy = |low: &str, target: &str, min: &str| {
            let parse = |text: &str| Some(text.parse().unwrap());
            DiskPolicy { low: parse(low), target: parse(target), min: parse(min) }.marks(CARD)
        };
        assert_eq!(policy("4g", "1g", "0"), Marks { min: 0, low: 4 * GIB, target: 4 * GIB });
        assert_eq!(policy("1%", "50%", "20%"), Marks { min: CARD / 5, low: CARD / 5, target: CARD / 2 });
        assert_eq!(policy("9t", "9t", "9t"), Marks { min: CARD, low: CARD, target: CARD });
        let low = DiskPolicy { low: Some(Amount::Bytes(3 * GIB)), ..DiskPolicy::default() };
        assert_eq!(low.marks(CARD).target, 6 * GIB);
    }

    #[test]
    fn an_amount_is_a_size_or_a_share() {
        assert_eq!("10%".parse(), Ok(Amount::Percent(10)));
        assert_eq!("2GiB".parse(), Ok(Amount::Bytes(2 * GIB)));
        for text in ["", "%", "-1%", "91%", "ten", "1.5g"] {
            let error = text.parse::<Amount>().expect_err(text).to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("2GiB"), "{error}");
        }
    }
}
