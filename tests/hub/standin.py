"""A stand-in for the Hub on the loopback: what `huggingface_hub` asks of it, in memory, and broken on request.

Small files go through commits ("regular" mode); safetensors, pictures and whatever is above 10 MiB through LFS with
basic transfers. Multipart and Xet are not served, so clients set `HF_HUB_DISABLE_XET=1`. `fail` and `drop` break it,
in this process or, by `tell`, from another one.
"""

import base64
import hashlib
import json
import re
import threading
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

WRITE, READ = "hf_" + "W" * 34, "hf_" + "R" * 34
TOKENS = {WRITE: "write", READ: "read"}
"""Tokens of the user `tester`, and what they may do."""
USER = "tester"
LFS_FROM = 10 * 1024**2
LFS_SUFFIXES = (".safetensors", ".png")
_REPO = r"/(?P<type>model|dataset)s/(?P<id>[^/]+/[^/]+)"
ROUTES = {
    "whoami": r"GET /api/whoami-v2",
    "create": r"POST /api/repos/create",
    "card": r"POST /api/validate-yaml",
    "info": rf"GET /api{_REPO}(/revision/(?P<revision>[^/]+))?",
    "tree": rf"GET /api{_REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.+))?",
    "refs": rf"GET /api{_REPO}/refs",
    "branch": rf"POST /api{_REPO}/branch/(?P<name>[^/]+)",
    "tag": rf"POST /api{_REPO}/tag/(?P<revision>[^/]+)",
    "preupload": rf"POST /api{_REPO}/preupload/(?P<revision>[^/]+)",
    "commit": rf"POST /api{_REPO}/commit/(?P<revision>[^/]+)",
    "lfs_batch": r"POST /(?P<type>datasets/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    "upload": r"PUT /_storage/(?P<oid>\w+)",
    "lfs_verify": r"POST /_verify",
    "resolve": r"(GET|HEAD) /(?P<type>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
}
"""Kinds of requests, as `fail` and `drop` name them."""


@dataclass
class Repo:
    """Commits are complete listings: path to sha256 of the content."""

    private: bool
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)


class Answer(Exception):
    """What a request is answered with."""

    def __init__(self, status: int, content: object = None, headers: dict[str, str] | None = None):
        super().__init__(status)
        self.status, self.content, self.headers = status, content, headers or {}


def refusal(status: int, code: str, text: str, **headers: str) -> Answer:
    return Answer(status, {"error": text}, {"X-Error-Code": code, "X-Error-Message": text, **headers})


