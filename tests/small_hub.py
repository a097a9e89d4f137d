"""A hub on this machine that speaks the part of Hugging Face's API that an upload and a download use."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN = "hf_OnlyForTestsOfThisProject"
LFS_SUFFIXES = (".onnx", ".safetensors")
LICENSES = ("apache-2.0", "cc0-1.0", "mit", "other", "unknown")
"""A few of those that the hub takes."""


@dataclass
class Repository:
    """A repository with one branch."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """The state of the server, which a test may look at and change."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256, before and after they are committed."""
    requests: list[str] = field(default_factory=list)
    """Method and path of each request."""
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and message by a part of the request that is refused."""
    waits: dict[str, threading.Event] = field(default_factory=dict)
    """What a request waits for before it is answered, by a part of the request."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the output of the tests short."""

    def handle_request(self) -> None:
        """Answer one request."""
        self.path, _, self.query = unquote(self.path).partition("?")
        line = f"{self.command} {self.path}"
        self.hub.requests.append(line)
        self.body = self._read()
        for part, event in self.hub.waits.items():
            if part in line:
                event.wait(60)
        for part, (status, message) in self.hub.refusals.items():
            if part in line:
                return self.answer({"error": message}, status)
        is_public = self.command in ("GET", "HEAD") or self.path.startswith("/objects/")
        if not is_public and self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        for pattern, method in self.ROUTES.items():
            if match := re.fullmatch(pattern, line):
                return method(self, *match.groups())
        return self.answer({"error": f"no such place: {line}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def _read(self) -> bytes:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(encoded)

    def create(self) -> None:
        values = json.loads(self.body)
        name = f"{values['organization']}/{values['name']}"
        place = {"url": f"{self.hub.address}/{name}"}
        if name in self.hub.repositories:
            return self.answer({**place, "error": "You already created this model repo"}, 409)
        self.hub.repositories[name] = Repository(values.get("visibility") == "private")
        return self.answer(place)

    def validate(self) -> None:
        text = json.loads(self.body)["content"]
        problems = front_matter_problems(text)
        self.answer({"errors": [{"message": p} for p in problems], "warnings": []}, 400 if problems else 200)

    def information(self, name: str) -> None:
        if (repository := self.hub.repositories.get(name)) is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files = [{"rfilename": file} for file in repository.files]
        about = {"id": name, "private": repository.private, "sha": sha(repository), "siblings": files}
        return self.answer(about)

    def preupload(self, _: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, _: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            place = {"href": f"{self.hub.address}/objects/{wanted['oid']}"}
            known = wanted["oid"] in self.hub.objects
            objects.append({**wanted, **({} if known else {"actions": {"upload": place}})})
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.answer({"error": "wrong checksum"}, 400)
        self.hub.objects[oid] = self.body
        return self.answer({})

    def commit(self, name: str) -> None:
        repository, message = self.hub.repositories[name], ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.hub.objects[value["oid"]]
                assert len(content) == value["size"]
                repository.files[value["path"]] = content
        repository.commits.append(message)
        oid = sha(repository)
        self.answer({"commitUrl": f"{self.hub.address}/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, name: str, file: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or file not in repository.files:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        content = repository.files[file]
        etag = hashlib.sha256(content).hexdigest()
        return self.answer(content, ETag=f'"{etag}"', X_Repo_Commit=sha(repository))

    ROUTES = {  # noqa: RUF012 - a constant
        r"POST /api/repos/create": create,
        r"POST /api/validate-yaml": validate,
        r"GET /api/models/([^/]+/[^/]+)(?:/revision/.+)?": information,
        r"POST /api/models/([^/]+/[^/]+)/preupload/main": preupload,
        r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": batch,
        r"PUT /objects/(\w+)": store,
        r"POST /api/models/([^/]+/[^/]+)/commit/main": commit,
        r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/[^/]+/(.+)": resolve,
    }


def sha(repository: Repository) -> str:
    """A commit's hash, which depends on everything in it."""
    content = json.dumps({name: hashlib.sha1(file).hexdigest() for name, file in repository.files.items()})
    return hashlib.sha1(content.encode()).hexdigest()


def front_matter_problems(text: str) -> list[str]:
    """What the hub would refuse in a card, https://github.com/huggingface/hub-docs/blob/main/modelcard.md."""
    match = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    if match is None:
        return ["the card has no metadata"]
    data = yaml.safe_load(match[1])
    problems = [] if data.get("license") in LICENSES else [f'"license" must be one of {", ".join(LICENSES)}']
    for entry in data.get("model-index", []):
        problems += [f"model-index[0] lacks {key}" for key in ("name", "results") if not entry.get(key)]
        for result in entry.get("results", []):
            if not result.get("task", {}).get("type"):
                problems.append("model-index[0].results[0].task.type is required")
            problems += [
                f"model-index[0].results[0].dataset.{key} is required"
                for key in ("type", "name")
                if not result.get("dataset", {}).get(key)
            ]
            for metric in result.get("metrics", []):
                problems += [f"a metric lacks {key}" for key in ("type", "value") if key not in metric]
    return problems


@contextmanager
def serve() -> Iterator[Hub]:
    """The hub on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            for event in hub.waits.values():
                event.set()
            with suppress(OSError):
                server.shutdown()
