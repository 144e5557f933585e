//! Hides the values of secrets in what a build prints. Called for every entry before it is stored anywhere.
//!
//! A secret of several lines is hidden line by line, because that is how a build prints it.

use kiln_common::limits;
use zeroize::Zeroizing;

const MASK: &[u8] = b"***";

/// The values to hide, longest first so that a value which contains another is hidden whole.
#[derive(Default)]
pub struct Mask {
    values: Vec<Zeroizing<Vec<u8>>>,
}

impl Mask {
    /// Hides these values; ones shorter than [`limits::LOG_MASK_MIN_BYTES`] would hide half of any log and are left.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let lines = secrets.into_iter().flat_map(|secret| secret.split(|byte| matches!(byte, b'\n' | b'\r')));
        let mut values: Vec<_> = lines
            .map(<[u8]>::trim_ascii)
            .filter(|line| line.len() >= limits::LOG_MASK_MIN_BYTES)
            .take(limits::LOG_MASKS)
            .map(|line| Zeroizing::new(line.to_vec()))
            .collect();
        values.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        values.dedup();
        Self { values }
    }

    /// Hides the values in place; untouched bytes cost no copy.
    pub fn bytes(&self, text: &mut Vec<u8>) {
        for value in &self.values {
            let mut from = 0;
            while let Some(at) = find(&text[from..], value) {
                text.splice(from + at..from + at + value.len(), MASK.iter().copied());
                from += at + MASK.len();
            }
        }
    }

    /// The same for text, which stays valid UTF-8 or becomes so.
    pub fn text(&self, text: &mut String) {
        if self.values.iter().any(|value| find(text.as_bytes(), value).is_some()) {
            let mut bytes = std::mem::take(text).into_bytes();
            self.bytes(&mut bytes);
            *text = String::from_utf8_lossy(&bytes).into_owned();
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = haystack.get(from..)?.iter().position(|byte| *byte == first) {
        if haystack[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(secrets: &[&str], text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        Mask::new(secrets.iter().map(|secret| secret.as_bytes())).bytes(&mut bytes);
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn a_secret_s_value_is_hidden_wherever_it_stands() {
        assert_eq!(masked(&["hunter22"], "hunter22 and hunter22hunter22!"), "*** and ******!");
        assert_eq!(masked(&["hunter22", "hunter22-long"], "x hunter22-long"), "x ***");
        assert_eq!(masked(&["aaab"], "aaaaab"), "aa***");
    }

    #[test]
    fn each_line_of_a_secret_is_hidden_and_short_ones_are_left() {
        let key = "-----BEGIN KEY-----\nabcdef\nxy\n";
        assert_eq!(masked(&[key], "abcdef xy"), "*** xy");
        assert_eq!(masked(&["abc", ""], "abc"), "abc");
    }

    #[test]
    fn text_stays_text() {
        let mask = Mask::new(["t0k\u{f6}n".as_bytes()]);
        let mut text = "login with t0k\u{f6}n failed".to_owned();
        mask.text(&mut text);
        assert_eq!(text, "login with *** failed");
    }
}
