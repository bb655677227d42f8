"""Servers on the loopback: nginx, one that does what a test tells it to, and a proxy. Real sockets, threads of this process."""

from __future__ import annotations

import base64
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from tests.missing import cannot_run

NGINX_CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  log_format asked '$request_method $uri $status $body_bytes_sent $connection';
  access_log {folder}/access.log asked;
  sendfile on; keepalive_requests 10000;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{
    listen unix:{folder}/unused.sock; listen 127.0.0.1:{port};
    root {folder}/www; {extra}
    location /moved/ {{ return 302 /again$uri; }}
    location /again/moved/ {{ rewrite ^/again/moved/(.*)$ /$1 permanent; }}
    location /throttled/ {{ alias {folder}/www/; limit_rate {rate}; }}
  }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Nginx:
    """nginx with a configuration of its own, serving the files in `www`."""

    def __init__(self, folder: Path, rate: str = "0", extra: str = "") -> None:
        self.folder, self.www = folder, folder / "www"
        self.www.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(user + NGINX_CONFIG.format(folder=folder, port=self.port, rate=rate, extra=extra))
        self.process = subprocess.Popen(["nginx", "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait_for(self.port, self.process)

    def requests(self) -> list[tuple[str, int, int]]:
        """Return (path, status, bytes of the body) of what was asked so far. nginx logs a request when it is over."""
        log = (self.folder / "access.log").read_text().splitlines()
        return [(words[1], int(words[2]), int(words[3])) for words in map(str.split, log)]

    def connections(self) -> set[str]:
        return {line.split()[4] for line in (self.folder / "access.log").read_text().splitlines()}

    def stop(self) -> None:
        """End it, and with it all that it would still log."""
        self.process.terminate()
        self.process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, "nginx did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 5).close()
        except OSError:
            select.select([], [], [], 0.01)
        else:
            return


@contextmanager
def running_nginx(folder: Path, rate: str = "0", extra: str = "") -> Iterator[Nginx]:
    if shutil.which("nginx") is None:
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nginx-light"]
        if os.geteuid() != 0 or subprocess.run(install, capture_output=True).returncode != 0:
            cannot_run("nginx is not installed, and cannot be: apt-get install nginx-light")
    server = Nginx(folder, rate, extra)
    try:
        yield server
    finally:
        server.stop()


# --- a server that does as it is told -------------------------------------------------------------------


class Request:
    """What a client asked, and the line to it."""

    def __init__(self, line: str, headers: Mapping[str, str], connection: socket.socket, number: int) -> None:
        self.method, self.target, _ = line.split(" ", 2)
        self.headers, self.connection, self.number = headers, connection, number

    def send(self, text: bytes) -> None:
        self.connection.sendall(text)

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] = {}, *, length: Optional[int] = None) -> None:
        """Answer; `length` is what is said of the body's, if that is a lie."""
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body) if length is None else length}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode() + body)

    @property
    def offset(self) -> int:
        """Where the part begins that is asked for; 0 for the whole."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        return int(found[1]) if found else 0

    def serve(self, content: bytes, etag: Optional[str] = None, upto: Optional[int] = None) -> None:
        """Answer as a good server does, but break off before the byte `upto`."""
        headers = {"ETag": etag} if etag else {}
        start = self.offset if self.headers.get("if-range", etag) == etag else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start : len(content) if upto is None else upto]
        self.answer(206 if start else 200, body, headers, length=len(content) - start)
        if upto is not None and upto < len(content):
            raise ConnectionAbortedError


Handler = Callable[[Request], None]


class Scripted:
    """A server whose answers a test gives: `handler` is called for each request, in the thread of its connection."""

    def __init__(self, handler: Handler, context: Optional[ssl.SSLContext] = None) -> None:
        self.handler = handler
        self.requests: list[Request] = []
        self.done = threading.Event()
        """Set at the end, for handlers that wait."""
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._talk, args=(connection,))
            with self._lock:
                self._open.add(connection)
                self._threads.append(thread)
            thread.start()

    def _talk(self, raw: socket.socket) -> None:
        connection = raw
        try:
            if self._context is not None:
                connection = self._context.wrap_socket(raw, server_side=True)
                with self._lock:
                    self._open.add(connection)
            while (head := _head(connection)) is not None:
                line, headers = head
                with self._lock:
                    request = Request(line, headers, connection, len(self.requests) + 1)
                    self.requests.append(request)
                self.handler(request)
        except OSError:
            pass  # broken off, by a handler or by the client
        finally:
            with self._lock:
                self._open -= {raw, connection}
            connection.close()

    def hold(self) -> None:
        """Wait for the end, answering nothing."""
        self.done.wait()

    def stop(self) -> None:
        self.done.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._accepting.join()
        for thread in self._threads:
            thread.join()


def _head(connection: socket.socket) -> Optional[tuple[str, dict[str, str]]]:
    text = b""
    while b"\r\n\r\n" not in text:
        block = connection.recv(1)  # no more than the head: what follows a CONNECT is another's
        if not block:
            return None
        text += block
    line, *rest = text.decode("latin-1").rstrip("\r\n").split("\r\n")
    return line, {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in rest)}


@contextmanager
def scripted(handler: Handler, context: Optional[ssl.SSLContext] = None) -> Iterator[Scripted]:
    server = Scripted(handler, context)
    try:
        yield server
    finally:
        server.stop()


# --- a proxy ----------------------------------------------------------------------------------------------


class Proxy:
    """An HTTP proxy that wants a password: the handler of a `Scripted` server."""

    def __init__(self, user: str = "", password: str = "") -> None:
        self.asked: list[str] = []
        self._wanted = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}" if user else None

    def __call__(self, request: Request) -> None:
        self.asked.append(f"{request.method} {request.target}")
        if self._wanted is not None and request.headers.get("proxy-authorization") != self._wanted:
            request.answer(407, headers={"Proxy-Authenticate": "Basic"})
            return
        host, port = re.sub(r"^http://", "", request.target).split("/")[0].split(":")
        with socket.create_connection((host, int(port))) as server:
            if request.method == "CONNECT":
                request.send(b"HTTP/1.1 200 Established\r\n\r\n")
            else:
                path = "/" + re.sub(r"^http://", "", request.target).partition("/")[2]
                fields = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items() if not name.startswith("proxy-"))
                server.sendall(f"GET {path} HTTP/1.1\r\n{fields}\r\n".encode())
            _relay(request.connection, server)
        raise ConnectionAbortedError


def _relay(one: socket.socket, other: socket.socket) -> None:
    towards = {one: other, other: one}
    while True:
        for ready in select.select(list(towards), [], [])[0]:
            block = ready.recv(65536)
            if not block:
                return
            towards[ready].sendall(block)
