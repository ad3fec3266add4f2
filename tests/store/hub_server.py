"""A loopback stand-in for the Hugging Face Hub, for the real and unmodified ``huggingface_hub`` client.

What it proves: our use of the client (which calls, with which arguments, in which order, what we do with its errors)
and our files (what was published is what is loaded, byte for byte, through the client's own requests and cache).

What it does not prove: that the real Hub accepts those files. Its card check is a stub that only looks for an opened
and closed metadata block, its rights are two fixed tokens, and it knows no quotas, size limits, paging or Xet storage.
The routes, keys and headers are those that ``huggingface_hub`` 2.4.0 uses with ``HF_HUB_DISABLE_XET=1``, for models
only; any other request gets a 501, which the client neither retries nor mistakes for a missing repository.

The client reads its environment at import: run it in a subprocess with ``HubServer.env``, or pass ``endpoint=``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".png")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
# parts of a path, told apart before unquoting: the revision refs%2Fpr%2F1 is one of them
REPO, REV = "(?P<repo>[^/]+/[^/]+?)", "(?P<rev>[^/]+)"
# what a request needs ("all": no look at the token, "read": if private, "user", "write"), the request, the method
ROUTES = [
    ("user", "GET /api/whoami-v2", "whoami"),
    ("write", "POST /api/repos/create", "create_repo"),
    ("all", "POST /api/validate-yaml", "validate_card"),
    ("write", f"POST /api/models/{REPO}/preupload/{REV}", "preupload"),
    ("write", f"POST /{REPO}.git/info/lfs/objects/batch", "lfs_batch"),
    ("all", f"PUT /{REPO}.git/info/lfs/objects/(?P<oid>[0-9a-f]+)", "lfs_upload"),  # as the Hub's signed links
    ("write", f"POST /api/models/{REPO}/commit/{REV}", "create_commit"),
    ("write", f"POST /api/models/{REPO}/tag/{REV}", "create_tag"),
    ("read", f"GET /api/models/{REPO}(/revision/{REV})?", "model_info"),
    ("read", f"GET /api/models/{REPO}/refs", "refs"),
    ("read", f"GET /api/models/{REPO}/tree/{REV}", "tree"),
    ("read", f"POST /api/models/{REPO}/paths-info/{REV}", "paths_info"),
    ("read", f"GET /{REPO}/resolve/{REV}/(?P<path>.+)", "resolve"),
]


@dataclass(frozen=True)
class Commit:
    """One commit: its parent's oid, its title and all files of the tree after it."""

    parent: str | None
    summary: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """One model repository; `branches` also holds the pull requests, as ``refs/pr/N``."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)  # uploaded objects by sha256, committed or not

    def find(self, ref: str) -> str | None:
        """Return the commit oid that a branch, tag, ``refs/...`` name or 40-hex oid stands for, None if unknown."""
        short = ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.branches.get(short) or self.tags.get(short) or (ref if ref in self.commits else None)

    def files(self, ref: str = "main") -> dict[str, bytes]:
        """Return the files at `ref`, by path."""
        return dict(self.commits[self.find(ref) or ref].files)

    def commit(self, branch: str, parent: str | None, summary: str, files: dict[str, bytes]) -> str:
        """Add a commit and move `branch` to it."""
        content = [(path, blob_oid(data)) for path, data in sorted(files.items())]
        oid = hashlib.sha1(repr((len(self.commits), parent, summary, content)).encode()).hexdigest()
        self.commits[oid] = Commit(parent, summary, files)
        self.branches[branch] = oid
        return oid


def blob_oid(data: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def describe(path: str, data: bytes) -> dict[str, Any]:
    """Return the Hub's entry of a file; of an LFS file, `oid` is that of the pointer that git tracks."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob_oid(data)}
    if path.endswith(LFS_SUFFIXES) and data:  # the client commits an empty file as a regular one
        sha256 = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(data)}\n".encode()
        entry["oid"] = blob_oid(pointer)
        entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}
    return entry


