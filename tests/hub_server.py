"""A stand-in for the Hugging Face hub on loopback: it keeps the bytes that it receives, and checks them.

It answers the endpoints that creating, committing to, listing and downloading a repository need, over the plain
protocol of git LFS, as huggingface_hub uses them without Xet.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER, TOKEN, READER = "me", "hf_write_to_me", "hf_reads_only"
LICENCES = ("apache-2.0", "mit", "other", "unknown")
PART = 20_000  # bytes of a part of a large file
LARGE = (".safetensors", ".png", ".bin")


@dataclass
class Commit:
    """A commit of a branch: its title, its text and all files after it."""

    title: str
    description: str
    files: dict[str, bytes]

    @property
    def sha(self) -> str:
        """A name of 40 hexadecimal digits, from the content."""
        content = [self.title, *((name, hashlib.sha1(data).hexdigest()) for name, data in sorted(self.files.items()))]
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()


@dataclass
class Repository:
    """A repository: the commits of each branch, the newest last."""

    private: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit("initial commit", "", {})]})


@dataclass
class Hub:
    """What the stand-in keeps, and how it is reached."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    """By type, such as "model", and owner/name."""
    lfs: dict[str, bytes] = field(default_factory=dict)
    """Large files, by the SHA-256 of their bytes."""
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: bool = False
    """Whether every answer is an error of the server."""
    full: bool = False
    """Whether large files are refused."""

    def head(self, name: str, branch: str = "main") -> Commit:
        """The newest commit of a model's branch."""
        return self.repositories["model", name].branches[branch][-1]


class Refusal(Exception):
    """An answer with an error: its status, its text, and the hub's code of the error."""

    def __init__(self, status: int, text: str, code: str = "", content: dict | None = None):
        super().__init__(text)
        self.status, self.code, self.content = status, code, content or {"error": text}


