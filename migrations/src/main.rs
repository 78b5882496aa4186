//! The command line of the migrations.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use sea_orm_migration::sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};
use task_retry_migrations::{down, status, up};

/// Creates and upgrades task-retry's table, t_sys_mq_resend_log.
///
/// Exit codes: 0 done, 1 the database or the migrations refused, 2 wrong usage.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// e.g. postgres://user:password@host/database, mysql://…, sqlite://file.db?mode=rwc
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true, value_name = "URL")]
    database_url: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Apply what is pending; safe to run many times, and many at once
    Up,
    /// Roll back; dropping a table drops its tasks (a table of the starter is never dropped)
    Down(Down),
    /// List the migrations and whether they are applied; changes nothing
    Status,
}

#[derive(Args)]
struct Down {
    /// How many migrations to roll back, newest first
    #[arg(short = 'n', long, default_value_t = 1, conflicts_with = "all")]
    steps: u32,

    /// Roll back all of them and forget that there were any
    #[arg(long)]
    all: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let Some(url) = cli.database_url.filter(|url| !url.is_empty()) else {
        eprintln!("error: no database: give --database-url or set DATABASE_URL");
        return ExitCode::from(2);
    };
    let url = match accepted(&url) {
        Ok(url) => url,
        Err(reason) => {
            eprintln!("error: {reason}");
            return ExitCode::from(2);
        }
    };
    match run(cli.command, url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}{}", hint(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command, url: String) -> Result<(), DbErr> {
    let mut options = ConnectOptions::new(url);
    options.max_connections(1).connect_timeout(Duration::from_secs(10)).sqlx_logging(false);
    let db = Database::connect(options).await?;

    match command {
        Command::Up => up(&db).await?,
        Command::Down(Down { all: true, .. }) => down(&db, None).await?,
        Command::Down(Down { steps, .. }) => down(&db, Some(steps)).await?,
        Command::Status => {}
    }
    print_status(&db).await?;
    db.close().await
}

async fn print_status(db: &DatabaseConnection) -> Result<(), DbErr> {
    let migrations = status(db).await?;
    let width = migrations.iter().map(|it| it.name.len()).max().unwrap_or(0);
    for migration in migrations {
        println!("{:width$}  {}", migration.name, migration.state);
    }
    Ok(())
}

/// The URL as SeaORM takes it, or what is wrong with it, without the password that may be in it.
fn accepted(url: &str) -> Result<String, String> {
    let Some((scheme, rest)) = url.split_once(':') else {
        return Err("the database URL has no scheme; \
                    write postgres://…, mysql://… or sqlite://…"
            .to_owned());
    };
    let (scheme, feature, built_in) = match scheme {
        "postgres" | "postgresql" => ("postgres", "postgres", cfg!(feature = "postgres")),
        "mysql" | "mariadb" => ("mysql", "mysql", cfg!(feature = "mysql")),
        "sqlite" => ("sqlite", "sqlite", cfg!(feature = "sqlite")),
        other => {
            return Err(format!(
                "`{other}` databases are not supported; write postgres://…, mysql://… or sqlite://…"
            ));
        }
    };
    if !built_in {
        return Err(format!(
            "this binary was built without {scheme}; build it with `--features {feature}`"
        ));
    }
    Ok(format!("{scheme}:{rest}"))
}

fn hint(error: &DbErr) -> &'static str {
    let text = error.to_string();
    if text.contains("unable to open database file") {
        "\nhint: SQLite makes a new file only if the URL ends with ?mode=rwc"
    } else if text.contains("denied") {
        "\nhint: migrating needs the rights to create and alter tables; \
         the scripts in sql/ can be run by someone who has them"
    } else if text.contains("pool timed out") {
        "\nhint: is the server up, and are host and port right?"
    } else {
        ""
    }
}
