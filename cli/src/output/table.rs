//! Columns for people: as wide as their content, two spaces apart, no trailing space.

use console::{Alignment, measure_text_width, pad_str};

use super::Paint;

pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    #[must_use]
    pub fn new(header: impl Into<Vec<&'static str>>) -> Self {
        Self { header: header.into(), rows: Vec::new() }
    }

    /// One line; cells may carry colours. Control characters of what others chose are not let through.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |cell: String| -> String { cell.chars().filter(|c| !c.is_control() || *c == '\x1b').collect() };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    #[must_use]
    pub fn render(&self, paint: Paint) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| measure_text_width(cell));
            cells.chain([self.header[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let header = self.header.iter().map(|title| (*title).to_owned()).collect::<Vec<_>>();
        let mut out = paint.dim(&line(&header, &widths)) + "\n";
        for row in &self.rows {
            out += &(line(row, &widths) + "\n");
        }
        out
    }
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let padded: Vec<_> = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| pad_str(cell, *width, Alignment::Left, None).into_owned())
        .collect();
    padded.join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_whatever_their_colours() {
        let mut table = Table::new(["ID", "STATE", "TAG"]);
        table.row(["1".into(), "\x1b[32mok\x1b[0m".into(), "a".into()]);
        table.row(["22".into(), "failed".into(), String::new()]);
        let plain = console::strip_ansi_codes(&table.render(Paint::new(false))).into_owned();
        assert_eq!(plain, "ID  STATE   TAG\n1   ok      a\n22  failed\n");
    }
}
