//! The documentation is a book, and true: its examples run as they stand, what it says of the messages is so, its links lead
//! somewhere, and its reference is what code and database say.

#![allow(clippy::unwrap_used)]

mod page;
mod reference;
mod story;

use std::{collections::BTreeSet, fs, path::Path};

use async_nats::jetstream::consumer::DeliverPolicy;
use page::{Page, root};
use story::Story;

use crate::support::{eventually, feed::Feed};

/// The pages of the guide, which continue one example; they run in this order on one database.
const GUIDE: [&str; 10] = [
    "docs/tables.md",
    "docs/calls.md",
    "docs/subjects.md",
    "docs/payloads.md",
    "docs/streams.md",
    "docs/configuration.md",
    "docs/dead-letters.md",
    "docs/large-events.md",
    "docs/history.md",
    "docs/replay.md",
];

/// Pages that begin without a running walhook: they start it themselves, or need none.
const STARTS_ITSELF: [&str; 4] = ["README.md", "docs/NATS_INTEGRATION.md", "docs/operations.md", "docs/quick-start.md"];

/// Pages of the book and beside it.
fn pages() -> Vec<Page> {
    let beside = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/workers/README.md"];
    page::below("docs").into_iter().chain(beside.map(Page::read)).collect()
}

/// Pages with examples that are for the developers of walhook, whose commands CI runs, or for what tests/delivery/workers.rs runs.
const FOR_DEVELOPERS: [&str; 4] =
    ["CONTRIBUTING.md", "docs/performance.md", "docs/guarantees.md", "examples/workers/README.md"];

