//! Sizes as people write them: `64m`, `1gb`, `1GiB`, `1048576`. Units are powers of two, as Docker reads them.

/// Bytes; `None` for what is no size or does not fit.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_docker_reads_them() {
        for (text, bytes) in [("1gb", 1 << 30), ("2KiB", 2048), ("7", 7), ("64m", 64 << 20), ("1 T", 1 << 40)] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for text in ["", "1x", "gb", "-1", "1.5g", "99999999999t"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
