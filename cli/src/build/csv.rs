//! Comma-separated fields with quotes, as buildx reads `--secret`, `--cache-to` and their like (RFC 4180, one record).

use crate::failure::Failure;

/// The fields of one flag's value.
///
/// # Errors
/// A quote that is not closed.
pub fn fields(text: &str) -> Result<Vec<String>, Failure> {
    let (mut all, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => all.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err(Failure::usage(format!("`{text}` has a quote that is not closed")));
    }
    all.push(field);
    Ok(all)
}

/// `key=value` fields; a field without `=` has an empty value.
///
/// # Errors
/// A quote that is not closed.
pub fn pairs(text: &str) -> Result<Vec<(String, String)>, Failure> {
    let split = |field: String| match field.split_once('=') {
        Some((key, value)) => (key.trim().to_lowercase(), value.to_owned()),
        None => (field.trim().to_lowercase(), String::new()),
    };
    Ok(fields(text)?.into_iter().map(split).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_fields_keep_their_commas() {
        assert_eq!(fields("a,b").unwrap(), ["a", "b"]);
        assert_eq!(fields(r#"id=x,"src=a,b","say ""hi""""#).unwrap(), ["id=x", "src=a,b", r#"say "hi""#]);
        assert!(fields("\"a").is_err());
        assert_eq!(pairs("ID=x,env").unwrap(), [("id".into(), "x".into()), ("env".into(), String::new())]);
    }
}