#[tokio::test]
async fn the_guide_runs_from_top_to_bottom_and_says_what_arrives() {
    let feed = Feed::start().await;
    let mut walhook = feed.run();
    // The rules that the first run finds hold from the slot's beginning on: a reader has started it before he types.
    walhook.logged("slot taken").await;
    let mut story = Story::on(feed).await;
    for page in GUIDE {
        story.run(&Page::read(page)).await;
    }
    let feed = story.end();
    feed.confirmed().await;
    let messages = feed.messages().await;
    let seen: Vec<_> = messages.iter().map(|message| format!("{} {}", message.sequence, message.subject)).collect();
    let expected = [
        "webhooks.orders.insert", // 1
        "webhooks.orders.update",
        "webhooks.orders.delete",
        "webhooks.orders.insert", // a large value …
        "webhooks.orders.update", // … and not again
        "webhooks.orders",        // 6: the calls
        "webhooks.orders",
        "webhooks.orders.Ada%20%26%20Co%2E.insert",
        "webhooks.orders.Ada%20%26%20Co%2E.update", // of three, one is for the second webhook too
        "webhooks.orders.Ada%20%26%20Co%2E.update",
        "webhooks.paid", // 11
        "webhooks.orders.Ada%20%26%20Co%2E.update",
        "webhooks.orders.insert", // the formats
        "webhooks.orders.insert",
        "webhooks.orders.insert",
        "webhooks.orders.insert",
        "webhooks.orders.insert",
        "webhooks.orders",        // a call with a header
        "webhooks.orders.insert", // 19: the configuration changes between two rows
        "webhooks.orders.insert",
        "webhooks.orders.insert", // a dead letter, retried
        "webhooks.orders",        // 22: the call that is waited for
    ];
    // The backfill: every row that the guide has left in the table.
    let rows: usize = feed.pg.psql("SELECT count(*) FROM orders").parse().unwrap();
    let expected = [&expected[..], &vec!["webhooks.orders.snapshot"; rows]].concat();
    let expected: Vec<_> = expected.iter().enumerate().map(|(at, subject)| format!("{} {subject}", at + 1)).collect();
    assert_eq!(seen, expected);
    assert_eq!(messages[4].payload["event"]["unchanged"][0], "doc");
    assert_eq!(messages[10].data()["amount"], 6.0);
    assert_eq!(messages[10].payload["event"]["old"]["status"], "new");
    assert_eq!(messages[12].payload["id"], 10);
    assert_eq!(messages[13].payload["op"], "c");
    assert_eq!(messages[14].payload["specversion"], "1.0");
    assert_eq!(
        (messages[15].header("ce-type"), messages[15].payload["id"].as_i64()),
        ("public.orders.insert", Some(13))
    );
    assert_eq!(messages[16].payload["headers"], serde_json::json!({"Content-Type": "application/json"}));
    assert_eq!((messages[17].header("X-Team"), messages[17].header("Trace-Id")), ("billing", "4bf92f35"));
    assert_eq!(messages[18].payload["event"]["op"], "insert");
    assert_eq!(messages[19].payload["id"], 21);
    assert_eq!(messages[20].data()["id"], 31);
    let letters = "SELECT string_agg(status, ' ' ORDER BY dead_letter_id) FROM rule_nats_dead_letters";
    assert_eq!(feed.pg.psql(letters), "dropped retried");
    let history =
        "SELECT count(*) FILTER (WHERE success), count(*) FILTER (WHERE NOT success) FROM rule_nats_publish_history";
    assert_eq!(feed.pg.psql(history), format!("{}|2", 22 + rows));
    assert_eq!(feed.pg.psql("SELECT rows_sent FROM rule_cdc_backfills"), rows.to_string());
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

/// A page by itself, with walhook beside it unless the page starts it.
async fn run_alone(page: &Page) -> Feed {
    let feed = Feed::start().await;
    let walhook = (!STARTS_ITSELF.contains(&page.name.as_str())).then(|| feed.run());
    let mut story = Story::on(feed).await;
    story.run(page).await;
    let feed = story.end();
    if let Some(mut walhook) = walhook {
        // A page may be shorter than the start: SIGTERM before walhook listens for it ends any process.
        walhook.logged("slot taken").await;
        assert_eq!(walhook.terminate(), 0, "{}: {}", page.name, walhook.log());
    }
    feed
}

#[tokio::test]
async fn every_other_page_runs_by_itself() {
    let alone = pages().into_iter().filter(|page| {
        let name = page.name.as_str();
        !GUIDE.contains(&name)
            && !FOR_DEVELOPERS.contains(&name)
            && !["docs/quick-start.md", QUEUE, SCHEMAS].contains(&name)
    });
    for page in alone {
        let has_examples = page
            .examples()
            .iter()
            .any(|example| example.not_run.is_none() && ["sql", "sh"].contains(&example.language.as_str()));
        if has_examples {
            run_alone(&page).await;
        }
    }
}

#[tokio::test]
async fn the_quick_start_ends_with_three_messages() {
    let feed = run_alone(&Page::read("docs/quick-start.md")).await;
    let subjects: Vec<_> = feed.messages().await.into_iter().map(|message| message.subject).collect();
    assert_eq!(subjects, ["webhooks.orders.insert", "webhooks.orders.update", "webhooks.orders"]);
}

const SCHEMAS: &str = "docs/json-schemas.md";

#[tokio::test]
async fn an_event_of_changed_columns_is_what_its_page_shows() {
    let page = Page::read(SCHEMAS);
    let shown = page.examples().into_iter().find(|example| example.code.starts_with(r#"{"added""#)).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown.code).unwrap();
    let messages = run_alone(&page).await.after(&[]).await;
    let seen: Vec<_> = messages.iter().map(|message| message.subject.as_str()).collect();
    let (row, columns) = ("webhooks.orders", "webhooks.orders.columns");
    assert_eq!(seen, [row, row, columns, columns, row]);
    assert_eq!(*messages[3].data(), shown);
}

const QUEUE: &str = "docs/queue-to-nats.md";

/// The page's way makes each call once: the queue has those before the switch, the worker's consumer those after it.
#[tokio::test]
async fn a_webhook_moves_from_the_queue_to_nats_and_back_with_each_call_once() {
    let feed = Feed::start().await;
    let mut walhook = feed.run();
    let mut story = Story::on(feed).await;
    story.run(&Page::read(QUEUE)).await;
    let jetstream = async_nats::jetstream::new(story.feed.nats.client().await);
    let stream = jetstream.get_stream("WEBHOOKS").await.unwrap();
    // `walhook deliver` goes on with the consumer that `walhook seek` made, and gives it the webhook's subject.
    let config = eventually("the worker's consumer", async || {
        let config = stream.consumer_info("walhook-deliver-1").await.unwrap().config;
        (config.filter_subject == "webhooks.alerts").then_some(config)
    })
    .await;
    assert_eq!(config.deliver_policy, DeliverPolicy::ByStartSequence { start_sequence: 2 });
    let feed = story.end();
    let queued =
        "SELECT string_agg(payload ->> 'n', ' ' ORDER BY call_id) FROM rule_webhook_calls WHERE event_id IS NULL";
    assert_eq!(feed.pg.psql(queued), "1 2 4");
    let published: Vec<_> = feed.messages().await.iter().map(|message| message.data()["n"].as_i64()).collect();
    assert_eq!(published, [Some(2), Some(3)]);
    assert_eq!(walhook.terminate(), 0, "{}", walhook.log());
}

#[test]
fn every_example_is_run_or_says_why_not() {
    let mut wrong = Vec::new();
    for page in pages().iter().filter(|page| !FOR_DEVELOPERS.contains(&page.name.as_str())) {
        for example in page.examples() {
            let first = example.code.lines().next().unwrap_or_default().to_owned();
            match example.language.as_str() {
                "sql" | "sh" | "json" | "text" | "toml" => {}
                // Settings of other programs.
                "yaml" | "ini" if example.not_run.is_some() => {}
                language => wrong.push(format!("{}: a block of {language:?}: {first}", page.name)),
            }
            if example.not_run.as_ref().is_some_and(|reason| reason.len() < 10) {
                wrong.push(format!("{}: no reason why it is not run: {first}", page.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn links_lead_to_files_and_headings() {
    let mut wrong = Vec::new();
    for page in pages() {
        let path = root().join(&page.name);
        let folder = path.parent().unwrap();
        for link in page.links() {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { path.clone() } else { folder.join(file) };
            let in_book = target
                .canonicalize()
                .is_ok_and(|target| target.starts_with(root().join("docs").canonicalize().unwrap()));
            if !target.exists() {
                wrong.push(format!("{}: {link}: no such file", page.name));
            } else if page.name.starts_with("docs/") && !in_book {
                wrong.push(format!("{}: {link} is not in the book: name the file in code instead", page.name));
            } else if let Some(anchor) = anchor {
                let target = Page { name: String::new(), text: fs::read_to_string(&target).unwrap() };
                if !target.anchors().iter().any(|heading| heading == anchor) {
                    wrong.push(format!("{}: {link}: no such heading", page.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_summary_has_every_page_once() {
    let links = Page::read("docs/SUMMARY.md").links();
    let listed: BTreeSet<_> = links.iter().map(|link| format!("docs/{link}")).collect();
    assert_eq!(listed.len(), links.len(), "a page is there twice");
    let there: BTreeSet<_> = page::below("docs").into_iter().map(|page| page.name).collect();
    let there: BTreeSet<_> = there.into_iter().filter(|name| name != "docs/SUMMARY.md").collect();
    assert_eq!(listed, there);
    let book: toml::Table = toml::from_str(&fs::read_to_string(root().join("book.toml")).unwrap()).unwrap();
    assert_eq!(book["book"]["src"].as_str(), Some("docs"));
}

#[test]
fn lines_of_prose_end_at_100_columns() {
    let mut wrong = Vec::new();
    for page in &pages() {
        let mut is_result = false;
        for (number, line) in page.prose().iter().enumerate() {
            // What `make results` puts there.
            let marker = page.text.lines().nth(number).unwrap_or_default();
            is_result = (is_result || marker.contains("<!-- make results")) && !marker.contains("<!-- end");
            let is_table = line.trim_start().starts_with('|');
            if !is_table && !is_result && line.chars().count() > 100 && line.trim().contains(' ') {
                wrong.push(format!("{}: {} columns: {line}", page.name, line.chars().count()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Each page of the reference is what code and database say now. `WALHOOK_WRITE_REFERENCE=1` (`make reference`) writes them.
#[tokio::test]
async fn the_reference_is_up_to_date() {
    let feed = Feed::start().await;
    let is_writing = std::env::var_os("WALHOOK_WRITE_REFERENCE").is_some();
    let mut stale = Vec::new();
    for (name, text) in reference::pages(&feed.pg) {
        let path = root().join("docs/reference").join(name);
        if is_writing {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).unwrap();
            fs::write(&path, &text).unwrap();
        } else if fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
            stale.push(name);
        }
    }
    assert!(stale.is_empty(), "out of date in docs/reference: {stale:?}; `make reference` writes them");
}
