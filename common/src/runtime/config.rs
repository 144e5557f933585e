//! One way to configure every program: flags over `KILN_*` variables over a TOML file over defaults.
//!
//! The clap command is the only description of what can be set: the file's keys are the long names of its flags, the
//! variables are `KILN_` and the same names in capitals. Values of the file become clap's defaults, so precedence,
//! parsing and help have one source. It applies to each command that flattens [`CommonArgs`].

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Parser, error::ErrorKind};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    files,
    telemetry::{self, LogFormat, TelemetryError},
};

/// Largest configuration file.
const CONFIG_BYTES: u64 = 1024 * 1024;
/// Flags that no file sets.
const FLAGS_ONLY: [&str; 4] = ["config", "config-check", "help", "version"];

/// The flags that all programs have.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// Where state is kept
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace or TARGET=LEVEL,...
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// How it is logged, to standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
    /// TOML file with these settings; flags and KILN_* variables go over it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check flags, variables and file, and exit
    #[arg(long)]
    pub config_check: bool,
}

impl CommonArgs {
    /// Sets up logging.
    ///
    /// # Errors
    /// [`TelemetryError`] for a malformed `--log-level`.
    pub fn init_telemetry(&self) -> Result<(), TelemetryError> {
        telemetry::init(&self.log_level, self.log_format)
    }
}

/// Parses the process's arguments, variables and file; on an error, and for `--help`, prints and exits as clap does.
#[must_use]
pub fn load<P: Parser>() -> P {
    load_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// The same from given arguments.
///
/// # Errors
/// What clap says, or the file's key and line that are wrong.
pub fn load_from<P: Parser>(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Result<P, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let command = with_variables(P::command());
    // The file's name must be known before the rest can be judged: what is required may stand in the file.
    let lenient = command.clone().ignore_errors(true).try_get_matches_from(&arguments)?;
    let command = match configured(&lenient) {
        Some((path, file)) => with_file(command, &path, &file)?,
        None => command,
    };
    let mut command_for_errors = command.clone();
    let mut matches = command.try_get_matches_from(arguments)?;
    P::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command_for_errors))
}

/// Gives each flag of each configurable command its variable.
fn with_variables(command: Command) -> Command {
    let command = command.mut_subcommands(with_variables);
    if !is_configurable(&command) {
        return command;
    }
    command.mut_args(|arg| match arg.get_long() {
        Some(long) if !matches!(long, "help" | "version") && arg.get_env().is_none() => {
            let name = format!("KILN_{}", long.replace('-', "_").to_ascii_uppercase());
            arg.env(name).hide_env_values(true)
        }
        Some(_) | None => arg,
    })
}

fn is_configurable(command: &Command) -> bool {
    command.get_arguments().any(|arg| arg.get_id() == "config_check")
}

/// The subcommands that were given, and the file that their last one names.
fn configured(matches: &ArgMatches) -> Option<(Vec<String>, PathBuf)> {
    let (mut path, mut matches) = (Vec::new(), matches);
    while let Some((name, inner)) = matches.subcommand() {
        path.push(name.to_owned());
        matches = inner;
    }
    let file = matches.try_get_one::<PathBuf>("config").ok()??;
    Some((path, file.clone()))
}

fn with_file(mut command: Command, path: &[String], file: &Path) -> Result<Command, clap::Error> {
    let read = files::read_optional(file, CONFIG_BYTES);
    let problem = match read {
        Ok(Some(bytes)) => match String::from_utf8(bytes) {
            Ok(text) => return descend(command, path, &File { path: file, text: &text }),
            Err(_) => format!("{} is not UTF-8", file.display()),
        },
        Ok(None) => format!("there is no configuration file {}", file.display()),
        Err(error) => error.to_string(),
    };
    Err(command.error(ErrorKind::Io, problem))
}

fn descend(mut command: Command, path: &[String], file: &File<'_>) -> Result<Command, clap::Error> {
    let Some((name, rest)) = path.split_first() else {
        return file.apply(command.clone()).map_err(|problem| command.error(ErrorKind::InvalidValue, problem));
    };
    let Some(inner) = command.find_subcommand(name).cloned() else { return Ok(command) };
    let inner = descend(inner, rest, file)?;
    Ok(command.mut_subcommand(name, |_| inner))
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn apply(&self, command: Command) -> Result<Command, String> {
        let table = DeTable::parse(self.text).map_err(|error| self.at(error.span(), error.message()))?;
        table.get_ref().iter().try_fold(command, |command, (key, value)| {
            let name = key.get_ref().as_ref();
            let arg = find(&command, name).ok_or_else(|| self.at(Some(key.span()), unknown_key(&command, name)))?;
            let values = values_of(arg, value)
                .and_then(|values| check(arg, &values).map(|()| values))
                .map_err(|problem| self.at(Some(key.span()), format!("`{name}` {problem}")))?;
            let id = arg.get_id().clone();
            Ok(command.mut_arg(id, |arg| arg.default_values(values).required(false)))
        })
    }

    fn at(&self, span: Option<std::ops::Range<usize>>, problem: impl std::fmt::Display) -> String {
        let before = self.text.get(..span.map_or(0, |span| span.start)).unwrap_or_default();
        format!("{}, line {}: {problem}", self.path.display(), before.matches('\n').count() + 1)
    }
}

fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    settable(command).find(|arg| arg.get_long() == Some(name))
}

fn settable(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| !FLAGS_ONLY.contains(&long)))
}

fn unknown_key(command: &Command, name: &str) -> String {
    let known: Vec<&str> = settable(command).filter_map(Arg::get_long).collect();
    format!("unknown key `{name}`; known are {}", known.join(", "))
}

