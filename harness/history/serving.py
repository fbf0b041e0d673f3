"""One page over HTTP, for a browser on the same machine: no folder, no other file, no writing."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def server(page: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server of one file. Raises ValueError where the address cannot be had."""

    class OnePage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/":
                self.send_error(404)
                return
            content = page.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing of each request."""

    try:
        return ThreadingHTTPServer((host, port), OnePage)
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be listened on: {error}; choose another --port") from error
