"""Reads its credential when it starts and never again: answers each GET with the user that asks the
database. At SIGTERM it finishes what it has begun, and ends."""

import http.server
import signal
import sys
import threading

import psycopg


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with psycopg.connect(url) as connection:
            user = connection.execute("SELECT current_user").fetchone()[0]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(user.encode())

    def log_request(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # server_close() waits for them


with open("/run/secrets/restart-db/uri") as file:
    url = file.read()
server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever(poll_interval=0.02)
server.server_close()
