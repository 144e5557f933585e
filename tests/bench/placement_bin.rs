//! `cargo bench -p kiln-scheduler --bench placement`: prints what [`placement::run`] measures, once with the memory pages that
//! a process gets unasked and once with huge ones, which `GLIBC_TUNABLES` asks for and large farms should have: hundreds of
//! megabytes of tasks are more than a processor has translations for.

#[path = "placement.rs"]
mod placement;

const TUNABLES: &str = "GLIBC_TUNABLES";
const HUGE_PAGES: &str = "glibc.malloc.hugetlb=1";

fn main() {
    let has_huge_pages = std::env::var(TUNABLES).is_ok_and(|tunables| tunables.contains(HUGE_PAGES));
    measure(if has_huge_pages { "huge pages" } else { "small pages" });
    if !has_huge_pages {
        // The allocator reads it at the start of a process.
        let program = std::env::current_exe().expect("this program's own path");
        let status =
            std::process::Command::new(program).env(TUNABLES, HUGE_PAGES).status().expect("this program starts");
        assert!(status.success(), "the measurement with huge pages failed");
    }
}

fn measure(pages: &str) {
    let size = |name: &str, usual: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    let (workers, waiting) = (size("WORKERS", 10_000), size("WAITING", 100_000));
    let placements = usize::try_from(size("PLACEMENTS", 1_000_000)).unwrap_or(usize::MAX);
    let figures = placement::run(workers, waiting, placements);
    println!(
        "{pages}: {} workers, {} waiting, {} placements: {:.0} placements/s; {:.0} legs/s from submit to publish; longest handle {:?}, p99.9 {:?}",
        figures.workers,
        figures.waiting,
        figures.placements,
        figures.placements_per_second,
        figures.legs_per_second,
        figures.longest,
        figures.p999
    );
}
