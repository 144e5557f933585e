//! The parsers of layers, as the fuzz targets call them.

use kiln_common::context::pattern::PatternMatcher;

use super::{elf::Inspector, expected::Expected, layer};

/// A file that may be an ELF file: what is found does not depend on the pieces in which it comes.
pub fn elf(data: &[u8]) {
    let inspect = |piece: usize| {
        let mut inspector = Inspector::default();
        for bytes in data.chunks(piece) {
            if inspector.wants_more() {
                inspector.feed(bytes);
            }
        }
        inspector.finish()
    };
    let whole = inspect(data.len().max(1));
    for piece in [1, 7, 4096] {
        assert_eq!(inspect(piece), whole, "in pieces of {piece} bytes");
    }
}

/// A layer, compressed or not.
pub fn layer(data: &[u8]) {
    let platform = "linux/arm/v6".parse().expect("a platform");
    let expected = Expected::of(&platform).expect("a platform with programs");
    let allowed = PatternMatcher::new(&["opt"]).expect("a pattern");
    // Its verdict is any; the same each time.
    let check = || layer::check(data, &expected, &allowed).map_err(|error| error.to_string());
    assert_eq!(check(), check());
}
