//! The command line: parse, log, call the command, exit code.

use std::process::ExitCode;

use clap::{
    ColorChoice, CommandFactory, FromArgMatches as _, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use walhook::{
    commands::{self, paint::Color},
    config::{Config, Options},
    error::{Error, Result},
    log, text,
};

/// A sidecar for PostgreSQL: committed changes become JetStream messages, in order, exactly once.
///
/// Exit codes: 0 done, 2 configuration, 3 slot or stream cannot be trusted, 4 permission, 5 a newer run has taken over,
/// 70 a bug of walhook, 1 anything else.
#[derive(Parser)]
#[command(version = commands::VERSION.as_str(), about)]
struct Arguments {
    #[command(flatten, next_help_heading = "Settings of every command")]
    options: Options,
    /// Colours: on a terminal unless NO_COLOR is set, always or never
    #[arg(
        long,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        global = true,
        hide_possible_values = true,
        help_heading = "Settings of every command"
    )]
    color: Color,
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
    /// Remove what walhook made in the database, and its slots, and with --nats in NATS; tables that were there before stay
    Uninstall(commands::uninstall::Arguments),
    /// Publish committed changes until it is stopped (SIGTERM, Ctrl-C)
    Run {
        /// Do first what `walhook setup` does, by the same login
        #[arg(long)]
        setup: bool,
    },
    /// Call webhooks for the events in JetStream until it is stopped; any number of these can run side by side
    Deliver {
        #[command(flatten)]
        options: Box<commands::deliver::settings::Options>,
    },
    /// Find what could go wrong in PostgreSQL, NATS and the set-up, each with its remedy; the exit code says whether `run` would start
    Check(commands::check::Arguments),
    /// Show slot, streams, webhooks and dead letters
    Status(commands::status::Arguments),
    /// Show events as they are published
    Tail(commands::tail::Arguments),
    /// Show what each operation on a table would publish, and where
    Explain(commands::explain::Arguments),
    /// Show the JSON Schema of a table's rows, as consumers get it, or its versions
    Schema(commands::row_schemas::Arguments),
    /// List, show, retry or drop events that could not be published or delivered
    DeadLetters {
        #[command(subcommand)]
        action: commands::dead_letters::Action,
    },
    /// Test a webhook
    Webhook {
        #[command(subcommand)]
        action: commands::webhook::Action,
    },
    /// Publish events again, from an LSN or a time on
    Replay(commands::replay::Arguments),
    /// Publish the rows that a linked table has now, as events of op snapshot
    Backfill(commands::backfill::Arguments),
    /// Set a durable consumer to an LSN or a time; nothing is published again
    Seek(commands::seek::Arguments),
    /// Give a copied database an identity of its own, or keep the identity of a moved one
    Adopt(commands::adopt::Arguments),
    /// Start a throw-away PostgreSQL and nats-server, and show how rows become messages
    Demo(commands::demo::Arguments),
    /// Print completions for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each command into a folder
    Man {
        /// The folder
        #[arg(long, value_name = "FOLDER")]
        folder: Option<std::path::PathBuf>,
    },
    /// Show the version
    Version,
}

fn main() -> ExitCode {
    let outcome = log::start().and_then(|()| run());
    let code = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if tracing::dispatcher::has_been_set() {
                tracing::error!(exit_code = error.exit_code(), finding = error.name(), "{error}");
            } else {
                log::line(&format!("walhook: {error}"));
            }
            ExitCode::from(error.exit_code())
        }
    };
    log::flush();
    code
}

fn run() -> Result<()> {
    let parsed = Arguments::command().color(colour_of_help(words())).try_get_matches();
    let arguments = match parsed.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        // --help and --version: the answer that was asked for.
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return Ok(());
        }
        Err(error) => {
            if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                log::push(format!("{}\n", error.render()), true);
            }
            return Err(misspelt(&error, words()));
        }
    };
    // The protocol's order is one task's order; more threads would only take cores from the servers beside us.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::unavailable("start the runtime").caused_by(error))?;
    let outcome = runtime.block_on(execute(arguments));
    // A thread may still wait for a name server or for a file on a disk that is away.
    runtime.shutdown_background();
    outcome
}

/// The command line, as far as it is UTF-8.
fn words() -> impl Iterator<Item = String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned())
}

