//! `cargo bench -p kiln-scheduler --bench placement`: prints what [`placement::run`] measures.

#[path = "placement.rs"]
mod placement;

fn main() {
    let size = |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (workers, waiting) = (size("WORKERS", 10_000), size("WAITING", 100_000));
    let placements = usize::try_from(size("PLACEMENTS", 1_000_000)).unwrap_or(usize::MAX);
    let figures = placement::run(workers, waiting, placements);
    println!(
        "{} workers, {} waiting, {} placements: {:.0} placements/s; {:.0} legs/s from submit to publish; longest handle {:?}, p99.9 {:?}",
        figures.workers,
        figures.waiting,
        figures.placements,
        figures.placements_per_second,
        figures.legs_per_second,
        figures.longest,
        figures.p999
    );
}
