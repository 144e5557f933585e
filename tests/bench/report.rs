//! Medians, ratios and their bounds.

use std::time::Duration;

use anyhow::ensure;

#[derive(Default)]
pub struct Report {
    lines: Vec<String>,
    broken: usize,
}

impl Report {
    /// Runs both in turn and compares the medians.
    pub fn compare(
        &mut self,
        name: &str,
        runs: usize,
        bound: f64,
        kiln: impl Fn() -> anyhow::Result<Duration>,
        peer: impl Fn() -> anyhow::Result<Duration>,
    ) -> anyhow::Result<()> {
        let mut pairs = Vec::with_capacity(runs);
        for _ in 0..runs {
            pairs.push((kiln()?, peer()?));
        }
        self.pairs(name, &pairs, bound);
        Ok(())
    }

    /// Kiln's time first, the peer's second; each pair ran back to back.
    pub fn pairs(&mut self, name: &str, pairs: &[(Duration, Duration)], bound: f64) {
        self.beside("buildx", name, pairs, bound);
    }

    /// The same beside another peer.
    pub fn beside(&mut self, peer_name: &str, name: &str, pairs: &[(Duration, Duration)], bound: f64) {
        let kiln = median(pairs.iter().map(|pair| pair.0.as_secs_f64()));
        let peer = median(pairs.iter().map(|pair| pair.1.as_secs_f64()));
        let ratio = median(pairs.iter().map(|pair| pair.0.as_secs_f64() / pair.1.as_secs_f64()));
        let text =
            format!("{name}: kiln {kiln:.3} s, {peer_name} {peer:.3} s, median ratio {ratio:.2} (at most {bound})");
        self.line(text, ratio <= bound);
    }

    /// A figure of Kiln alone.
    pub fn bound(&mut self, name: &str, value: f64, bound: f64) {
        self.line(format!("{name}: {value:.1} (at most {bound})"), value <= bound);
    }

    pub fn note(&mut self, text: &str) {
        println!("{text}");
    }

    fn line(&mut self, text: String, holds: bool) {
        let text = format!("{} {text}", if holds { "ok  " } else { "OVER" });
        println!("{text}");
        self.lines.push(text);
        self.broken += usize::from(!holds);
    }

    pub fn finish(self) -> anyhow::Result<()> {
        println!("\n{}", self.lines.join("\n"));
        ensure!(self.broken == 0, "{} of {} figures are over their bound", self.broken, self.lines.len());
        Ok(())
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}
