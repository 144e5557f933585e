//! `kiln workers`: who is in the farm, and what an operator does with them.

use std::time::Duration;

use clap::{Args, Subcommand};
use kiln_common::Timestamp;
use kiln_proto::{
    convert::{duration_to_wire, timestamp_from_wire},
    v1::{
        CordonRequest, CreateJoinTokenRequest, DrainRequest, GetWorkerRequest, JoinToken, ListJoinTokensRequest,
        ListWorkersRequest, RemoveWorkerRequest, RevokeJoinTokenRequest, UpdateWorkerRequest, WatchWorkersRequest,
        Worker, WorkerState,
    },
};

use super::{duration_flag, label_flag, labels_text, platforms_text};
use crate::{
    connection::Farm,
    failure::Failure,
    output::{self, Format, OutputFlag, Paint, Table, text},
};

#[derive(Debug, Args)]
pub struct Workers {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List all workers
    Ls(OutputFlag),
    /// Show one worker
    Show {
        /// Name or id
        worker: String,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// Let a worker take no new task
    Cordon {
        /// Name or id
        worker: String,
        /// Why, for people
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Let a worker take tasks again
    Uncordon {
        /// Name or id
        worker: String,
    },
    /// Let a worker finish what it has and take nothing new
    Drain {
        /// Name or id
        worker: String,
        /// Return once its last task has ended
        #[arg(long)]
        wait: bool,
        /// Why, for people
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Forget a worker and revoke its certificate at once
    Rm {
        /// Name or id
        worker: String,
    },
    /// Set labels, remove them, or change the number of slots
    Label(Label),
    /// Make, list and revoke the tokens that workers join with
    Token {
        #[command(subcommand)]
        action: TokenAction,
    },
}

#[derive(Debug, Args)]
struct Label {
    /// Name or id
    worker: String,
    /// KEY=VALUE sets a label, KEY- removes it
    #[arg(value_name = "KEY=VALUE | KEY-")]
    labels: Vec<String>,
    /// How many tasks it takes at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    slots: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum TokenAction {
    /// Make a token and print the command that joins a worker with it
    Create {
        /// How long it is valid
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration_flag)]
        ttl: Duration,
        /// How many workers may join with it
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        uses: u32,
        /// A label that the workers get
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label_flag)]
        labels: Vec<(String, String)>,
        #[command(flatten)]
        output: OutputFlag,
    },
    /// List tokens, also those that have ended, without their secrets
    Ls(OutputFlag),
    /// Revoke a token at once; workers that joined with it stay
    Rm {
        /// Its id, or the beginning of it
        id: String,
    },
}

pub async fn run(workers: Workers, farm: &Farm) -> Result<(), Failure> {
    match workers.action.unwrap_or(Action::Ls(OutputFlag { output: Format::Table })) {
        Action::Ls(output) => {
            let all = farm.call(async |link| link.farm().list_workers(ListWorkersRequest {}).await).await?;
            output::print(output.output, &all, |paint| table(&all.workers, paint))
        }
        Action::Show { worker, output } => {
            let worker = get(&worker, farm).await?;
            output::print(output.output, &worker, |paint| show(&worker, paint))
        }
        Action::Cordon { worker, reason } => cordon(worker, true, reason, farm).await,
        Action::Uncordon { worker } => cordon(worker, false, String::new(), farm).await,
        Action::Drain { worker, wait, reason } => drain(worker, wait, reason, farm).await,
        Action::Rm { worker } => {
            let request = RemoveWorkerRequest { id: worker.clone() };
            farm.call(async |link| link.farm().remove_worker(request.clone()).await).await?;
            output::write(&format!("removed `{worker}`; its certificate is revoked\n"))
        }
        Action::Label(change) => label(change, farm).await,
        Action::Token { action: TokenAction::Create { ttl, uses, labels, output } } => {
            let labels = labels.into_iter().collect();
            let request = CreateJoinTokenRequest { ttl: Some(duration_to_wire(ttl)), uses, labels };
            token(request, output.output, farm).await
        }
        Action::Token { action: TokenAction::Ls(output) } => {
            let all = farm.call(async |link| link.farm().list_join_tokens(ListJoinTokensRequest {}).await).await?;
            output::print(output.output, &all, |paint| token_table(&all.tokens, paint))
        }
        Action::Token { action: TokenAction::Rm { id } } => {
            let request = RevokeJoinTokenRequest { id: id.clone() };
            farm.call(async |link| link.farm().revoke_join_token(request.clone()).await).await?;
            output::write(&format!("revoked the join token `{id}`\n"))
        }
    }
}

