"""Prints each call that it gets and answers 204. It verifies nothing: examples/workers/receiver/receiver.py does."""

import http.server


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        print(self.headers.get("webhook-id"), body.decode(), flush=True)
        self.send_response(204)
        self.send_header("content-length", "0")
        self.end_headers()


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("0.0.0.0", 9000), Receiver).serve_forever()
