//! Go's `filepath.Match`: its syntax check, which guards every pattern, and the match of a single name.

/// Whether `filepath.Match` accepts the pattern's syntax.
pub(super) fn is_well_formed(pattern: &str) -> bool {
    parse(pattern).is_some()
}

/// Whether `name`, which has no slash, matches; a malformed pattern matches nothing.
pub(in crate::context) fn matches_name(pattern: &str, name: &str) -> bool {
    parse(pattern).is_some_and(|items| run(&items, name))
}

enum Item {
    Any,
    One,
    Literal(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

fn parse(pattern: &str) -> Option<Vec<Item>> {
    let mut items = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        items.push(match char {
            '*' => Item::Any,
            '?' => Item::One,
            '\\' => Item::Literal(chars.next()?),
            '[' => parse_class(&mut chars)?,
            other => Item::Literal(other),
        });
    }
    Some(items)
}

fn parse_class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Item> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Some(Item::Class { negated, ranges });
        }
        let low = class_char(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { class_char(chars)? } else { low };
        // A class needs its closing bracket.
        chars.peek()?;
        ranges.push((low, high));
    }
}

fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        other => Some(other),
    }
}

/// Keeps the set of places in the pattern that the name so far can have reached.
fn run(items: &[Item], name: &str) -> bool {
    let mut reached = vec![false; items.len() + 1];
    reached[0] = true;
    skip_stars(items, &mut reached);
    for char in name.chars() {
        let mut next = vec![false; items.len() + 1];
        for (index, item) in items.iter().enumerate().filter(|(index, _)| reached[*index]) {
            let (stays, steps) = match item {
                Item::Any => (char != '/', false),
                Item::One => (false, char != '/'),
                Item::Literal(literal) => (false, *literal == char),
                Item::Class { negated, ranges } => {
                    (false, ranges.iter().any(|(low, high)| (*low..=*high).contains(&char)) != *negated)
                }
            };
            next[index] |= stays;
            next[index + 1] |= steps;
        }
        reached = next;
        skip_stars(items, &mut reached);
    }
    reached[items.len()]
}

fn skip_stars(items: &[Item], reached: &mut [bool]) {
    for (index, item) in items.iter().enumerate() {
        if reached[index] && matches!(item, Item::Any) {
            reached[index + 1] = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_filepath_match_has_it() {
        for (pattern, name, expected) in [
            ("*.go", "main.go", true),
            ("*.go", "main.rs", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            (r"\*", "*", true),
            ("a*b*c", "axxbxxc", true),
            ("[", "[", false),
        ] {
            assert_eq!(matches_name(pattern, name), expected, "{pattern} {name}");
        }
    }
}