@dataclass(eq=False)
class Answer(Exception):  # noqa: N818 - raised to refuse, returned to serve
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def reply(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def refusal(status: int, message: str, code: str | None = None, **extra: Any) -> Answer:
    """Return an error; the client picks its exception class by ``X-Error-Code``, then by the status."""
    body = {"error": message, "errors": [{"message": message}], **extra}  # `errors` is what it shows of a refused card
    return Answer(status, reply(body).body, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})})


@dataclass
class Call:
    part: dict[str, str]  # the named parts of the path
    query: dict[str, list[str]]
    headers: Any
    body: bytes
    repo: Repo = field(default_factory=Repo)  # what the path names, if it does
    oid: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


class HubServer:
    """The stand-in: a context manager with its state in memory.

    Fault patterns are regular expressions searched in ``"METHOD /path?query"``, as in `requests`; each fault serves
    the next `times` matching requests, and faults of different kinds add up.
    """

    def __init__(self, user: str = "tester") -> None:
        self.user = user
        self.tokens = {"hf_local": "write", "hf_read": "read"}
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.faults: list[tuple[str, str, tuple[Any, ...]]] = []  # those still to come: kind, pattern, values
        self.lock = threading.RLock()
        self.stopped = threading.Event()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()  # stop() waits so long
        return self

    def stop(self, *_: object) -> None:
        """Close the port: later connections are refused, waiting answers are dropped. The state stays readable."""
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()

    __exit__ = stop

    def env(self, home: object, token: str | None = "hf_local") -> dict[str, str]:
        """Return the variables that send a client process here, with its cache and settings below `home`."""
        flags = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK")
        # an empty HF_TOKEN counts as none and hides one of the caller's; a proxy could not reach the loopback
        where = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": token or "", "NO_PROXY": "127.0.0.1"}
        return {**where, **dict.fromkeys(flags, "1")}

    def fail(self, pattern: str, status: int | None, times: int = 1, headers: dict[str, str] | None = None) -> None:
        """Answer with `status` instead of serving; None closes the connection without any answer."""
        self.faults += [("fail", pattern, (status, headers or {}))] * times

    def cut(self, pattern: str, after_bytes: int, times: int = 1, reset: bool = False) -> None:
        """Serve, but close the connection after so many bytes of the body (`reset`: as a crashed peer, by a RST)."""
        self.faults += [("cut", pattern, (after_bytes, reset))] * times

    def slow(self, pattern: str, seconds: float, times: int = 1) -> None:
        """Wait before serving."""
        self.faults += [("slow", pattern, (seconds,))] * times

    def tamper(self, pattern: str, times: int = 1) -> None:
        """Serve with the last byte of the body flipped; the headers keep the hash of the true file."""
        self.faults += [("tamper", pattern, ())] * times

    def take(self, kind: str, line: str) -> tuple[Any, ...] | None:
        """Use up one turn of the first fault of `kind` that matches a request, and return its values."""
        with self.lock:
            for fault in self.faults:
                if fault[0] == kind and re.search(fault[1], line):
                    self.faults.remove(fault)
                    return fault[2]
        return None

    def answer(self, verb: str, target: str, headers: Any, body: bytes) -> Answer:
        url = urlsplit(target)
        for need, pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{verb} {url.path}"):
                part = {name: unquote(value) for name, value in match.groupdict(default="").items()}
                call = Call(part, parse_qs(url.query), headers, body)
                try:
                    with self.lock:
                        if need != "all":
                            self.admit(call, need)
                        return getattr(self, method)(call)
                except Answer as answer:
                    return answer
                except Exception as error:  # a gap of the stand-in; a 500 would be retried and hide it
                    return refusal(501, f"stand-in: {error!r} in {verb} {target}")
        return refusal(501, f"stand-in: no route for {verb} {target}")

    def admit(self, call: Call, need: str) -> None:
        """Refuse a call without the needed rights, and find its repository and commit."""
        token = call.headers.get("Authorization", "").removeprefix("Bearer ")
        role, name = self.tokens.get(token), call.part.get("repo")
        repo = self.repos.get(name or "")
        if token and role is None:  # as the Hub, also for public repositories
            raise refusal(401, "Invalid credentials in Authorization header")
        if role is None and (need != "read" or repo is None or repo.private):
            # The Hub does not tell a missing repository from a private one. For https the client reads any 401 on a
            # repository as "not found"; its rule does not match our http address, so the code has to say it.
            raise refusal(401, "Invalid username or password.", "RepoNotFound" if name else None)
        if name and repo is None:
            raise refusal(404, "Repository not found", "RepoNotFound")
        if need == "write" and role != "write":
            raise refusal(403, "you must use a token with write permission")
        if repo is not None:
            call.repo, call.oid = repo, repo.find(call.part.get("rev") or "main") or ""
            if not call.oid:
                raise refusal(404, f"Invalid rev id: {call.part['rev']}", "RevisionNotFound")
            call.files = repo.files(call.oid)

    def whoami(self, call: Call) -> Answer:
        role = self.tokens[call.headers["Authorization"].removeprefix("Bearer ")]
        return reply({"type": "user", "name": self.user, "orgs": [], "auth": {"accessToken": {"role": role}}})

    def create_repo(self, call: Call) -> Answer:
        body = json.loads(call.body)
        name = f"{body.get('organization') or self.user}/{body['name']}"
        if body.get("type", "model") != "model":
            raise refusal(501, "stand-in: models only")
        if name in self.repos:  # with exist_ok=True the client reads the url of this refusal
            raise refusal(409, "You already created this model repo", url=f"{self.url}/{name}")
        self.repos[name] = Repo(private=body.get("visibility") == "private")
        self.repos[name].commit("main", None, "initial commit", {".gitattributes": GITATTRIBUTES})
        return reply({"url": f"{self.url}/{name}", "name": name})

    def validate_card(self, call: Call) -> Answer:
        lines = [line.rstrip() for line in json.loads(call.body)["content"].splitlines()]
        if (opened := lines[:1] == ["---"]) and "---" not in lines[1:]:
            raise refusal(400, "the metadata block of the card is not closed")
        return reply({"errors": [], "warnings": [] if opened else [{"message": "missing yaml metadata in repo card"}]})

    def preupload(self, call: Call) -> Answer:
        items = [{"path": item["path"], "shouldIgnore": False} for item in json.loads(call.body)["files"]]
        for item in items:
            item["uploadMode"] = "lfs" if item["path"].endswith(LFS_SUFFIXES) else "regular"
            if item["path"] in call.files:  # lets the client leave out unchanged files, or the commit if all are
                entry = describe(item["path"], call.files[item["path"]])
                item["oid"] = entry.get("lfs", entry)["oid"]
        return reply({"files": items})

    def lfs_batch(self, call: Call) -> Answer:
        objects, base = json.loads(call.body)["objects"], f"{self.url}/{call.part['repo']}.git/info/lfs/objects"
        for item in objects:
            if item["oid"] not in call.repo.lfs:  # without actions: already here
                item["actions"] = {"upload": {"href": f"{base}/{item['oid']}"}}
        return reply({"transfer": "basic", "objects": objects})

    def lfs_upload(self, call: Call) -> Answer:
        if hashlib.sha256(call.body).hexdigest() != call.part["oid"]:
            raise refusal(400, "the content does not have the announced sha256")
        self.repos[call.part["repo"]].lfs[call.part["oid"]] = call.body
        return Answer(200)

    def create_commit(self, call: Call) -> Answer:
        repo, branch = call.repo, call.part["rev"].removeprefix("refs/heads/")
        operations = [(item["key"], item["value"]) for item in map(json.loads, call.body.splitlines())]
        header = dict(operations)["header"]
        parent = header.get("parentCommit") or call.oid
        base, more = f"{self.url}/{call.part['repo']}", {}
        if "create_pr" in call.query:  # may start from any commit, and leaves the other branches alone
            number = sum(name.startswith("refs/pr/") for name in repo.branches) + 1
            branch = f"refs/pr/{number}"
            more["pullRequestUrl"] = f"{base}/discussions/{number}"
        elif branch not in repo.branches:
            raise refusal(400, f"{branch} is not a branch")
        elif parent != call.oid:
            raise refusal(412, "A commit has happened since. Please refresh and try again.")
        files = repo.files(parent)
        for key, value in operations:
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in repo.lfs:
                    raise refusal(400, f"the LFS object of {value['path']} was not uploaded")
                files[value["path"]] = repo.lfs[value["oid"]]
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            elif key != "header":
                raise refusal(501, f"stand-in: no commit operation {key}")
        oid = repo.commit(branch, parent, header["summary"], files)
        return reply({"success": True, "commitOid": oid, "commitUrl": f"{base}/commit/{oid}", **more})

    def create_tag(self, call: Call) -> Answer:
        name = json.loads(call.body)["tag"]
        if name in call.repo.tags:
            raise refusal(409, f"Tag reference exists already: {name}")
        call.repo.tags[name] = call.oid
        return reply({})

    def model_info(self, call: Call) -> Answer:
        info = {"id": call.part["repo"], "sha": call.oid, "private": call.repo.private, "tags": []}
        return reply({**info, "siblings": [{"rfilename": path} for path in sorted(call.files)]})

    def refs(self, call: Call) -> Answer:
        found: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        named = [("tags", f"refs/tags/{name}", oid) for name, oid in call.repo.tags.items()]
        for name, oid in call.repo.branches.items():
            named.append(("pullRequests", name, oid) if "refs/pr/" in name else ("branches", f"refs/heads/{name}", oid))
        for kind, ref, oid in named:
            found[kind].append({"name": re.sub("^refs/(heads|tags)/", "", ref), "ref": ref, "targetCommit": oid})
        return reply(found)

    def tree(self, call: Call) -> Answer:
        if call.query.get("recursive") != ["true"]:
            raise refusal(501, "stand-in: no listing of a single folder")
        return reply([describe(path, data) for path, data in sorted(call.files.items())])

    def paths_info(self, call: Call) -> Answer:
        paths = parse_qs(call.body.decode()).get("paths", [])  # the client sends a form here, not JSON
        return reply([describe(path, call.files[path]) for path in paths if path in call.files])

    def resolve(self, call: Call) -> Answer:
        path, headers = call.part["path"], {"X-Repo-Commit": call.oid}
        if path not in call.files:
            missing = refusal(404, "Entry not found", "EntryNotFound")
            missing.headers.update(headers)  # the client then remembers what is missing at this commit
            raise missing
        entry = describe(path, data := call.files[path])
        # Bytes, not a redirect: the client follows one on the same host and then misses X-Repo-Commit.
        headers.update({"ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"})
        if lfs := entry.get("lfs"):
            headers.update({"X-Linked-Etag": f'"{lfs["oid"]}"', "X-Linked-Size": str(len(data))})
        if not (match := re.fullmatch(r"bytes=(\d+)-", call.headers.get("Range", ""))) or int(match[1]) >= len(data):
            return Answer(200, data, headers)
        headers["Content-Range"] = f"bytes {match[1]}-{len(data) - 1}/{len(data)}"
        return Answer(206, data[int(match[1]) :], headers)