async fn get(worker: &str, farm: &Farm) -> Result<Worker, Failure> {
    let request = GetWorkerRequest { id: worker.to_owned() };
    farm.call(async |link| link.farm().get_worker(request.clone()).await).await
}

async fn cordon(id: String, cordoned: bool, reason: String, farm: &Farm) -> Result<(), Failure> {
    let request = CordonRequest { id, cordoned, reason };
    let worker = farm.call(async |link| link.farm().cordon(request.clone()).await).await?;
    output::write(&format!("`{}` is {}\n", worker.name, text::worker_state(worker.state())))
}

async fn drain(id: String, wait: bool, reason: String, farm: &Farm) -> Result<(), Failure> {
    let request = DrainRequest { id, reason };
    let mut worker = farm.call(async |link| link.farm().drain(request.clone()).await).await?;
    while wait && !is_drained(&worker) {
        output::aside(&format!("waiting for `{}`: {} of its tasks still run\n", worker.name, worker.slots_used));
        worker = next_change(&worker, farm).await?;
    }
    let state = if is_drained(&worker) { "drained" } else { text::worker_state(worker.state()) };
    output::write(&format!("`{}` is {state}\n", worker.name))
}

fn is_drained(worker: &Worker) -> bool {
    worker.slots_used == 0 && worker.task_ids.is_empty() || worker.state() == WorkerState::Offline
}

/// The worker once it has other tasks than now, however long that takes and however often the farm restarts.
async fn next_change(known: &Worker, farm: &Farm) -> Result<Worker, Failure> {
    loop {
        let opened = farm.call(async |link| link.farm().watch_workers(WatchWorkersRequest {}).await).await;
        let mut stream = opened?;
        while let Ok(Some(worker)) = stream.message().await {
            if worker.id == known.id && (worker.slots_used != known.slots_used || is_drained(&worker)) {
                return Ok(worker);
            }
        }
        farm.forget();
    }
}

async fn label(change: Label, farm: &Farm) -> Result<(), Failure> {
    if change.labels.is_empty() && change.slots.is_none() {
        return Err(Failure::usage("nothing to change").remedy("write KEY=VALUE, KEY- or --slots N"));
    }
    let (mut set_labels, mut remove_labels) = (std::collections::HashMap::new(), Vec::new());
    for text in &change.labels {
        match (text.split_once('='), text.strip_suffix('-')) {
            (Some((key, value)), _) if !key.is_empty() => drop(set_labels.insert(key.to_owned(), value.to_owned())),
            (None, Some(key)) if !key.is_empty() => remove_labels.push(key.to_owned()),
            _ => {
                return Err(Failure::usage(format!("`{text}` is not a label"))
                    .remedy("KEY=VALUE sets a label, KEY- removes it"));
            }
        }
    }
    let request =
        UpdateWorkerRequest { id: change.worker, set_labels, remove_labels, slots: change.slots.unwrap_or(0) };
    let worker = farm.call(async |link| link.farm().update_worker(request.clone()).await).await?;
    output::write(&format!(
        "`{}` has {} slots and the labels {}\n",
        worker.name,
        worker.slots,
        labels_text(&worker.labels)
    ))
}

async fn token(request: CreateJoinTokenRequest, format: Format, farm: &Farm) -> Result<(), Failure> {
    let made = farm.call_once(async |link| link.farm().create_join_token(request.clone()).await).await?;
    if format != Format::Table {
        return output::print(format, &made, |_| String::new());
    }
    let until = made.expires_at.as_ref().map(|at| text::ahead(timestamp_from_wire(at).since(Timestamp::now())));
    let workers = if request.uses == 1 { "one worker".to_owned() } else { format!("{} workers", request.uses) };
    let until = until.unwrap_or_else(|| "a while".to_owned());
    output::aside(&format!("joins {workers}, for {until}; run this on the board as root:\n"));
    output::write(&format!(
        "umask 077; echo {} > /etc/kiln-join-token && kiln-worker --coordinator {} --join-token-file /etc/kiln-join-token\n",
        made.token, made.coordinator
    ))
}

