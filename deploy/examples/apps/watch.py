"""Watches the directory with inotify: answers each GET with the user that asks the database, on a
connection of its own."""

import contextlib
import ctypes
import http.server
import os
import sys
import threading

import psycopg

SECRETS = "/run/secrets"
IN_MOVED_TO = 0x80  # inotify(7)


def load():
    """Reads one generation through one descriptor of it, then says which."""
    global credential
    generation = os.readlink(f"{SECRETS}/..data")
    folder = os.open(f"{SECRETS}/{generation}/watch-db", os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = {"user": "username", "password": "password", "host": "host", "port": "port"}
        credential = {
            key: open(os.open(name, os.O_RDONLY, dir_fd=folder)).read()
            for key, name in names.items()
        }
    finally:
        os.close(folder)
    with open("/tmp/loaded", "w") as file:
        file.write(generation)


def watch():
    while True:
        # The directory, not a file in it: the next generation's is another file.
        if b"..data\0" in os.read(events, 4096):
            with contextlib.suppress(FileNotFoundError):  # replaced meanwhile: that is an event too
                load()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with psycopg.connect(dbname="postgres", **credential) as connection:
            user = connection.execute("SELECT current_user").fetchone()[0]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(user.encode())

    def log_request(self, *_):
        pass


libc = ctypes.CDLL(None)
events = libc.inotify_init1(os.O_CLOEXEC)
if events < 0 or libc.inotify_add_watch(events, SECRETS.encode(), IN_MOVED_TO) < 0:
    sys.exit("cannot watch the directory")
load()  # only now: a change after it is an event
threading.Thread(target=watch, daemon=True).start()
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.serve_forever()
