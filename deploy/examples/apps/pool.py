"""A pool of connections that changes its credential under load: answers GET / with the user that asks
the database, and POST /-/reload once no connection of the credential before is in use."""

import collections
import contextlib
import http.server
import sys
import threading

from psycopg_pool import ConnectionPool


class Database:
    def __init__(self, url_file):
        self.url_file = url_file
        self.reloading = threading.Lock()
        self.changed = threading.Condition()
        self.users = collections.Counter()
        self.pool = self.open()

    def open(self):
        with open(self.url_file) as file:
            pool = ConnectionPool(file.read(), min_size=2, max_size=4)
        try:
            pool.wait(timeout=5)
        except Exception:  # what does not get in does not take the place of what does
            pool.close()
            raise
        return pool

    @contextlib.contextmanager
    def connection(self):
        with self.changed:
            pool = self.pool
            self.users[pool] += 1
        try:
            with pool.connection() as connection:
                yield connection
        finally:
            with self.changed:
                self.users[pool] -= 1
                self.changed.notify_all()

    def reload(self):
        with self.reloading:
            new = self.open()
            with self.changed:
                old, self.pool = self.pool, new
                self.changed.wait_for(lambda: self.users[old] == 0)
                del self.users[old]
            old.close()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with database.connection() as connection:
            self.answer(connection.execute("SELECT current_user").fetchone()[0])

    def do_POST(self):
        database.reload()
        self.answer("reloaded")

    def answer(self, text):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_request(self, *_):
        pass


database = Database("/run/secrets/db.url")
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.serve_forever()
