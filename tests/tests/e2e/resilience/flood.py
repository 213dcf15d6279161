# Sends garbage of every kind to one socket for some seconds, or until SIGTERM, and says how much of it.
# Usage: flood.py unix PATH SECONDS HALF_OPEN | tcp HOST:PORT SECONDS HALF_OPEN | tls HOST:PORT …
import os, random, resource, signal, socket, ssl, sys, time

kind, target, seconds, half_open = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
end = time.monotonic() + seconds
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
counts = {"opened": 0, "cut": 0}


def goes_on():
    return not told and time.monotonic() < end


def connect():
    if kind == "unix":
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(1)
        stream.connect(target)
    else:
        host, port = target.split(":")
        # An address of its own, as a container has one.
        stream = socket.create_connection((host, int(port)), 1, ("127.0.0.3", 0))
        if kind == "tls":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            stream = context.wrap_socket(stream)
    counts["opened"] += 1
    return stream


def send(*parts):
    try:
        stream = connect()
        for part in parts:
            stream.sendall(part)
        stream.recv(4096)
        stream.close()
    except OSError:
        counts["cut"] += 1


def post(path, length):
    return b"POST %s HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (path, length)


def round_of_garbage():
    send(os.urandom(random.randrange(1, 8192)))
    send(b"GET /v1/whoami HTTP/1.1\r\nX: " + b"a" * 500_000 + b"\r\n\r\n")
    send(b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(5000)) + b"\r\n")
    send(b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n")
    for path in [b"/v1/session", b"/v1/apply", b"/v1/plan", b"/v1/node/session"]:
        send(post(path, 10_000), b"[" * 10_000)
        send(post(path, 10_000), b'{"a":' * 2_000)
        send(post(path, 10_000_000_000), b"x" * 2_000_000)
    send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(2000))
    send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(600))
    send(b"GET /v1/credentials/first HTTP/1.1\r\nHost: m\r\n\r\n")


print("flooding", flush=True)
held = []
while goes_on():
    try:
        while len(held) < half_open and goes_on():
            stream = connect()
            stream.setblocking(False)
            if len(held) % 3:
                stream.send(b"POST /v1/session HTTP/1.1\r\nHo")
            held.append(stream)
    except OSError:
        counts["cut"] += 1
    round_of_garbage()
    # One byte at a time, and those that were cut off are opened anew.
    for stream in held[:]:
        try:
            stream.send(b"s")
        except BlockingIOError:
            pass
        except OSError:
            held.remove(stream)
            counts["cut"] += 1
print("flooded", counts["opened"], "opened", counts["cut"], "cut", flush=True)
