# A node of the broker's own that asks for nonsense on one connection, as fast as it can, and reads no
# answer. Says how many requests went out, and whether it was cut off.
# Usage: nonsense.py HOST:PORT KEYS SECONDS
import socket, ssl, struct, sys, time

target, keys, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
host, port = target.split(":")
context = ssl.create_default_context(cafile=keys + "/ca.crt")
context.load_cert_chain(keys + "/node.crt", keys + "/node.key")
context.set_alpn_protocols(["h2"])
plain = socket.create_connection((host, int(port)), 5)
stream = context.wrap_socket(plain, server_hostname=host)
assert stream.selected_alpn_protocol() == "h2"


def frame(kind, flags, number, payload=b""):
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, number) + payload


# RFC 9113: settings, and that those of the other side are known.
stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(4, 1, 0))
end, number, cut = time.monotonic() + seconds, 1, "served to the end"
stream.settimeout(20)
try:
    while time.monotonic() < end:
        # RFC 7541: `:method: POST`, and neither a scheme nor a path.
        many = [frame(1, 5, number + 2 * one, b"\x83") for one in range(1000)]
        stream.sendall(b"".join(many))
        number += 2000
except TimeoutError:
    cut = "stuck"
except OSError as error:
    cut = f"cut off: {error}"
print("sent", number // 2, cut, flush=True)
