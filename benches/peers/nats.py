"""As much of a NATS client as the race needs: JetStream's API, and a stream read back from its beginning."""

import json, socket, time


class Nats:
    def __init__(self, port):
        end = time.monotonic() + 30
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self.socket.settimeout(60)
        self.file = self.socket.makefile("rb", buffering=1 << 20)
        self.file.readline()
        self.socket.sendall(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _INBOX.peers.* 1\r\nPING\r\n')
        while self.file.readline() != b"PONG\r\n":
            pass

    def send(self, subject, body):
        body = json.dumps(body).encode()
        self.socket.sendall(b"PUB %s _INBOX.peers.a %d\r\n%s\r\n" % (subject.encode(), len(body), body))

    def message(self):
        """The next message: its headers as they are on the wire, and its payload."""
        while True:
            line = self.file.readline()
            if not line:
                raise EOFError("nats-server closed the connection")
            if line.startswith(b"MSG"):
                return b"", self.file.read(int(line.split()[-1]) + 2)[:-2]
            if line.startswith(b"HMSG"):
                *_, head, total = line.split()
                data = self.file.read(int(total) + 2)
                return data[:int(head)], data[int(head):-2]
            if line == b"PING\r\n":
                self.socket.sendall(b"PONG\r\n")

    def api(self, subject, body=None):
        """The answer of JetStream's API, which has `error` where it refuses."""
        self.send(f"$JS.API.{subject}", body or {})
        headers, payload = self.message()
        if headers:  # no responders: JetStream is not ready
            return {"error": {"code": 503, "description": "no JetStream"}}
        return json.loads(payload)

    def create(self, name, subjects):
        """An empty stream of file storage, whatever was there before; the same for every peer."""
        self.api(f"STREAM.DELETE.{name}")
        config = {"name": name, "subjects": subjects, "storage": "file", "retention": "limits", "discard": "old", "max_msgs": -1,
                  "max_bytes": -1, "max_age": 0, "num_replicas": 1, "duplicate_window": 120_000_000_000, "allow_direct": True}
        end = time.monotonic() + 30
        while "error" in (answer := self.api(f"STREAM.CREATE.{name}", config)):
            if time.monotonic() > end:
                raise RuntimeError(f"cannot create stream {name}: {answer['error']}")
            time.sleep(0.1)

    def state(self, name):
        """How many messages the stream has, and the sequence of the last one."""
        state = self.api(f"STREAM.INFO.{name}").get("state", {})
        return state.get("messages", 0), state.get("last_seq", 0)

    def get(self, name, sequence):
        """The payload of one message, or nothing."""
        self.send(f"$JS.API.DIRECT.GET.{name}", {"seq": sequence})
        headers, payload = self.message()
        return b"" if headers.startswith((b"NATS/1.0 404", b"NATS/1.0 408", b"NATS/1.0 503")) else payload

    def read(self, name, batch=5000):
        """The payloads of all messages, in the stream's order (a batched direct get, which nats-server has since 2.11)."""
        sequence, (_, last) = 1, self.state(name)
        while sequence <= last:
            self.send(f"$JS.API.DIRECT.GET.{name}", {"seq": sequence, "batch": batch})
            while True:
                headers, payload = self.message()
                if headers.startswith(b"NATS/1.0 204"):  # the end of the batch
                    break
                if headers.startswith((b"NATS/1.0 4", b"NATS/1.0 5")):
                    status = headers.split(b"\r\n")[0].decode()
                    raise RuntimeError(f"cannot read stream {name} from {sequence}: {status}")
                sequence = int(headers.split(b"Nats-Sequence: ", 1)[1].split(b"\r\n", 1)[0]) + 1
                yield payload
