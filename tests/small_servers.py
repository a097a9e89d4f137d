"""Small servers that do what a tracking server should not."""

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Behaviour = Callable[[socket.socket], None]


def answer(status: str, body: str = "", *headers: str) -> Behaviour:
    """Read the request and give one answer."""

    def behave(client: socket.socket) -> None:
        client.recv(65536)
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
        client.sendall(("\r\n".join(lines) + f"\r\n\r\n{body}").encode())

    return behave


def hang(client: socket.socket) -> None:
    """Read and say nothing until the other side gives up."""
    while client.recv(65536):
        pass


def trickle(client: socket.socket) -> None:
    """Send a header that never ends, a byte at a time."""
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while True:
        client.sendall(b"x")
        time.sleep(0.2)


def close(client: socket.socket) -> None:
    """Close the connection before the request is read."""
    client.shutdown(socket.SHUT_RDWR)


PAGE = "<!DOCTYPE html><html><body>Welcome</body></html>"
BEHAVIOURS: dict[str, Behaviour] = {
    "hangs": hang,
    "trickles": trickle,
    "closes": close,
    "500": answer("500 Internal Server Error", "oops"),
    "503 with Retry-After": answer("503 Service Unavailable", "", "Retry-After: 600"),
    "401": answer("401 Unauthorized", '{"error": "who are you?"}', "Content-Type: application/json"),
    "403": answer("403 Forbidden", PAGE, "Content-Type: text/html"),
    "404": answer("404 Not Found", PAGE, "Content-Type: text/html"),
    "a page": answer("200 OK", PAGE, "Content-Type: text/html"),
    "an empty object": answer("200 OK", "{}", "Content-Type: application/json"),
    "another kind of JSON": answer("200 OK", '{"experiment": 7}', "Content-Type: application/json"),
    "redirects in circles": answer("302 Found", "", "Location: /login"),
    "garbage": lambda client: client.sendall(b"\x00\xffnonsense\r\n\r\n"),
}


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[str]:
    """A server on a free port of this machine; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        clients: list[socket.socket] = []

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = listening.accept()
                    clients.append(client)
                    threading.Thread(target=handle, args=(client,), daemon=True).start()

        def handle(client: socket.socket) -> None:
            with suppress(OSError), client:
                behaviour(client)

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        for client in clients:
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)


def with_tls(behaviour: Behaviour, folder: Path) -> Behaviour:
    """The behaviour behind a certificate that nobody trusts."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=elsewhere"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def behave(client: socket.socket) -> None:
        with suppress(ssl.SSLError):
            behaviour(context.wrap_socket(client, server_side=True))

    return behave
