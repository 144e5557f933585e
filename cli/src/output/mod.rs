//! How results look: tables for people, JSON and YAML for programs.

mod document;
mod paint;
mod table;
pub mod text;

use std::io::Write as _;

pub use document::{Document, lines};
pub use paint::Paint;
pub use table::Table;

use crate::failure::Failure;

/// `-o` of every listing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// The API's messages in protobuf's JSON form.
    Json,
    /// The same as YAML.
    Yaml,
}

/// The `-o` flag, flattened into each listing.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct OutputFlag {
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Prints `message` as the format says; `table` makes the form for people only when it is asked for.
///
/// # Errors
/// Standard output cannot be written.
pub fn print(format: Format, message: &impl Document, table: impl FnOnce(Paint) -> String) -> Result<(), Failure> {
    match format {
        Format::Table => write(&table(Paint::for_stdout())),
        Format::Json => write(&(document::json(message)? + "\n")),
        Format::Yaml => write(&document::yaml(message)?),
    }
}

/// Writes to standard error what stands beside the result. Whoever does not read it any more (`2>&1 | head`) misses nothing
/// that another way would tell, so that a failure is none of the command's.
pub fn aside(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
///
/// # Errors
/// Standard output cannot be written.
pub fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::local("cannot write to standard output", error))
        }
        _ => Ok(()),
    }
}