/// Whether help is coloured, which is printed before the command line is understood.
fn colour_of_help(mut arguments: impl Iterator<Item = String>) -> ColorChoice {
    let mut choice = ColorChoice::Auto;
    while let Some(argument) = arguments.next() {
        let value = match argument.strip_prefix("--color") {
            Some("") => arguments.next(),
            Some(value) => value.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        choice = match value.as_deref() {
            Some("always") => ColorChoice::Always,
            Some("never") => ColorChoice::Never,
            _ => choice,
        };
    }
    choice
}

/// What is wrong with the command line. Nothing of it is quoted but the names of flags: a password with a space or a quote in
/// it falls apart into words that may stand anywhere.
fn misspelt(error: &clap::Error, arguments: impl Iterator<Item = String>) -> Error {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(", "),
        _ => String::new(),
    };
    let is_flag = |text: &str| {
        text.strip_prefix("--").is_some_and(|name| name.bytes().all(|c| c.is_ascii_lowercase() || c == b'-'))
    };
    let argument = text(ContextKind::InvalidArg);
    let place = |word: &str| {
        let found = arguments.skip(1).position(|argument| argument == word);
        found.map_or_else(|| "an argument".to_owned(), |index| format!("argument {}", index + 1))
    };
    let what = match error.kind() {
        ErrorKind::UnknownArgument if is_flag(&argument) => format!("there is no flag {argument}"),
        ErrorKind::UnknownArgument => format!("{} is not expected", place(&argument)),
        ErrorKind::InvalidSubcommand => format!("{} is no command", place(&text(ContextKind::InvalidSubcommand))),
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue).is_empty() => format!("{argument} needs a value"),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => format!("{argument} cannot have this value"),
        ErrorKind::ArgumentConflict => {
            format!("{argument} cannot be used together with {}", text(ContextKind::PriorArg))
        }
        ErrorKind::MissingRequiredArgument => format!("{argument} is missing"),
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "a command is missing".to_owned()
        }
        ErrorKind::NoEquals => format!("{argument} needs a = before its value"),
        ErrorKind::TooManyValues | ErrorKind::TooFewValues | ErrorKind::WrongNumberOfValues => {
            format!("{argument} has too few or too many values")
        }
        ErrorKind::InvalidUtf8 => "an argument is not UTF-8".to_owned(),
        _ => "it cannot be understood".to_owned(),
    };
    let near = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand].map(text).concat();
    let choices = match error.kind() {
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            text(ContextKind::ValidSubcommand)
        }
        _ => text(ContextKind::ValidValue),
    };
    let hint = match (near.is_empty(), choices.is_empty()) {
        (false, _) => {
            format!("did you mean {}? `walhook help` shows every command and flag", near.replace(", ", " or "))
        }
        (true, false) => format!("use one of {choices}"),
        (true, true) => "`walhook help` shows every command and flag".to_owned(),
    };
    Error::config(format!("read the command line: {what}")).hint(hint)
}

async fn execute(arguments: Arguments) -> Result<()> {
    let Arguments { options, color, command } = arguments;
    commands::paint::choose(color);
    commands::run::faults::arm()?;
    if let Command::Version = command {
        return commands::say(&format!("{}\n", commands::version()));
    }
    match &command {
        Command::Completions { shell } => return completions(*shell),
        Command::Man { folder } => return manual(folder.as_deref()),
        Command::Demo(arguments) => match Box::pin(commands::demo::demo(arguments)).await? {
            0 => return Ok(()),
            code => log::exit(code.into()),
        },
        _ => {}
    }
    if let Command::Setup { print: true } = command {
        // Nothing is connected to, so nothing but the names is needed.
        return commands::say(&commands::setup::script(&options)?);
    }
    // Without a database, nobody has to be known there.
    let needs_user = !matches!(&command, Command::Deliver { options } if options.no_database);
    let config = Config::load(&options, |name| {
        std::env::var(name).ok().or_else(|| (name == "PGUSER" && !needs_user).then(|| "nobody".to_owned()))
    })?;
    log::init(&config.log, config.log_format)?;
    #[cfg(feature = "otlp")]
    let exporter = match &command {
        Command::Run { .. } | Command::Deliver { .. } => commands::otlp::start()?,
        _ => None,
    };
    let outcome = work(&config, command).await;
    #[cfg(feature = "otlp")]
    if let Some(exporter) = exporter {
        exporter.finish().await;
    }
    outcome
}

/// The verbs that need a configuration.
async fn work(config: &Config, command: Command) -> Result<()> {
    match command {
        Command::Run { setup } => Box::pin(commands::run::run(config, setup, shutdown()?)).await,
        Command::Deliver { options } => commands::deliver::deliver(config, &options, shutdown()?).await,
        Command::Setup { .. } => commands::setup::setup(config).await,
        Command::Uninstall(arguments) => commands::uninstall::uninstall(config, &arguments).await,
        Command::Check(arguments) => commands::check::check(config, &arguments).await,
        Command::Status(arguments) => match commands::status::status(config, &arguments, shutdown()?).await? {
            0 => Ok(()),
            // What --check has found, and printed.
            code => log::exit(code.into()),
        },
        Command::Tail(arguments) => commands::tail::tail(config, &arguments, shutdown()?).await,
        Command::Explain(arguments) => commands::explain::explain(config, &arguments).await,
        Command::Schema(arguments) => commands::row_schemas::show(config, &arguments).await,
        Command::DeadLetters { action } => commands::dead_letters::dead_letters(config, &action).await,
        Command::Webhook { action } => commands::webhook::webhook(config, &action).await,
        Command::Replay(arguments) => commands::replay::replay(config, &arguments, shutdown()?).await,
        Command::Backfill(arguments) => commands::backfill::backfill(config, &arguments, shutdown()?).await,
        Command::Seek(arguments) => commands::seek::seek(config, &arguments).await,
        Command::Adopt(arguments) => commands::adopt::adopt(config, &arguments).await,
        Command::Version | Command::Completions { .. } | Command::Man { .. } | Command::Demo(_) => {
            unreachable!("answered above")
        }
    }
}

fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "walhook", &mut script);
    commands::say_bytes(&script)
}

fn manual(folder: Option<&std::path::Path>) -> Result<()> {
    if let Some(folder) = folder {
        return clap_mangen::generate_to(Arguments::command(), folder).map_err(|error| {
            Error::config(format!("write the manual pages into {}", text::one_line(&folder.to_string_lossy())))
                .caused_by(error)
                .hint("the folder has to be there")
        });
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(Arguments::command())
        .render(&mut page)
        .map_err(|error| Error::unavailable("make the manual page").caused_by(error))?;
    commands::say_bytes(&page)
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
                tracing::warn!("second signal to stop: walhook ends at once; unconfirmed events will be sent again");
                log::exit(1);
            }
        }
    });
    Ok(receiver)
}