/// The value as the flag would take it on the command line.
#[allow(clippy::wildcard_enum_match_arm)] // TOML's own kinds: whatever is not the fitting one is described.
fn values_of(arg: &Arg, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, String> {
    let switch = matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse);
    let many = matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
    match value.get_ref() {
        DeValue::Boolean(on) if switch => Ok(vec![on.to_string()]),
        other if switch => Err(format!("must be true or false, not {}", describe(other))),
        DeValue::Array(items) if many => items.iter().map(|item| scalar(item.get_ref())).collect(),
        DeValue::Array(_) => Err("takes one value, not an array".to_owned()),
        other => scalar(other).map(|text| vec![text]),
    }
}

fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.as_str().to_owned()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
            Err(format!("must be a string or a number, not {}", describe(value)))
        }
    }
}

fn describe(value: &DeValue<'_>) -> String {
    let name = value.type_str();
    let article = if name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {name}")
}

/// Lets the flag's own parser judge the values, alone: what else is missing or set is not the file's fault.
fn check(arg: &Arg, values: &[String]) -> Result<(), String> {
    if matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse) {
        return Ok(());
    }
    let long = arg.get_long().unwrap_or_default();
    let probe = Command::new("probe").no_binary_name(true).arg(
        Arg::new("value")
            .long(long.to_owned())
            .action(arg.get_action().clone())
            .value_parser(arg.get_value_parser().clone()),
    );
    for value in values {
        if let Err(error) = probe.clone().try_get_matches_from([format!("--{long}={value}")]) {
            return Err(format!("has a wrong value: {}", reason(&error, value)));
        }
    }
    Ok(())
}

fn reason(error: &clap::Error, value: &str) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    source.unwrap_or_else(|| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        if first.is_empty() { format!("`{value}`") } else { first }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "program")]
    struct Program {
        #[command(flatten)]
        common: CommonArgs,
        #[arg(long)]
        slots: u32,
        #[arg(long)]
        label: Vec<String>,
        #[arg(long, value_delimiter = ',')]
        config_test_hosts: Vec<String>,
        #[arg(long)]
        fast: bool,
    }

    #[derive(Debug, Parser)]
    #[command(name = "outer")]
    enum Outer {
        Up(Program),
        Other,
    }

    fn load(file: &str, flags: &[&str]) -> Result<Program, String> {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("kiln.toml");
        std::fs::write(&path, file).expect("written");
        let config = format!("--config={}", path.display());
        let arguments = ["program", &config].into_iter().chain(flags.iter().copied());
        load_from(arguments).map_err(|error: clap::Error| error.to_string())
    }

    #[test]
    fn flags_go_over_the_file_and_the_file_over_defaults() {
        let file = "slots = 3\nlabel = [\"a=1\", \"b=2\"]\nfast = true\nlog-level = \"debug\"\n";
        let program = load(file, &["--slots", "5"]).expect("loads");
        assert_eq!((program.slots, program.fast), (5, true));
        assert_eq!(program.label, ["a=1", "b=2"]);
        assert_eq!(program.common.log_level, "debug");
        assert_eq!(load(file, &["--label", "c=3"]).expect("loads").label, ["c=3"]);
    }

    #[test]
    fn variables_are_named_after_flags() {
        let command = with_variables(<Program as clap::CommandFactory>::command());
        let variable = |id: &str| command.get_arguments().find(|arg| arg.get_id() == id)?.get_env()?.to_str();
        assert_eq!(variable("slots"), Some("KILN_SLOTS"));
        assert_eq!(variable("data_dir"), Some("KILN_DATA_DIR"));
    }

    #[test]
    fn what_is_required_may_stand_in_the_file() {
        assert_eq!(load("slots = 2", &[]).expect("loads").slots, 2);
        assert!(load("", &[]).expect_err("slots is missing").contains("--slots"));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let error = load("slots = 2\n\nslotz = 3\n", &[]).expect_err("unknown key");
        assert!(error.contains("kiln.toml, line 3: unknown key `slotz`") && error.contains("slots"), "{error}");
        assert!(load("config = \"x\"", &[]).expect_err("not settable").contains("unknown key `config`"));
    }

    #[test]
    fn wrong_types_and_values_name_key_and_line() {
        for (file, problem) in [
            ("\nslots = \"many\"", "line 2: `slots` has a wrong value: invalid digit"),
            ("slots = true", "line 1: `slots` must be a string or a number, not a boolean"),
            ("slots = [1, 2]", "line 1: `slots` takes one value, not an array"),
            ("slots = 1\nfast = \"yes\"", "line 2: `fast` must be true or false, not a string"),
            ("slots = 1\nlog-format = \"xml\"", "line 2: `log-format` has a wrong value: "),
            ("slots = \n", "line 1: "),
            ("slots = 1\nslots = 2", "line 2: "),
            ("slots = 1\n[worker]\nx = 1", "line 2: unknown key `worker`"),
        ] {
            let error = load(file, &[]).expect_err(file);
            assert!(error.contains(problem), "{file}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load_from::<Program>(["program", "--slots=1", "--config=/nowhere/kiln.toml"]).expect_err("no file");
        assert!(error.to_string().contains("there is no configuration file /nowhere/kiln.toml"));
    }

    #[test]
    fn a_subcommand_has_its_own_file() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("up.toml");
        std::fs::write(&path, "slots = 4").expect("written");
        let up = load_from::<Outer>(["outer".into(), "up".into(), "--config".into(), path.into_os_string()]);
        assert!(matches!(up.expect("loads"), Outer::Up(program) if program.slots == 4));
        assert!(matches!(load_from::<Outer>(["outer", "other"]).expect("loads"), Outer::Other));
    }
}
