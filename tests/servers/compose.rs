//! compose.yaml's own commands, settings, secrets, healthchecks and files against real servers, without containers.

#![allow(clippy::unwrap_used)]

use crate::{
    http,
    support::{
        self, Nats, Postgres, Walhook, eventually,
        feed::Feed,
        port::Port,
        process::{Process, User},
        walhook::Builder,
    },
};

use std::{fs, net::SocketAddr, path::Path};

use yaml_rust2::{Yaml, YamlLoader};

fn path(of: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of).display().to_string()
}

fn read(of: &str) -> String {
    fs::read_to_string(path(of)).unwrap()
}

fn words(list: &Yaml) -> Vec<String> {
    list.as_vec().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// A service of walhook's, as compose.yaml has it, on this machine.
struct Service<'a> {
    yaml: &'a Yaml,
    pg: &'a Postgres,
    settings: String,
}

impl Service<'_> {
    /// Its environment: names of servers and mounted files are those of this machine.
    fn with_environment(&self, mut builder: Builder) -> Builder {
        let environment = &self.yaml["environment"];
        // What is merged in comes first, for a service's own value goes before it.
        let merged = environment["<<"].as_hash().into_iter().flatten();
        for (name, value) in merged.chain(environment.as_hash().unwrap()) {
            let (name, value) = (name.as_str().unwrap(), value.as_str().unwrap_or_default());
            let value = match name {
                "<<" => continue,
                "DATABASE_URL" => {
                    let at = format!("@127.0.0.1:{}/postgres", self.pg.port());
                    assert!(value.ends_with("@postgres/app"), "{value}");
                    value.replace("@postgres/app", &at)
                }
                "WALHOOK_CONFIG" => self.settings.clone(),
                _ => value.replace("/run/secrets/", &path("ops/compose/secrets/")),
            };
            builder = builder.env(name, value);
        }
        builder
    }

    fn command(&self, words: &[String]) -> Builder {
        self.with_environment(Walhook::command(&words[0])).args(&words[1..])
    }

    /// Its process, with `--allow-network` for this machine in place of compose's own network.
    fn start(&self) -> Walhook {
        let words = words(&self.yaml["command"]).into_iter();
        self.command(&words.map(|word| word.replace("10.77.0.0/24", "127.0.0.0/8")).collect::<Vec<_>>()).start()
    }

    /// The exit code of its healthcheck.
    fn health(&self) -> Option<i32> {
        let words = words(&self.yaml["healthcheck"]["test"]);
        assert_eq!(words[..2], ["CMD", "/usr/local/bin/walhook"]);
        self.command(&words[2..]).finish().code
    }

    async fn becomes_healthy(&self) {
        // It is asked again and again there, too.
        eventually("the healthcheck to succeed", async || (self.health() == Some(0)).then_some(())).await;
    }
}

#[tokio::test]
async fn the_services_of_compose_do_together_what_its_page_says() {
    let compose = YamlLoader::load_from_str(&read("compose.yaml")).unwrap().remove(0);
    let feed = Feed { pg: Postgres::start().await, nats: Nats::start().await };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: String| {
        let file = folder.path().join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let ports = [Port::take(), Port::take(), Port::take(), Port::take()];
    let [run_port, deliver_port, receiver_port, prometheus_port] = ports.each_ref().map(Port::number);
    let settings = |port: u16| {
        let text = read("ops/compose/walhook.toml").replace("/run/secrets/", &path("ops/compose/secrets/"));
        assert!(text.contains("0.0.0.0:9187"), "{text}");
        file(&format!("{port}.toml"), text.replace(":9187", &format!(":{port}")))
    };
    let service = |name: &str, settings: String| Service { yaml: &compose["services"][name], pg: &feed.pg, settings };

    let mut setup = service("setup", String::new()).start();
    assert_eq!(setup.wait(support::DEADLINE), 0, "{}", setup.log());
    // `\set` is psql's; names of servers are known to containers alone.
    let sql = read("ops/compose/example.sql").replace("\\set ON_ERROR_STOP on\n", "");
    let sql = sql
        .replace("nats://nats:4222", &feed.nats.url())
        .replace("receiver:9000", &format!("127.0.0.1:{receiver_port}"));
    feed.pg.psql(&sql);
    feed.pg.psql(&sql);

    let program =
        read("ops/compose/receiver.py").replace("(\"0.0.0.0\", 9000)", &format!("(\"127.0.0.1\", {receiver_port})"));
    let mut python = User::Ourselves.command("python3");
    python.arg("-u").arg(file("receiver.py", program));
    let receiver = Process::start("receiver", python, &folder.path().join("received"));

    let run = service("run", settings(run_port));
    let deliver = service("deliver", settings(deliver_port));
    assert_ne!(run.health(), Some(0), "nobody streams yet");
    assert_eq!(deliver.health(), Some(1), "nobody delivers yet");
    let (mut streamer, mut worker) = (run.start(), deliver.start());
    feed.pg.psql("INSERT INTO orders (item) VALUES ('tea')");
    eventually("the call of the webhook", async || receiver.log().contains(r#""item":"tea""#).then_some(())).await;
    let messages = feed.stored(1).await;
    assert_eq!((messages[0].subject.as_str(), &messages[0].data()["item"]), ("webhooks.orders.insert", &"tea".into()));
    run.becomes_healthy().await;
    deliver.becomes_healthy().await;

    if http::has_prometheus("prometheus.yml of compose") {
        let text = read("ops/compose/prometheus.yml")
            .replace("/etc/prometheus/alerts.yml", &path("ops/prometheus/alerts.yml"))
            .replace("/run/secrets/", &path("ops/compose/secrets/"))
            .replace("run:9187", &format!("127.0.0.1:{run_port}"))
            .replace("deliver:9187", &format!("127.0.0.1:{deliver_port}"))
            .replace("scrape_interval: 15s", "scrape_interval: 1s");
        let mut command = User::Ourselves.command("prometheus");
        command.arg(format!("--config.file={}", file("prometheus.yml", text)));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{prometheus_port}"));
        let _server = Process::start("prometheus", command, &folder.path().join("prometheus"));
        let address = SocketAddr::from(([127, 0, 0, 1], prometheus_port));
        eventually("both targets to be up", async || {
            let data = http::prometheus(address, "query", &[("query", "sum(up{job=\"walhook\"})")]).await?;
            (data["result"][0]["value"][1] == "2").then_some(())
        })
        .await;
    }

    // A loop that hangs answers nobody.
    worker.pause();
    assert_eq!(deliver.health(), Some(1));
    worker.resume();
    deliver.becomes_healthy().await;
    assert_eq!((streamer.terminate(), worker.terminate()), (0, 0), "{}\n{}", streamer.log(), worker.log());
    assert_ne!(run.health(), Some(0));
    assert_eq!(deliver.health(), Some(1));
}
