#!/usr/bin/env python3
"""A server that says which one it is and what it was asked: server.py PORT..."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        text = f"server {self.server.server_port}: {self.requestline}\n".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


if len(sys.argv) < 2:
    sys.exit(__doc__)
for port in sys.argv[1:]:
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Echo)
    threading.Thread(target=server.serve_forever).start()
