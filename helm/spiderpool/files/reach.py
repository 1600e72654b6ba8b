"""What the two pods of ``helm test`` run: do pods reach each other, directly and by a Service, in both directions?

``serve`` answers with its own addresses, and calls back whom it is asked to call. ``call`` asks the Service for the
server's addresses, calls each of them, and has the server call each of ours. Nothing but Python's standard library.
"""

import os
import socket
import sys
import threading
import time
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import ProxyHandler, build_opener

PORT = int(os.environ.get("PORT", "8080"))
PEER_PORT = int(os.environ.get("PEER_PORT", str(PORT)))
SECONDS = float(os.environ.get("SECONDS", "120"))
ADDRESSES = [word for word in os.environ.get("POD_IPS", "").split(",") if word]
_DIRECT = build_opener(ProxyHandler({}))


class Answer(BaseHTTPRequestHandler):
    """``/`` answers with this pod's addresses, ``/call/<address>/<port>`` with what that address answers."""

    def do_GET(self) -> None:
        """One request."""
        try:
            parts = self.path.split("/")
            text = fetch(parts[2], int(parts[3])) if parts[1] == "call" else ",".join(ADDRESSES)
            self.send_response(200)
        except (OSError, HTTPException, ValueError, IndexError) as error:
            text = f"{type(error).__name__}: {error}"
            self.send_response(502)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing: the client says it all."""


class Server(ThreadingHTTPServer):
    """On both IP families where the kernel has both."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def server_bind(self) -> None:
        """One socket for both."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def url(address: str, port: int, path: str = "/") -> str:
    """Of an address; IPv6 goes in brackets."""
    return f"http://{f'[{address}]' if ':' in address else address}:{port}{path}"


def fetch(address: str, port: int, path: str = "/") -> str:
    """What answers there. Raises OSError, HTTPException."""
    with _DIRECT.open(url(address, port, path), timeout=5) as response:
        body: bytes = response.read()
    return body.decode()


def attempt(what: str, address: str, port: int, path: str = "/", *, until: float) -> str:
    """Fetch, again and again until it works; ends the program with code 1 when it does not."""
    while True:
        try:
            text = fetch(address, port, path)
        except (OSError, HTTPException) as error:
            if time.monotonic() > until:
                print(f"FAIL {what}: {url(address, port, path)}: {error}")
                sys.exit(1)
            time.sleep(0.5)
        else:
            print(f"ok   {what}")
            return text


def call() -> None:
    """The client's part."""
    until = time.monotonic() + SECONDS
    service, port = os.environ.get("SERVICE", ""), int(os.environ.get("SERVICE_PORT", "80"))
    print(f"this pod has {', '.join(ADDRESSES) or 'no addresses'}")
    theirs = attempt(f"this pod -> Service {service}", service, port, until=until).split(",")
    for address in theirs:
        attempt(f"this pod -> pod {address}", address, PEER_PORT, until=until)
        families = [own for own in ADDRESSES if (":" in own) == (":" in address)]
        for own in families:
            attempt(f"pod {address} -> this pod {own}", address, PEER_PORT, f"/call/{own}/{PORT}", until=until)


def main() -> None:
    """The program."""
    server = Server(("", PORT), Answer)
    if sys.argv[1:] == ["serve"]:
        server.serve_forever()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    call()


if __name__ == "__main__":
    main()
