//! `kiln token`: the tokens with which people and CI call the farm.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use kiln_common::Timestamp;
use kiln_proto::{
    convert::{duration_to_wire, timestamp_from_wire},
    v1::{self, ApiToken, CreateApiTokenRequest, ListApiTokensRequest, RevokeApiTokenRequest},
};

use super::{duration_flag, incomplete_answer};
use crate::{
    connection::Farm,
    failure::Failure,
    output::{self, Format, OutputFlag, Paint, Table, text},
};

#[derive(Debug, Args)]
pub struct Token {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token; its secret is shown once
    Create(Create),
    /// List tokens, without their secrets
    Ls(OutputFlag),
    /// Revoke a token at once
    Rm {
        /// Its id, or a prefix that only one token has
        id: String,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// What it is for, for people
    #[arg(value_name = "NAME")]
    name: String,
    /// What its holder may do
    #[arg(long, value_enum, default_value_t = Role::Submitter)]
    role: Role,
    /// How long it is valid, for example 12h or 30d [default: until it is revoked]
    #[arg(long, value_name = "DURATION", value_parser = duration_flag)]
    ttl: Option<Duration>,
    #[command(flatten)]
    output: OutputFlag,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// Reads
    Viewer,
    /// Also submits, cancels and retries builds
    Submitter,
    /// Also looks after workers, tokens and projects
    Admin,
}

impl Role {
    const fn wire(self) -> v1::Role {
        match self {
            Self::Viewer => v1::Role::Viewer,
            Self::Submitter => v1::Role::Submitter,
            Self::Admin => v1::Role::Admin,
        }
    }
}

pub async fn run(token: Token, farm: &Farm) -> Result<(), Failure> {
    match token.action {
        Action::Create(create) => self::create(create, farm).await,
        Action::Ls(output) => {
            let tokens = farm.call(async |link| link.farm().list_api_tokens(ListApiTokensRequest {}).await).await?;
            output::print(output.output, &tokens, |paint| table(&tokens.tokens, paint))
        }
        Action::Rm { id } => rm(&id, farm).await,
    }
}

async fn create(create: Create, farm: &Farm) -> Result<(), Failure> {
    let request = CreateApiTokenRequest {
        name: create.name,
        role: create.role.wire().into(),
        ttl: create.ttl.map(duration_to_wire),
    };
    let made = farm.call_once(async |link| link.farm().create_api_token(request.clone()).await).await?;
    if create.output.output != Format::Table {
        return output::print(create.output.output, &made, |_| String::new());
    }
    let token = made.token.as_ref().ok_or_else(|| incomplete_answer("token"))?;
    // The secret alone on standard output, so that it can be piped into a file.
    output::aside(&format!("token `{}` ({}), shown once:\n", token.name, role(token.role())));
    output::write(&format!("{}\n", made.secret))
}

async fn rm(id: &str, farm: &Farm) -> Result<(), Failure> {
    let tokens = farm.call(async |link| link.farm().list_api_tokens(ListApiTokensRequest {}).await).await?.tokens;
    let found: Vec<&ApiToken> = tokens.iter().filter(|token| token.id.starts_with(id) || token.name == id).collect();
    let [token] = found.as_slice() else {
        let problem = if found.is_empty() { "no token has" } else { "several tokens have" };
        return Err(Failure::usage(format!("{problem} the id or name `{id}`")).remedy("see them with `kiln token ls`"));
    };
    let request = RevokeApiTokenRequest { id: token.id.clone() };
    farm.call(async |link| link.farm().revoke_api_token(request.clone()).await).await?;
    output::write(&format!("revoked token `{}` ({})\n", token.name, token.id))
}

const fn role(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Unspecified | v1::Role::Viewer => "viewer",
        v1::Role::Submitter => "submitter",
        v1::Role::Admin => "admin",
    }
}

fn table(tokens: &[ApiToken], paint: Paint) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(["ID", "NAME", "ROLE", "AGE", "EXPIRES"]);
    for token in tokens {
        let expires = match token.expires_at.as_ref().map(timestamp_from_wire) {
            None => "never".to_owned(),
            Some(at) if at <= now => paint.red("expired"),
            Some(at) => format!("in {}", text::ahead(at.since(now))),
        };
        table.row([
            text::short_id(&token.id).to_owned(),
            token.name.clone(),
            role(token.role()).to_owned(),
            text::age_of(token.created_at.as_ref(), now),
            expires,
        ]);
    }
    table.render(paint)
}
