//! The part of the terminal that is drawn over and over: moves up over the last frame and writes the new one in place.
//!
//! One write a frame, inside a synchronised update where the terminal knows it, each line cleared as it is rewritten:
//! nothing flickers, and lines above the frame scroll away as ordinary output.

use std::io::{self, Write};

use console::{Term, measure_text_width};

const BEGIN_UPDATE: &str = "\x1b[?2026h\x1b[?25l";
const END_UPDATE: &str = "\x1b[?2026l";
const SHOW_CURSOR: &str = "\x1b[?25h";
const CLEAR_TO_LINE_END: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

pub struct Screen<W> {
    out: W,
    /// Widths of the lines of the last frame: a narrower terminal folds them.
    drawn: Vec<usize>,
}

impl<W: Write> Screen<W> {
    pub const fn new(out: W) -> Self {
        Self { out, drawn: Vec::new() }
    }

    /// Writes `above` for good and `frame` below it in place of the last one. No line is wider than `width`.
    pub fn draw(&mut self, above: &[String], frame: &[String], width: usize) -> io::Result<()> {
        let mut text = BEGIN_UPDATE.to_owned() + &self.rewind(width);
        for line in above.iter().chain(frame) {
            text += line;
            text += CLEAR_TO_LINE_END;
            text += "\r\n";
        }
        text += CLEAR_BELOW;
        text += END_UPDATE;
        self.drawn = frame.iter().map(|line| measure_text_width(line)).collect();
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Takes the frame away and gives the cursor back.
    pub fn clear(&mut self, above: &[String], width: usize) -> io::Result<()> {
        self.draw(above, &[], width)?;
        self.out.write_all(SHOW_CURSOR.as_bytes())?;
        self.out.flush()
    }

    fn rewind(&self, width: usize) -> String {
        let rows: usize = self.drawn.iter().map(|line| line.div_ceil(width.max(1)).max(1)).sum();
        if rows == 0 { "\r".to_owned() } else { format!("\r\x1b[{rows}A") }
    }
}

/// Columns and rows of the terminal on standard error; 80 by 24 where it does not say.
pub fn size() -> (usize, usize) {
    Term::stderr().size_checked().map_or((80, 24), |(rows, columns)| (usize::from(columns), usize::from(rows)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_rewritten_in_place_also_after_the_terminal_became_narrower() {
        let mut screen = Screen::new(Vec::new());
        screen.draw(&[], &["x".repeat(70), "y".into()], 80).unwrap();
        screen.out.clear();
        screen.draw(&["said".into()], &["z".into()], 40).unwrap();
        let text = String::from_utf8(screen.out).unwrap();
        assert!(text.contains("\r\x1b[3Asaid\x1b[K\r\nz\x1b[K\r\n\x1b[J"), "{text:?}");
    }
}
