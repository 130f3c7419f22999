"""A Hugging Face hub of one dataset on 127.0.0.1."""

import contextlib
import hashlib
import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

REPO = "Yxanul/some-text"
OLD, NEW = "0" * 39 + "1", "0" * 39 + "2"
PARQUET = {f"data/{index:05d}.parquet": os.urandom(200_000 + index) for index in range(5)}
FILES = PARQUET | {"README.md": b"# some text\n", "data/notes.txt": b"none\n"}
SMALL = "data/notes.txt"
FIRST = next(iter(PARQUET))


class Hub(ThreadingHTTPServer):
    """A hub of one dataset; what it does wrong is set by the tests.

    Attributes:
        commits: the files of each commit; those of `refs` are their branches and tags.
        asked: (method, path in the hub, Range header) of every request.
        faults: path in the dataset -> what to do with its next requests for the body, used up from the front: a
            number of bytes after which the connection is cut, other bytes to send, or a status to answer with.
        status: what requests to the API are answered with.
        before_body: called before each body is sent.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits = {OLD: dict(FILES)}
        self.refs = {"main": OLD}
        self.asked: list[tuple[str, str, str | None]] = []
        self.faults: dict[str, list[int | bytes | SimpleNamespace]] = {}
        self.status = SimpleNamespace(code=200, error=None)
        self.listed_size: dict[str, int] = {}
        self.before_body = lambda path: None
        self.endpoint = f"http://127.0.0.1:{self.server_port}"

    def bodies(self) -> list[str]:
        """The paths in the dataset whose bodies were asked for."""
        bodies = [path for kind, path, _ in list(self.asked) if is_body(kind, path)]
        return sorted(path.split("/resolve/")[1].split("/", 1)[1] for path in bodies)


def is_body(kind: str, path: str) -> bool:
    return kind == "GET" and "/resolve/" in path


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        url = urlsplit(self.path)
        self.server.asked.append((self.command, url.path, self.headers["Range"]))
        with contextlib.suppress(ConnectionError):
            if url.path.startswith(f"/datasets/{REPO}/resolve/"):
                commit, path = url.path.removeprefix(f"/datasets/{REPO}/resolve/").split("/", 1)
                self.resolve(commit, path)
            elif url.path.startswith(f"/api/datasets/{REPO}"):
                self.api(url.path.removeprefix(f"/api/datasets/{REPO}"), parse_qs(url.query))
            else:
                self.answer(404, {"X-Error-Code": "RepoNotFound"})

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"", length: int | None = None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def api(self, path: str, query: dict[str, list[str]]):
        hub = self.server
        kind, _, name = path.strip("/").partition("/")
        commit = hub.refs.get(name or "main", name)
        if hub.status.code != 200:
            self.answer(hub.status.code, {"X-Error-Code": hub.status.error} if hub.status.error else {})
        elif commit not in hub.commits:
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif kind == "tree":
            assert query["recursive"] == ["true"]
            self.tree(commit, int(query.get("cursor", ["0"])[0]))
        else:
            self.answer(200, {}, json.dumps({"id": REPO, "sha": commit, "tags": []}).encode())

    def tree(self, commit: str, start: int):
        """Three entries a page; parquet files are LFS's, as on the hub."""
        entries = [{"type": "directory", "oid": "d" * 40, "size": 0, "path": "data"}]
        for path, content in self.server.commits[commit].items():
            size = self.server.listed_size.get(path, len(content))
            entry = {"type": "file", "oid": "b" * 40, "size": size, "path": path}
            if path.endswith(".parquet"):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 133}
            entries.append(entry)
        headers = {}
        if start + 3 < len(entries):
            url = f"{self.server.endpoint}/api/datasets/{REPO}/tree/{commit}?recursive=true&cursor={start + 3}"
            headers["Link"] = f'<{url}>; rel="next"'
        self.answer(200, headers, json.dumps(entries[start : start + 3]).encode())

    def resolve(self, commit: str, path: str):
        content = self.server.commits[commit][path]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        faults = self.server.faults.get(path) if self.command == "GET" else None
        fault = faults.pop(0) if faults else None
        if self.command == "GET":
            self.server.before_body(path)
        if isinstance(fault, SimpleNamespace):
            self.answer(fault.code, {})
            return
        content = fault if isinstance(fault, bytes) else content
        start, status = 0, 200
        if self.headers["Range"]:
            start, status = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = start + fault if isinstance(fault, int) else len(content)
        self.answer(status, headers, content[start:end], len(content) - start)
