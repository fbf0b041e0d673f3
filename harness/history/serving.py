"""One page over HTTP, for a browser on the same machine: no folder, no other file, no writing.

What is served may ask this server, and nobody else, how far a running night is.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from minimax_m2.harness.history.under_way import seen

SCRIPT = Path(__file__).with_name("page") / "live.js"
# A page that is mailed asks nobody; one that is served may ask who serves it.
CLOSED, OPEN = "default-src 'none';", "default-src 'none'; connect-src 'self';"


def server(page: Path, host: str, port: int, *, store: Path) -> ThreadingHTTPServer:
    """A server of one file and of a store's night. Raises ValueError where the address cannot be had."""

    class OnePage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(served(page.read_text()), "text/html; charset=utf-8")
            elif self.path == "/progress":
                self._answer(json.dumps(progress(page, store)), "application/json")
            else:
                self.send_error(404)

        def _answer(self, text: str, kind: str) -> None:
            content = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
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


def served(text: str) -> str:
    """A page that asks its server for the night; the file itself stays as it is."""
    before, body, after = text.rpartition("</body>")
    return f"{before.replace(CLOSED, OPEN, 1)}<script>{SCRIPT.read_text()}</script>\n{body}{after}"


def progress(page: Path, store: Path) -> dict[str, Any]:
    """The night that runs, or None, and when the page was built."""
    return {"night": seen(store), "page": page.stat().st_mtime_ns if page.is_file() else 0}