fn token_table(tokens: &[JoinToken], paint: Paint) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(["ID", "AGE", "ENDS", "USES LEFT", "LABELS"]);
    for token in tokens {
        let ends =
            token.expires_at.as_ref().map(|at| format!("in {}", text::ahead(timestamp_from_wire(at).since(now))));
        table.row([
            paint.bold(&token.id),
            text::age_of(token.created_at.as_ref(), now),
            if token.ended.is_empty() { ends.unwrap_or_default() } else { paint.yellow(&token.ended) },
            token.uses_left.to_string(),
            labels_text(&token.labels),
        ]);
    }
    if tokens.is_empty() {
        return "there are no join tokens; make one with `kiln workers token create`\n".to_owned();
    }
    table.render(paint)
}

fn table(workers: &[Worker], paint: Paint) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(["NAME", "STATE", "SLOTS", "PLATFORMS", "ENGINE", "CPU", "SEEN"]);
    for worker in workers {
        let engine = worker.engine.as_ref().map(|engine| format!("{} {}", engine.kind, engine.version));
        let machine = worker.machine.as_ref();
        table.row([
            paint.bold(&worker.name),
            text::paint_state(paint, text::worker_state(worker.state())),
            format!("{}/{}", worker.slots_used, worker.slots),
            platforms_text(&worker.platforms),
            engine.unwrap_or_else(|| "-".to_owned()),
            machine.map_or_else(|| "-".to_owned(), |machine| format!("{} × {}", machine.cpus, machine.cpu_model)),
            text::age_of(worker.last_seen_at.as_ref(), now),
        ]);
    }
    if workers.is_empty() {
        return "no worker has joined; make a token with `kiln workers token create`\n".to_owned();
    }
    table.render(paint)
}

fn show(worker: &Worker, paint: Paint) -> String {
    let now = Timestamp::now();
    let state = text::paint_state(paint, text::worker_state(worker.state()));
    let why = if worker.state_reason.is_empty() { String::new() } else { format!(": {}", worker.state_reason) };
    let mut lines = vec![
        ("name", paint.bold(&worker.name)),
        ("id", worker.id.clone()),
        ("state", state + &why),
        ("slots", format!("{} of {} in use", worker.slots_used, worker.slots)),
        ("platforms", platforms_text(&worker.platforms)),
        ("labels", labels_text(&worker.labels)),
    ];
    if let Some(engine) = &worker.engine {
        lines.push(("engine", format!("{} {}", engine.kind, engine.version)));
        lines.push(("features", engine.features.join(", ")));
    }
    if let Some(machine) = &worker.machine {
        lines.push(("machine", format!("{} × {}, {}", machine.cpus, machine.cpu_model, machine.os)));
        lines.push(("memory", text::bytes(machine.memory_bytes)));
        lines.push(("kiln", machine.kiln_version.clone()));
    }
    if let Some(stats) = &worker.stats {
        let throttled = if stats.throttled { paint.red(", throttled") } else { String::new() };
        lines.push(("load", format!("{:.2}{throttled}", stats.load1)));
        lines.push((
            "free",
            format!(
                "{} memory, {} disk",
                text::bytes(stats.memory_available_bytes),
                text::bytes(stats.disk_available_bytes)
            ),
        ));
        let waits = [("CPU", stats.cpu_pressure), ("memory", stats.memory_pressure), ("disk", stats.io_pressure)];
        let waits = waits.iter().filter_map(|(what, percent)| Some(format!("{what} {:.0} %", (*percent)?)));
        lines.push(("waits for", waits.collect::<Vec<_>>().join(", ")));
        if stats.temperature_celsius > 0.0 {
            lines.push(("temperature", format!("{:.0} °C", stats.temperature_celsius)));
        }
    }
    lines.push(("seen", format!("{} ago", text::age_of(worker.last_seen_at.as_ref(), now))));
    lines.push(("joined", format!("{} ago", text::age_of(worker.joined_at.as_ref(), now))));
    lines.extend(worker.task_ids.iter().map(|task| ("task", task.clone())));
    let line = |(key, value): (&str, String)| format!("{} {value}\n", paint.dim(&format!("{key:11}")));
    lines.into_iter().filter(|(_, value)| !value.is_empty()).map(line).collect()
}
