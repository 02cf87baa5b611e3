"""The programs that race: where each is found, and how each is set up.

A peer is found by its variable or on the PATH; nothing of it is fetched, built or changed. Its settings are those that its own
documentation has for PostgreSQL to NATS JetStream; a value that differs from its default has its reason beside it.
"""

import os, re, shutil
from pathlib import Path

from servers import ROOT, first_line, free_port, service

TABLE = "bench"
ROW_ID = re.compile(rb'"id":\s*(\d+)')


class Missing(Exception):
    """A peer is not on this machine."""


class Peer:
    name = variable = program = releases = ""
    slot = publication = ""
    stream, subjects = "PEERS", []
    # Slow peers drain a smaller backlog of the same rows.
    is_slow = False
    is_reader_only = False

    def __init__(self):
        self.path, self.site = self.find(), None

    def find(self):
        return self.executable(self.variable, self.program)

    def executable(self, variable, program):
        path = os.environ.get(variable) or shutil.which(program)
        if not path or not os.access(path, os.X_OK):
            where = f"{variable}={path} is no program" if path else f"no {program} on the PATH, and {variable} is not set"
            raise Missing(f"{self.name}: {where}. Releases: {self.releases}")
        return Path(path).absolute()

    def version(self):
        return first_line(self.path, "--version")

    def prepare(self):
        """Once, before the rows are written: a publication must be there before the slot's position."""
        self.site.sql(f'CREATE PUBLICATION "{self.publication}" FOR TABLE {TABLE} WITH (publish = \'insert\')')

    def reset(self, folder):
        """Before each drain, in an empty folder: as if it had never run. Returns command and environment."""
        raise NotImplementedError

    @staticmethod
    def row(payload):
        """The row that a message is of."""
        found = ROW_ID.search(payload)
        return int(found[1]) if found else None


class Recvlogical(Peer):
    """Reads the slot and throws the rows away: the floor of what a reader costs."""

    name, variable, program = "pg_recvlogical", "PEER_PG_RECVLOGICAL", "pg_recvlogical"
    releases = "a part of PostgreSQL"
    slot, publication = "recvlogical", "recvlogical"
    is_reader_only = True

    def find(self):
        beside = Path(service("postgres", "default")) / self.program
        return beside if self.variable not in os.environ and beside.exists() else super().find()

    def reset(self, folder):
        return [self.path, "--dbname", self.site.conninfo, "--slot", self.slot, "--start", "--no-loop", "--file", "/dev/null",
                "--endpos", self.site.end, "--option", "proto_version=1", "--option", f"publication_names={self.publication}"], {}


class Walhook(Peer):
    name, variable, program = "walhook", "PEER_WALHOOK", "walhook"
    releases = "cargo build --release --locked"
    slot, stream, subjects = "walhook", "WEBHOOKS", ["webhooks.>"]
    history = "off"

    def find(self):
        built = ROOT / "target/release/walhook"
        if self.variable not in os.environ and built.exists():
            return built
        return super().find()

    def prepare(self):
        if self.site.sql("SELECT to_regclass('rule_webhook_links')"):
            return
        self.site.run([self.path, "setup"], {"DATABASE_URL": self.site.conninfo})
        self.site.sql(f"SELECT rule_nats_configure('default', 'nats://127.0.0.1:{self.site.nats_port}')")
        self.site.sql(f"SELECT rule_webhook_register('{TABLE}', 'https://example.com/')")
        self.site.sql("SELECT rule_webhook_enable_nats(1, NULL, 'nats')")
        self.site.sql(f"SELECT rule_webhook_link_table(1, '{TABLE}', ARRAY['insert'])")

    def reset(self, folder):
        self.site.sql("DELETE FROM rule_nats_checkpoints; TRUNCATE rule_nats_publish_history; "
                      f"UPDATE rule_nats_config SET history = '{self.history}'")
        # walhook keeps the rules, the history's setting too, under which it has first read a place in the WAL: by another name of
        # the source it is as if it had never run. The default interval would be the unit in which a drain with a history ends.
        (folder / "walhook.toml").write_text(f'source = "{folder.name}"\nstatus_interval_ms = 50\n')
        return [self.path, "run", "--config", folder / "walhook.toml"], {"DATABASE_URL": self.site.conninfo}


class WalhookHistory(Walhook):
    """With a durable row for each event. A drain ends when the slot is confirmed, so when the rows are there."""

    name, history = "walhook, history full", "full"