@contextmanager
def running() -> Iterator[Hub]:
    """The stand-in on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append(f"{self.command} {path}")
        headers = {}
        try:
            if self.hub.broken:
                raise Refusal(500, "the hub is broken")
            if not path.startswith("/lfs/"):
                self._identify()
            for method, pattern, function in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    self.query = parse_qs(url.query)
                    status, content, headers = function(self, body, **match.groupdict())
                    break
            else:
                raise Refusal(404, f"no endpoint {self.command} {path}")
        except Refusal as refusal:
            status, content = refusal.status, refusal.content
            headers = {"X-Error-Message": str(refusal), "X-Error-Code": refusal.code}
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _identify(self) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in (TOKEN, READER):
            raise Refusal(401, "Invalid credentials in Authorization header")
        self.writer = token == TOKEN

    def _repository(self, kind: str, name: str) -> Repository:
        if (kind, name) not in self.hub.repositories:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.hub.repositories[kind, name]

    def _commit(self, name: str, revision: str) -> Commit:
        branches = self._repository("model", name).branches
        for branch, commits in branches.items():
            for commit in reversed(commits):
                if revision in (branch, commit.sha):
                    return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def _write(self, name: str) -> None:
        if not self.writer or not name.startswith(f"{OWNER}/"):
            raise Refusal(403, f"You don't have the rights to write to {name}")

    def create(self, body: bytes) -> tuple:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self._write(name)
        key = asked.get("type", "model"), name
        if key in self.hub.repositories:
            raise Refusal(409, "You already created this model repo")
        self.hub.repositories[key] = Repository(private=asked.get("visibility") == "private")
        return 200, {"url": f"{self.hub.url}/{name}", "name": name}, {}

    def info(self, body: bytes, kind: str, name: str, revision: str | None = None) -> tuple:
        self._repository(kind, name)
        commit = self._commit(name, revision or "main") if kind == "model" else Commit("", "", {})
        siblings = [{"rfilename": file} for file in commit.files]
        return 200, {"id": name, "sha": commit.sha, "private": False, "tags": [], "siblings": siblings}, {}

    def branch(self, body: bytes, name: str, revision: str) -> tuple:
        self._write(name)
        branches = self._repository("model", name).branches
        if revision in branches:
            raise Refusal(409, f"Reference already exists: refs/heads/{revision}")
        branches[revision] = list(branches["main"])
        return 200, {}, {}

    def tree(self, body: bytes, name: str, revision: str) -> tuple:
        files = self._commit(name, revision).files
        rows = [{"type": "file", "path": file, "size": len(data), "oid": _oid(data)} for file, data in files.items()]
        return 200, rows, {}

    def validate(self, body: bytes) -> tuple:
        faults = faults_of(json.loads(body)["content"])
        if faults:
            raise Refusal(400, "invalid", content={"errors": [{"message": one} for one in faults], "warnings": []})
        return 200, {"errors": [], "warnings": []}, {}

    def preupload(self, body: bytes, name: str, revision: str) -> tuple:
        self._write(name)
        there = self._commit(name, revision).files
        rows = []
        for file in json.loads(body)["files"]:
            sample = base64.b64decode(file["sample"])
            assert len(sample) == min(512, file["size"])
            mode = "lfs" if file["path"].endswith(LARGE) else "regular"
            known = _oid(there[file["path"]]) if file["path"] in there and mode == "regular" else None
            rows.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known})
        return 200, {"files": rows}, {}

    def batch(self, body: bytes, name: str) -> tuple:
        self._write(name)
        asked = json.loads(body)
        assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256"
        objects = []
        for one in asked["objects"]:
            oid, size, place = one["oid"], one["size"], f"{self.hub.url}/lfs/{one['oid']}"
            upload: dict = {"href": place}
            if size > PART:
                numbers = range(1, -(-size // PART) + 1)
                header = {str(number): f"{place}/{number}" for number in numbers} | {"chunk_size": str(PART)}
                upload = {"href": f"{place}/complete", "header": header}
            verify = {"href": f"{self.hub.url}/api/verify"}
            known = oid in self.hub.lfs
            objects.append(one if known else one | {"actions": {"upload": upload, "verify": verify}})
        return 200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def put(self, body: bytes, oid: str, part: str | None = None) -> tuple:
        if self.hub.full:
            raise Refusal(403, "no room for large files")
        if part is None:
            self._keep(oid, body)
        else:
            self.hub.parts[oid, int(part)] = body
        return 200, {}, {"ETag": hashlib.md5(body).hexdigest()}

    def complete(self, body: bytes, oid: str) -> tuple:
        parts = []
        for one in json.loads(body)["parts"]:
            parts.append(self.hub.parts.pop((oid, one["partNumber"])))
            assert hashlib.md5(parts[-1]).hexdigest() == one["etag"]
        self._keep(oid, b"".join(parts))
        return 200, {}, {}

    def _keep(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, f"the bytes of {oid} have another digest")
        self.hub.lfs[oid] = data

    def verify(self, body: bytes) -> tuple:
        asked = json.loads(body)
        if len(self.hub.lfs.get(asked["oid"], b"")) != asked["size"]:
            raise Refusal(404, f"no bytes of {asked['oid']}")
        return 200, {}, {}

    def commit(self, body: bytes, name: str, revision: str) -> tuple:
        self._write(name)
        files = dict(self._commit(name, revision).files)
        rows = [json.loads(line) for line in body.splitlines()]
        head = rows[0]["value"]
        for row in rows[1:]:
            value = row["value"]
            if row["key"] == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                data = self.hub.lfs[value["oid"]]
                assert len(data) == value["size"] and value["algo"] == "sha256"
                files[value["path"]] = data
            else:
                assert row["key"] == "deletedFile"
                del files[value["path"]]
        made = Commit(head["summary"], head["description"], files)
        self.hub.repositories["model", name].branches[revision].append(made)
        return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/{made.sha}", "commitOid": made.sha}, {}

    def resolve(self, body: bytes, name: str, revision: str, file: str) -> tuple:
        commit = self._commit(name, revision)
        if file not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        data = commit.files[file]
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": commit.sha, "Content-Type": "application/octet-stream"}
        return 200, data, headers


REPO = r"(?P<name>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[\w.-]+)"
ROUTES = (
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", "/api/verify", _Handler.verify),
    ("GET", rf"/api/(?P<kind>model|dataset|space)s/{REPO}(/revision/{REVISION})?", _Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}", _Handler.tree),
    ("POST", rf"/api/models/{REPO}/branch/{REVISION}", _Handler.branch),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", _Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", _Handler.commit),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("POST", r"/lfs/(?P<oid>\w+)/complete", _Handler.complete),
    ("PUT", r"/lfs/(?P<oid>\w+)(/(?P<part>\d+))?", _Handler.put),
    ("GET HEAD", rf"/{REPO}/resolve/{REVISION}/(?P<file>.+)", _Handler.resolve),
)
"""Methods, path and answer of each endpoint."""


def faults_of(card: str) -> list[str]:
    """What the hub would refuse of a model card's front matter."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if match is None:
        return ["no front matter"]
    said, faults = yaml.safe_load(match[1]), []
    repository = re.compile(r"[\w.-]+/[\w.-]+")
    if not isinstance(said.get("base_model"), str) or not repository.fullmatch(said["base_model"]):
        faults.append('"base_model" must be the id of a model')
    if said.get("base_model_relation") not in ("adapter", "finetune", "merge", "quantized"):
        faults.append('"base_model_relation" must be one of adapter, finetune, merge, quantized')
    if said.get("license") not in LICENCES:
        faults.append('"license" must be one of the list')
    if said.get("license") == "other" and not (said.get("license_name") and said.get("license_link")):
        faults.append('"license" other needs "license_name" and "license_link"')
    if not all(isinstance(tag, str) for tag in said.get("tags", [])):
        faults.append('"tags" must be texts')
    for one in said.get("widget", []):
        if not isinstance(one.get("text"), str) or not isinstance(one.get("output", {}).get("url"), str):
            faults.append('"widget" must hold a text and output.url')
    return faults


def _oid(data: bytes) -> str:
    """git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
