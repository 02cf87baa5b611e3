//! The command line: parse, log, call the command, exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing_subscriber::EnvFilter;
use walhook::{
    commands,
    config::{Config, LogFormat, Options},
    error::{Error, Result},
};

/// A sidecar for PostgreSQL: committed changes become JetStream messages, in order, exactly once.
///
/// Exit codes: 0 done, 2 configuration, 3 slot or stream cannot be trusted, 4 permission, 5 a newer run has taken over,
/// 1 anything else.
#[derive(Parser)]
#[command(version, about, disable_version_flag = true)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Apply the migrations, create publications and slot; safe to repeat
    Setup {
        /// Print the SQL for a DBA instead of running it
        #[arg(long)]
        print: bool,
    },
    /// Remove what walhook made in the database, and its slots; tables that were there before stay
    Uninstall(commands::uninstall::Arguments),
    /// Stream until told to stop
    Run,
    /// Take events from JetStream and call the webhooks, until told to stop; any number may run side by side
    Deliver {
        #[command(flatten)]
        options: Box<commands::deliver::settings::Options>,
    },
    /// Show slot, streams, webhooks and dead letters
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List, show, retry or drop what could not be published
    DeadLetters {
        #[command(subcommand)]
        action: commands::dead_letters::Action,
    },
    /// Publish again what a stream holds since an LSN or a time
    Replay(commands::replay::Arguments),
    /// Send the rows of a linked table as events of op snapshot
    Backfill(commands::backfill::Arguments),
    /// Set a durable consumer to an LSN or a time; nothing is published again
    Seek(commands::seek::Arguments),
    /// Show the version
    Version,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // The protocol's order is one task's order; more threads would only take cores from the servers beside us.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime
        .map_err(|error| Error::unavailable("start the runtime").caused_by(error))
        .and_then(|runtime| runtime.block_on(execute(arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if tracing::dispatcher::has_been_set() {
                tracing::error!(exit_code = error.exit_code(), "{error}");
            } else {
                eprintln!("walhook: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

async fn execute(arguments: Arguments) -> Result<()> {
    let Arguments { options, command } = arguments;
    commands::run::faults::arm()?;
    if let Command::Version = command {
        return commands::say(&format!("{}\n", commands::version()));
    }
    if let Command::Setup { print: true } = command {
        // Nothing is connected to, so nothing but the names is needed.
        return commands::say(&commands::setup::script(&options)?);
    }
    if let Command::Uninstall(commands::uninstall::Arguments { print: true, .. }) = command {
        return commands::say(&commands::uninstall::script(&options)?);
    }
    // Without a database, nobody has to be known there.
    let needs_user = !matches!(&command, Command::Deliver { options } if options.no_database);
    let config = Config::load(&options, |name| {
        std::env::var(name).ok().or_else(|| (name == "PGUSER" && !needs_user).then(|| "nobody".to_owned()))
    })?;
    log(&config)?;
    match command {
        Command::Run => commands::run::run(&config, shutdown()?).await,
        Command::Deliver { options } => commands::deliver::deliver(&config, &options, shutdown()?).await,
        Command::Setup { .. } => commands::setup::setup(&config).await,
        Command::Uninstall(arguments) => commands::uninstall::uninstall(&config, &arguments).await,
        Command::Status { json } => commands::status::status(&config, json).await,
        Command::DeadLetters { action } => commands::dead_letters::dead_letters(&config, &action).await,
        Command::Replay(arguments) => commands::replay::replay(&config, &arguments, shutdown()?).await,
        Command::Backfill(arguments) => commands::backfill::backfill(&config, &arguments, shutdown()?).await,
        Command::Seek(arguments) => commands::seek::seek(&config, &arguments).await,
        Command::Version => unreachable!("answered above"),
    }
}

fn log(config: &Config) -> Result<()> {
    // The client tells of every connection of its own; ours are told by the lanes. A directive of the user wins.
    let filter = EnvFilter::try_new(format!("async_nats=warn,{}", config.log))
        .map_err(|error| Error::config(format!("log level {:?}", config.log)).caused_by(error))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// Turns true at the first SIGTERM or SIGINT; the second one ends the process at once.
fn shutdown() -> Result<watch::Receiver<bool>> {
    let listen = |kind| signal(kind).map_err(|error| Error::unavailable("listen for signals").caused_by(error));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if sender.send_replace(true) {
                tracing::warn!("told twice to stop: leaving at once; what is not confirmed comes again");
                std::process::exit(1);
            }
        }
    });
    Ok(receiver)
}