class Debezium(Peer):
    name, variable = "Debezium Server", "PEER_DEBEZIUM_SERVER"
    releases = ("https://debezium.io/releases/, the archive debezium-server-dist (also in Maven Central, io.debezium:debezium-server-dist); "
                "it needs a Java, by JAVA_HOME or on the PATH")
    slot, publication = "debezium", "debezium"
    subjects = ["bench.>"]

    def find(self):
        path = os.environ.get(self.variable)
        if not path or not any((Path(path) / entry).exists() for entry in ("run.sh", "quarkus-run.jar")):
            where = f"{self.variable}={path} has neither run.sh nor quarkus-run.jar" if path else f"{self.variable} is not set"
            raise Missing(f"{self.name}: {where}; it is the folder of the unpacked release. Releases: {self.releases}")
        java = Path(os.environ.get("JAVA_HOME", "/none")) / "bin/java"
        self.java = java if java.exists() else shutil.which("java")
        if not self.java:
            raise Missing(f"{self.name}: no Java; set JAVA_HOME. Releases: {self.releases}")
        return Path(path).absolute()

    def version(self):
        jars = [jar.name for jar in self.path.glob("lib/**/*debezium-server-core-*.jar")]
        version = re.search(r"core-(.+)\.jar", jars[0])[1] if jars else "of unknown version"
        return f"Debezium Server {version}, {first_line(self.java, '-version')}"

    def reset(self, folder):
        # Its own folder stays as it is: a folder of links beside it has our settings and its offsets.
        for entry in self.path.iterdir():
            if entry.name not in ("config", "conf", "data"):
                (folder / entry.name).symlink_to(entry)
        (folder / "data").mkdir()
        for name in ("config", "conf"):  # by its version
            shutil.copytree(self.path / name, folder / name) if (self.path / name).exists() else (folder / name).mkdir()
            (folder / name / "application.properties").write_text(self.properties())
        command = ["bash", "run.sh"] if (folder / "run.sh").exists() else [self.java, "-jar", "quarkus-run.jar"]
        return command, {}

    def properties(self):
        source = {
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "offset.storage.file.filename": "data/offsets.dat",
            "offset.flush.interval.ms": 0,  # as in its own example; its default of a minute would send more again after a kill
            "database.hostname": "127.0.0.1", "database.port": self.site.port, "database.user": "postgres",
            "database.password": "none", "database.dbname": "postgres", "topic.prefix": "bench",
            "table.include.list": f"public.{TABLE}", "plugin.name": "pgoutput", "slot.name": self.slot,
            "publication.name": self.publication, "publication.autocreate.mode": "disabled",
            "snapshot.mode": "no_data",  # from the slot, like everybody
        }
        sink = {"type": "nats-jetstream", "nats-jetstream.url": f"nats://127.0.0.1:{self.site.nats_port}",
                "nats-jetstream.create-stream": "false", "nats-jetstream.async.enabled": "true"}
        more = {**{f"debezium.format.{part}.schemas.enable": "false" for part in ("key", "value", "header")},  # no schema in each message
                "quarkus.log.level": "WARN", "quarkus.http.port": free_port()}
        lines = [f"debezium.source.{key}={value}" for key, value in source.items()]
        lines += [f"debezium.sink.{key}={value}" for key, value in sink.items()]
        return "\n".join(lines + [f"{key}={value}" for key, value in more.items()]) + "\n"


class WalListener(Peer):
    name, variable, program = "wal-listener", "PEER_WAL_LISTENER", "wal-listener"
    releases = "https://github.com/ihippik/wal-listener/releases"
    slot, publication = "wal_listener", "wal-listener"  # the name of the publication is fixed in the program
    subjects = ["PEERS.*"]  # <topic>.<schema>_<table>; the topic is the stream's name
    is_slow = True

    def reset(self, folder):
        (folder / "config.yml").write_text(f"""\
listener:
  slotName: {self.slot}
  refreshConnection: 30s
  heartbeatInterval: 10s
  filter:
    tables:
      {TABLE}:
        - insert
logger:
  level: error # at info it writes a line for each event
  fmt: json
database:
  host: 127.0.0.1
  port: {self.site.port}
  name: postgres
  user: postgres
  password: none
publisher:
  type: nats
  address: 127.0.0.1:{self.site.nats_port}
  topic: {self.stream}
  topicPrefix: ""
monitoring:
  promAddr: 127.0.0.1:{free_port()}
""")
        return [self.path, "--config", folder / "config.yml"], {}


class Conduit(Peer):
    name, variable, program = "Conduit", "PEER_CONDUIT", "conduit"
    releases = ("https://github.com/ConduitIO/conduit/releases, and for its destination (PEER_CONDUIT_NATS=/path/to/the/connector) "
                "https://github.com/conduitio-labs/conduit-connector-nats-jetstream/releases")
    slot, publication = "conduit", "conduit"
    subjects = ["conduit.bench"]
    is_slow = True

    def find(self):
        self.connector = self.executable("PEER_CONDUIT_NATS", "conduit-connector-nats-jetstream")
        return super().find()

    def reset(self, folder):
        (folder / "connectors").mkdir()
        (folder / "connectors/conduit-connector-nats-jetstream").symlink_to(self.connector)
        (folder / "pipeline.yaml").write_text(f"""\
version: 2.2
pipelines:
  - id: bench
    status: running
    connectors:
      - id: source
        type: source
        plugin: builtin:postgres
        settings:
          url: postgres://postgres@127.0.0.1:{self.site.port}/postgres?sslmode=disable
          tables: {TABLE}
          snapshotMode: never
          cdcMode: logrepl
          logrepl.publicationName: {self.publication}
          logrepl.slotName: {self.slot}
          logrepl.autoCleanup: "false"
      - id: destination
        type: destination
        plugin: standalone:nats-jetstream
        settings:
          urls: nats://127.0.0.1:{self.site.nats_port}
          subject: {self.subjects[0]}
""")
        return [self.path, "run", "--db.type=badger", f"--db.badger.path={folder}/db", "--api.enabled=false", "--log.level=warn",
                f"--connectors.path={folder}/connectors", f"--pipelines.path={folder}/pipeline.yaml"], {}


ALL = {
    "pg_recvlogical": Recvlogical,
    "walhook": Walhook,
    "walhook-history": WalhookHistory,
    "debezium": Debezium,
    "wal-listener": WalListener,
    "conduit": Conduit,
}
