"""PostgreSQL and nats-server for a measurement, in a folder of their own, and what /proc says of a process and its children.

For the scripts that measure (scripts/costs, benches/peers). Only Python's standard library; Linux.
"""

import json, os, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")
NOBODY = 65534
# What is started ends with us, however we end.
WITH_US = ["setpriv", "--pdeathsig", "KILL", "--"]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def service(*arguments):
    return subprocess.run([ROOT / "scripts/services", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def first_line(*command):
    """What a program prints first, as on --version."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip().split("\n")[0]


def stat(pid):
    """Its parent, and the seconds of CPU of itself and of children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[1]), sum(int(fields[at]) for at in (11, 12, 13, 14)) / TICK


def family(pid):
    """A process and all below it that run now, with the seconds of CPU of each."""
    seen = {}
    for other in os.listdir("/proc"):
        if other.isdigit():
            try:
                seen[int(other)] = stat(other)
            except (OSError, IndexError):
                continue
    members, added = {}, [pid]
    while added:
        members.update({one: seen[one][1] for one in added if one in seen})
        added = [other for other, (parent, _) in seen.items() if parent in added and other not in members]
    return members


def family_cpu(pid):
    return sum(family(pid).values())


def peak_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0


class Servers:
    """Both servers, started; `close` ends all that was started here and removes the folder."""

    def __init__(self, prefix, postgres=(), nats=""):
        self.processes = []
        self.folder = Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
        self.folder.chmod(0o755)
        self.bin = Path(service("postgres", "default"))
        self.user = dict(user=NOBODY, group=NOBODY, extra_groups=[]) if os.geteuid() == 0 else {}
        home = self.folder / "pg"
        home.mkdir()
        if self.user:
            os.chown(home, NOBODY, NOBODY)
        data = home / "data"
        subprocess.run([self.bin / "initdb", "-U", "postgres", "--auth=trust", "-D", data, "--no-sync"], check=True,
                       stdout=subprocess.DEVNULL, cwd=home, **self.user)
        self.port, self.nats_port, self.monitor = free_port(), free_port(), free_port()
        settings = ["listen_addresses=127.0.0.1", f"port={self.port}", "wal_level=logical", f"unix_socket_directories={home}", *postgres]
        self.postgres = self.start("postgres", [self.bin / "postgres", "-D", data, *[f"--{s}" for s in settings]], cwd=home, **self.user)
        config = self.folder / "nats.conf"
        config.write_text(f'listen: "127.0.0.1:{self.nats_port}"\nhttp: "127.0.0.1:{self.monitor}"\n'
                          f'jetstream {{ store_dir: "{self.folder}/nats" }}\n{nats}')
        self.nats = self.start("nats", [service("nats", "default"), "--config", config])
        self.conninfo = f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres"
        self.until("PostgreSQL", lambda: self.sql("SELECT 1", check=False) == "1")

    def start(self, name, command, **more):
        log = open(self.folder / f"{name}.log", "a")
        process = subprocess.Popen([*WITH_US, *[str(part) for part in command]], stdout=log, stderr=log, **more)
        self.processes.append(process)
        return process

    def sql(self, statement, check=True):
        done = subprocess.run([self.bin / "psql", "-XAtq", "-d", self.conninfo, "-c", statement], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
        if check and done.returncode != 0:
            sys.exit(done.stderr)
        return done.stdout.strip()

    def until(self, what, condition):
        end = time.monotonic() + 900
        while not condition():
            if time.monotonic() > end:
                sys.exit(f"waited in vain for {what}; see {self.folder}")
            if any(process.poll() for process in self.processes):
                sys.exit("a process ended: " + max(self.folder.glob("*.log"), key=os.path.getmtime).read_text()[-2000:])
            time.sleep(0.1)

    def streams(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/jsz?streams=1&consumers=1") as answer:
            accounts = json.load(answer).get("account_details") or []
        return {s["name"]: s for account in accounts for s in account.get("stream_detail") or []}

    def stop(self, process):
        process.send_signal(signal.SIGTERM)
        process.wait()
        self.processes.remove(process)

    def close(self):
        for process in reversed(self.processes):
            process.send_signal(signal.SIGQUIT if process is self.postgres else signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
