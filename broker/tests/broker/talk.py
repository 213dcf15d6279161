# Mutual TLS between two directories of files: says what each side learned of the other.
# Takes the server's files, the client's, and the name that the client expects. Who has a ca.crl refuses
# what stands on it.
import os, socket, ssl, sys, threading
server_files, client_files, name = sys.argv[1:]
def context(side, files):
    context = ssl.SSLContext(side)
    context.load_cert_chain(files + "/tls.crt", files + "/tls.key")
    context.load_verify_locations(files + "/ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    if os.path.exists(files + "/ca.crl"):
        context.load_verify_locations(files + "/ca.crl")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    return context
def names(connection):
    return sorted(value for _, value in connection.getpeercert()["subjectAltName"])
listener = socket.create_server(("127.0.0.1", 0))
listener.settimeout(10)
failed = []
def serve():
    try:
        connection, _ = listener.accept()
        with context(ssl.PROTOCOL_TLS_SERVER, server_files).wrap_socket(connection, server_side=True) as tls:
            tls.sendall(("client: " + " ".join(names(tls))).encode())
    except Exception as error:
        failed.append(error)
thread = threading.Thread(target=serve)
thread.start()
try:
    with socket.create_connection(listener.getsockname(), timeout=10) as connection:
        client = context(ssl.PROTOCOL_TLS_CLIENT, client_files)
        with client.wrap_socket(connection, server_hostname=name) as tls:
            print("server:", *names(tls))
            print(tls.recv(4096).decode())
except Exception as error:
    failed.append(error)
thread.join()
if failed:
    sys.exit("\n".join(map(str, failed)))