class Server(ThreadingHTTPServer):
    hub: HubServer
    daemon_threads = True
    request_queue_size = 64  # snapshot_download opens several connections at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that gave up waiting is no news
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def serve(self) -> None:
        hub, line = self.server.hub, f"{self.command} {self.path}"
        # One request per connection: a kept one would go on being served after stop().
        self.close_connection = True
        # Read before any refusal: closing with unread bytes resets the connection and the answer may be lost.
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with hub.lock:
            hub.requests.append(line)
        if slow := hub.take("slow", line):
            hub.stopped.wait(slow[0])
        status, headers = hub.take("fail", line) or (0, {})
        if status is None or hub.stopped.is_set():
            return
        verb = self.command.replace("HEAD", "GET")
        answer = refusal(status, f"injected {status}") if status else hub.answer(verb, self.path, self.headers, body)
        answer.headers.update(headers)
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body)), "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":  # without a body to spoil, it takes no turn of `tamper` and `cut`
            return
        data = answer.body
        if hub.take("tamper", line) is not None and data:
            data = data[:-1] + bytes([data[-1] ^ 1])
        after_bytes, reset = hub.take("cut", line) or (len(data), False)
        self.wfile.write(data[:after_bytes])
        if reset:  # without lingering, close() sends a RST instead of the orderly end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    do_DELETE = do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass  # `requests` is the log
