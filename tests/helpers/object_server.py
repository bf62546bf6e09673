"""An in-memory server with the part of Google Cloud Storage's interface that an export needs."""

import http.server
import json
import threading
import urllib.parse


class Server(http.server.ThreadingHTTPServer):
    """A store of `objects`, content and generation by name, that counts `changes` and refuses number `fails`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.generation, self.changes, self.fails, self.lock = 1, 0, None, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers to reading, writing, deleting (on conditions of the generation) and listing objects."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        path, query = self._parts()
        if path.endswith("/o"):
            first, end = query.get("startOffset", query.get("prefix", "")), query.get("endOffset")
            names = sorted(name for name in self.server.objects if name >= first and (not end or name < end))
            self._answer(200, json.dumps({"items": [{"name": name} for name in names]}).encode())
            return
        found = self.server.objects.get(path.partition("/o/")[2])
        if found is None:
            self._answer(404)
        elif query.get("ifGenerationNotMatch") == str(found[1]):
            self._answer(304)
        else:
            self._answer(200, found[0], {"x-goog-generation": str(found[1])})

    def do_POST(self):
        _, query = self._parts()
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            if self._is_refused():
                status, answer = 403, b""
            elif self._matches(query["name"], query):
                self.server.generation += 1
                self.server.objects[query["name"]] = (content, self.server.generation)
                facts = {"name": query["name"], "bucket": "b", "size": str(len(content)), "metageneration": "1"}
                times = {"timeCreated": "2020-01-01T00:00:00Z", "updated": "2020-01-01T00:00:00Z"}
                generation = {"generation": str(self.server.generation)}
                status, answer = 200, json.dumps(facts | times | generation).encode()
            else:
                status, answer = 412, b""
        self._answer(status, answer)

    def do_DELETE(self):
        path, query = self._parts()
        name = path.partition("/o/")[2]
        with self.server.lock:
            refused, matches = self._is_refused(), self._matches(name, query)
            found = self.server.objects.pop(name, None) if matches and not refused else None
        self._answer(403 if refused else 412 if not matches else 204 if found else 404)

    def log_message(self, *_):
        pass

    def _is_refused(self) -> bool:
        self.server.changes += 1
        return self.server.changes == self.server.fails

    def _matches(self, name: str, query: dict[str, str]) -> bool:
        wanted = query.get("ifGenerationMatch")
        return wanted is None or int(wanted) == self.server.objects.get(name, (b"", 0))[1]

    def _parts(self) -> tuple[str, dict[str, str]]:
        split = urllib.parse.urlsplit(self.path)
        return urllib.parse.unquote(split.path), dict(urllib.parse.parse_qsl(split.query))

    def _answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