class StandIn:
    """The server; a context manager. `endpoint` is for `HF_ENDPOINT`."""

    def __init__(self, page: int = 7):
        self.page = page  # entries of a tree in one answer
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []  # kind, path
        self.leaks: list[str] = []  # where a token stood outside of the Authorization header
        self.unknown: list[str] = []
        self.faults: list[dict] = []
        self.lock = threading.RLock()
        stand_in = self

        class Handler(_Handler):
            hub = stand_in

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def fail(self, kind: str, status: int, times: int = 1, retry_after: int | None = None) -> None:
        """Answer the next requests of a kind with a status."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.faults.append({"kind": kind, "status": status, "times": times, "headers": headers})

    def drop(self, kind: str, nth: int = 1, times: int = 1, when: str = "middle") -> None:
        """Cut the connection in the middle of the nth next request of a kind, or before its answer (`"after"`)."""
        self.faults.append({"kind": kind, "skip": nth - 1, "times": times, "when": when})

    def calm(self) -> None:
        """Break nothing any more."""
        self.faults.clear()

    def counts(self) -> dict[str, int]:
        """How many requests of each kind there were, repeated ones too."""
        return dict(Counter(kind for kind, _ in self.requests))

    def next_fault(self, kind: str) -> dict | None:
        with self.lock:
            for fault in self.faults:
                if fault["kind"] == kind and fault["times"] > 0:
                    if fault.get("skip", 0) > 0:
                        fault["skip"] -= 1
                        continue
                    fault["times"] -= 1
                    return fault
        return None

    # What each kind of request gives

    def repo(self, match: re.Match, role: str | None) -> Repo:
        repo_type = (match["type"] or "model").removesuffix("s/")
        repo = self.repos.get((repo_type, match["id"]))
        if repo is None or (repo.private and role is None):
            raise refusal(401 if role is None else 404, "RepoNotFound", "Repository not found")
        return repo

    def listing(self, repo: Repo, revision: str) -> tuple[str, dict[str, str]]:
        sha = repo.branches.get(revision) or repo.tags.get(revision) or revision
        if sha not in repo.commits:
            raise refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha]

    def store(self, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        self.objects[oid] = content
        return oid

    def add_commit(self, repo: Repo, branch: str, files: dict[str, str], title: str) -> str:
        sha = hashlib.sha1(json.dumps([len(repo.titles), title, sorted(files.items())]).encode()).hexdigest()
        repo.commits[sha] = files
        repo.branches[branch] = sha
        repo.titles.append(title)
        return sha

    def whoami(self, match, body, role):
        if role is None:
            raise refusal(401, "", "Invalid credentials in Authorization header")
        return {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": role}}}

    def create(self, match, body, role):
        wanted = json.loads(body)
        repo_type, owner = wanted.get("type") or "model", wanted.get("organization") or USER
        if owner != USER:
            raise refusal(403, "", f"You don't have the rights to create a {repo_type} under the namespace {owner!r}")
        repo_id = f"{owner}/{wanted['name']}"
        url = f"{self.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
        if (repo_type, repo_id) in self.repos:
            return Answer(409, {"error": f"You already created this {repo_type} repo", "url": url})
        repo = self.repos[repo_type, repo_id] = Repo(wanted.get("visibility") == "private")
        self.add_commit(repo, "main", {".gitattributes": self.store(b"*.safetensors filter=lfs\n")}, "initial commit")
        return {"url": url, "name": repo_id}

    def card(self, match, body, role):
        content = json.loads(body)["content"]
        try:
            front_matter(content)
        except yaml.YAMLError as error:
            return Answer(400, {"errors": [{"message": f"bad YAML: {type(error).__name__}"}], "warnings": []})
        return {"errors": [], "warnings": []}

    def info(self, match, body, role):
        repo = self.repo(match, role)
        sha, files = self.listing(repo, unquote(match["revision"] or "main"))
        data = front_matter(self.objects[files["README.md"]].decode()) if "README.md" in files else {}
        known = {name: data[name] for name in ("pipeline_tag", "library_name", "tags") if name in data}
        siblings = [{"rfilename": path} for path in sorted(files)]
        fixed = {"id": match["id"], "sha": sha, "private": repo.private, "gated": False, "disabled": False}
        return {**fixed, "siblings": siblings, "cardData": data, **known}

    def tree(self, match, body, role, recursive="false", cursor="0", **unused):
        _, files = self.listing(self.repo(match, role), unquote(match["revision"]))
        prefix = f"{unquote(match['path'])}/" if match["path"] else ""
        entries = []
        for path, oid in sorted(files.items()):
            rest = path.removeprefix(prefix)
            if not path.startswith(prefix):
                continue
            for depth in range(rest.count("/") if recursive.lower() in ("true", "1") else min(rest.count("/"), 1)):
                folder = prefix + "/".join(rest.split("/")[: depth + 1])
                entry = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
                if entry not in entries:
                    entries.append(entry)
            if "/" not in rest or recursive.lower() in ("true", "1"):
                entries.append(self.entry(path, oid))
        if prefix and not entries:
            raise refusal(404, "EntryNotFound", f"{prefix} does not exist")
        start = int(cursor)
        headers = {}
        if start + self.page < len(entries):
            path = f"/api/{match['type']}s/{match['id']}/tree/{match['revision']}"
            path += f"/{match['path']}" if match["path"] else ""
            query = f"recursive={recursive}&cursor={start + self.page}"
            headers["Link"] = f'<{self.endpoint}{path}?{query}>; rel="next"'
        return Answer(200, entries[start : start + self.page], headers)

    def entry(self, path: str, oid: str) -> dict:
        content = self.objects[oid]
        entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        if is_lfs(path, len(content)):
            entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        return entry

    def refs(self, match, body, role):
        repo = self.repo(match, role)

        def named(kind, refs):
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]

        return {"branches": named("heads", repo.branches), "tags": named("tags", repo.tags), "converts": []}

    def branch(self, match, body, role):
        repo, name = self.repo(match, role), unquote(match["name"])
        if name in repo.branches:
            raise refusal(409, "", "Reference already exists")
        start = json.loads(body or b"{}").get("startingPoint", "main")
        repo.branches[name] = self.listing(repo, start)[0]

    def tag(self, match, body, role):
        repo, name = self.repo(match, role), json.loads(body)["tag"]
        if name in repo.tags:
            raise refusal(409, "", "Tag reference exists already")
        repo.tags[name] = self.listing(repo, unquote(match["revision"]))[0]

    def preupload(self, match, body, role):
        _, files = self.listing(self.repo(match, role), unquote(match["revision"]))
        ignored = self.objects[files[".gitignore"]].decode().split() if ".gitignore" in files else []
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            mode = "lfs" if is_lfs(path, file["size"]) else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": path in ignored}
            if path in files:
                answer["oid"] = files[path] if mode == "lfs" else git_oid(self.objects[files[path]])
            answers.append(answer)
        return {"files": answers}

    def commit(self, match, body, role):
        repo, branch = self.repo(match, role), unquote(match["revision"])
        if branch not in repo.branches:
            raise refusal(404, "RevisionNotFound", f"Invalid rev id: {branch}")
        files = dict(repo.commits[repo.branches[branch]])
        title = ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                title = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = self.store(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    raise refusal(422, "", f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = value["oid"]
            elif value["path"] in files:  # deletedFile
                del files[value["path"]]
            else:
                raise refusal(404, "EntryNotFound", "A file with this name doesn't exist")
        sha = self.add_commit(repo, branch, files, title)
        return {"commitUrl": f"{self.endpoint}/{match['id']}/commit/{sha}", "commitOid": sha, "success": True}

    def lfs_batch(self, match, body, role):
        self.repo(match, role)
        objects = []
        for wanted in json.loads(body)["objects"]:
            if wanted["oid"] not in self.objects:
                upload = {"href": f"{self.endpoint}/_storage/{wanted['oid']}"}
                wanted = {**wanted, "actions": {"upload": upload, "verify": {"href": f"{self.endpoint}/_verify"}}}
            objects.append(wanted)
        return {"transfer": "basic", "objects": objects}

    def upload(self, match, body, role):
        if hashlib.sha256(body).hexdigest() != match["oid"]:
            raise refusal(400, "", "The content is not that of its name")
        self.store(body)

    def lfs_verify(self, match, body, role):
        wanted = json.loads(body)
        if len(self.objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise refusal(404, "", "No such object")

    def resolve(self, match, body, role, **unused):
        sha, files = self.listing(self.repo(match, role), unquote(match["revision"]))
        path = unquote(match["path"])
        if path not in files:
            raise refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
        content, oid = self.objects[files[path]], files[path]
        etag = f'"{oid if is_lfs(path, len(content)) else git_oid(content)}"'
        headers = {"ETag": etag, "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if is_lfs(path, len(content)):
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content))}
        return Answer(200, content, headers)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body of an answer waits 40 ms until its head has been acknowledged
    hub: StandIn

    def handle_any(self) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        request = f"{self.command} {path}"
        if path == "/_tell":
            method, arguments = json.loads(self.body())
            self.answer(Answer(200, getattr(self.hub, method)(**arguments)))
            return
        kind, match = next(
            ((kind, match) for kind, route in ROUTES.items() if (match := re.fullmatch(route, request))), (None, None)
        )
        fault = self.hub.next_fault(kind)
        with self.hub.lock:
            self.hub.requests.append((kind, path))
            if kind is None:
                self.hub.unknown.append(request)
        if fault is not None and fault.get("when") == "middle":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.close_connection = True
            return
        body = self.body()
        self.look_for_tokens(request, body)
        if fault is not None and "status" in fault:
            self.answer(Answer(fault["status"], {"error": "told to fail"}, fault["headers"]))
            return
        answer = Answer(404, {"error": "no such route"})
        if match is not None:
            answer = self.serve(kind, match, body, {name: values[0] for name, values in query.items()})
        if fault is not None:
            self.close_connection = True
        else:
            self.answer(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def serve(self, kind: str, match: re.Match, body: bytes, query: dict[str, str]) -> Answer:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        role = TOKENS.get(token)
        if token and role is None:
            return refusal(401, "", "Invalid credentials in Authorization header")
        if kind in ("create", "branch", "tag", "preupload", "commit", "lfs_batch") and role != "write":
            status = 401 if role is None else 403
            return refusal(status, "", "Invalid username or password." if role is None else "a write token is needed")
        query = query if kind in ("tree", "resolve") else {}
        with self.hub.lock:
            try:
                content = getattr(self.hub, kind)(match, body, role, **query)
            except Answer as answer:
                return answer
        return content if isinstance(content, Answer) else Answer(200, content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def look_for_tokens(self, request: str, body: bytes) -> None:
        headers = [f"{name}: {value}" for name, value in self.headers.items() if name.lower() != "authorization"]
        text = "\n".join([self.path, *headers]).encode() + body
        decoded = b"".join(base64.b64decode(found) for found in re.findall(rb'"content": ?"([A-Za-z0-9+/=]*)"', body))
        self.hub.leaks += [request for token in TOKENS if token.encode() in text + decoded]

    def answer(self, answer: Answer) -> None:
        content, headers, status = answer.content, dict(answer.headers), answer.status
        if not isinstance(content, bytes):
            content = b"" if content is None else json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and status == 200:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            status, content = 206, content[first : last + 1]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        pass


def tell(endpoint: str, method: str, **arguments):
    """Call a method of a stand-in in another process: `fail`, `drop`, `calm` or `counts`."""
    request = urllib.request.Request(f"{endpoint}/_tell", json.dumps([method, arguments]).encode())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as response:
        content = response.read()
    return json.loads(content) if content else None


def is_lfs(path: str, size: int) -> bool:
    return path.endswith(LFS_SUFFIXES) or size > LFS_FROM


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def front_matter(content: str) -> dict:
    match = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
    return (yaml.safe_load(match[1]) or {}) if match else {}
