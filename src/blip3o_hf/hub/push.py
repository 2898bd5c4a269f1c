"""Pushing a folder to the Hub: checked first, seen by readers whole, and repeated without sending anything twice."""

import os
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging, validate_repo_id

from .. import __version__
from .cards import CARD, stated_license, update_card
from .folders import PushFolder, read_folder

logger = logging.get_logger(__name__)

FILES_PER_COMMIT = 200
"""The Hub takes more at once, and slowly. Any model fits; a large folder of features takes several commits."""
WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)
"""Seconds before each repetition of a request that the Hub was too busy for, unless it says how long to wait."""
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
_PASSING = (408, 429, 500, 502, 503, 504)
_LOST = "The connection to the Hub was lost"
_AGAIN = "Push again with the same command: files that arrived are not sent again."
_T = TypeVar("_T")


class PushError(OSError):
    """The Hub could not be reached, or did not take a folder; the message says what is needed."""


@dataclass(frozen=True)
class PushReport:
    """
    What was pushed, or would be.

    Args:
        folder ([`PushFolder`]): its kind and its files.
        repo_id: of the repository, with its owner; as it was passed after a dry run.
        revision: the branch.
        private: `True` or `False`; `None` after a dry run that left the choice to the owner's settings.
        url (*optional*): of the commit; `None` after a dry run.
    """

    folder: PushFolder
    repo_id: str
    revision: str
    private: bool | None
    url: str | None = None

    def __str__(self) -> str:
        visibility = {True: "private", False: "public", None: "public unless it or its owner's settings say otherwise"}
        lines = [
            f"{self.folder.kind} {self.folder.folder}",
            f"to {self.repo_id}, a {self.folder.repo_type} repository, branch {self.revision}, "
            f"{visibility[self.private]}",
            *(f"{_in_words(file.size):>9}  {file.path}" for file in self.folder.files),
            f"{_in_words(self.folder.size):>9}  in all, {len(self.folder.files)} files",
        ]
        return "\n".join(lines)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    dry_run: bool = False,
    token: str | None = None,
) -> PushReport:
    """
    Upload a folder that this package wrote: a pipeline, model, processor, LoRA, or precomputed features, which go to a
    dataset repository.

    Up to [`FILES_PER_COMMIT`] files are one commit: readers see all of it or nothing. Of more files, those that name
    others come last. Weights of an earlier push to the same place are removed with the last commit. An interrupted
    push is repeated by the same call; weights that arrived are not sent again.

    Args:
        folder: see [`read_folder`].
        repo_id: `owner/name`, or `name` for your own account; made if there is none.
        private: whether only its owner sees it. `None` leaves that to a repository that exists, or to the owner's
            settings.
        revision: a branch; made if there is none. The default is `main`.
        commit_message: of every commit.
        dry_run: check and report, and ask no network.
        token: one that may write; the default is that of `hf auth login` or of `HF_TOKEN`.

    Returns:
        [`PushReport`]: print it for a table.

    Raises:
        FileNotFoundError, ValueError: when the folder must not be shared, or `repo_id` cannot be one.
        PushError: when the Hub did not take it, or shows it to more or to fewer than `private` says.

    Example:

    ```python
    >>> from blip3o_hf import push_folder

    >>> print(push_folder("runs/mine/generation/pipeline", "me/my-blip3o", dry_run=True))  # doctest: +SKIP

    ```
    """
    _check_name(repo_id)
    checked = read_folder(folder, token or os.environ.get("HF_TOKEN"))
    branch = revision or "main"
    if dry_run:
        return PushReport(checked, repo_id, branch, private)
    api = _api(token)
    with _explained(repo_id, checked.repo_type, api.endpoint):
        target = _Target.open(api, repo_id, checked.repo_type, private, branch)
        url = target.send(checked, commit_message or f"Push {checked.kind} with blip3o_hf {__version__}")
        target.verify(checked)
    return PushReport(checked, target.repo_id, branch, target.private, url)


def push_saved(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    license: str | None = None,
    takes_card: bool = False,
    private: bool | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """
    Push a model that was saved a moment ago: what `push_to_hub` of its class does.

    Args:
        folder: with a card, which is changed.
        repo_id, private, commit_message, token: as in [`push_folder`].
        license: to state in the card.
        takes_card: whether a card that the repository has takes the place of the folder's; with none there, the
            folder's own is given the name of the repository.

    Returns:
        `str`: the url of the commit.

    Raises:
        ValueError: when no licence is stated, or the folder must not be shared. Nothing is sent.
        PushError: when the Hub did not take it.
    """
    _check_name(repo_id)
    card = Path(folder) / CARD
    if takes_card:
        api = _api(token)
        with _explained(repo_id, "model", api.endpoint):
            if "/" not in repo_id:
                repo_id = f"{_patiently(api.whoami)['name']}/{repo_id}"
            is_taken = _take_card(api, repo_id, card.parent)
        if not is_taken:
            update_card(card, name=repo_id)
    if license is not None:
        update_card(card, license=license)
    if not stated_license(card):
        raise ValueError(
            f"A pushed model needs a card that says under which licence others may use it. None is stated for "
            f"{repo_id}. Pass it (`license='apache-2.0'`), an id of the Hub."
        )
    url = push_folder(card.parent, repo_id, private=private, commit_message=commit_message, token=token).url
    assert url is not None, "it was no dry run"
    return url


def _take_card(api: HfApi, repo_id: str, folder: Path) -> bool:
    """Get the card of a repository, and the pictures in it, into a folder; whether there is one."""
    try:
        files = _patiently(lambda: api.list_repo_files(repo_id))
    except RepositoryNotFoundError:
        return False
    if CARD not in files:
        return False

    def download(name: str) -> None:
        (folder / name).unlink(missing_ok=True)  # without an answer, the client would take what lies there for it
        try:
            api.hf_hub_download(repo_id, name, local_dir=folder)
        except LocalEntryNotFoundError as error:  # what the client makes of a lost connection
            raise httpx2.TransportError(str(error)) from error

    for name in files:
        if name == CARD or name.lower().endswith(_PICTURES):
            _patiently(lambda name=name: download(name))
    return True


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="blip3o_hf", library_version=__version__)


def _check_name(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"A repository is named owner/name or name, of letters, digits, '-', '_' and '.'. Got {repo_id!r}. {error}"
        ) from error


@dataclass(frozen=True)
class _Target:
    """A branch of a repository that exists."""

    api: HfApi
    repo_id: str
    repo_type: str
    private: bool
    branch: str

    @classmethod
    def open(cls, api: HfApi, repo_id: str, repo_type: str, private: bool | None, branch: str) -> "_Target":
        """Make repository and branch where they are missing."""
        created = _patiently(lambda: api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True))
        repo_id = created.repo_id
        is_private = bool(_patiently(lambda: api.repo_info(repo_id, repo_type=repo_type)).private)
        if private is not None and private != is_private:
            words = {True: "private", False: "public"}
            raise PushError(
                f"A push does not change the visibility of a repository. {repo_id} is {words[is_private]}, and "
                f"private={private} was asked for. Change it in the repository's settings, or push to a new one."
            )
        refs = _patiently(lambda: api.list_repo_refs(repo_id, repo_type=repo_type))
        if branch in {tag.name for tag in refs.tags}:
            raise PushError(
                f"A push goes to a branch. {branch!r} is a tag of {repo_id}, which always names the same files. Push "
                f"to a branch, and tag its commit again."
            )
        if branch not in {known.name for known in refs.branches} and not branch.startswith("refs/"):
            _patiently(lambda: api.create_branch(repo_id, branch=branch, repo_type=repo_type, exist_ok=True))
        return cls(api, repo_id, repo_type, is_private, branch)

    def send(self, folder: PushFolder, message: str) -> str:
        """Upload and commit all files; the url of the last commit."""
        target: dict[str, Any] = {"repo_id": self.repo_id, "repo_type": self.repo_type, "revision": self.branch}
        additions = [CommitOperationAdd(file.path, folder.folder / file.path) for file in folder.files]
        for start in range(0, len(additions), FILES_PER_COMMIT):
            part = additions[start : start + FILES_PER_COMMIT]
            self.api.preupload_lfs_files(additions=part, **target)
            is_last = start + FILES_PER_COMMIT >= len(additions)

            def commit(part=part, is_last=is_last):
                removals = self._outdated(folder) if is_last else []
                return self.api.create_commit(operations=[*part, *removals], commit_message=message, **target)

            url = _patiently(commit).commit_url
        return url

    def _sizes(self) -> dict[str, int]:
        """The files that the branch has, and their sizes."""
        tree = self.api.list_repo_tree(self.repo_id, recursive=True, revision=self.branch, repo_type=self.repo_type)
        return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}

    def _outdated(self, folder: PushFolder) -> list[CommitOperationDelete]:
        """
        Weights of an earlier push that took the place of these: in other shards, they would be stored beside them, and
        a single file would even be read instead of new shards.
        """
        new = {file.path for file in folder.files}
        families = {_family(path) for path in new} - {None}
        return [
            CommitOperationDelete(path, is_folder=False)
            for path in self._sizes()
            if path not in new and _family(path) in families
        ]

    def verify(self, folder: PushFolder) -> None:
        """The branch has every file: a `.gitignore` on the Hub may have silently left one out."""
        sizes = self._sizes()
        missing = [file.path for file in folder.files if sizes.get(file.path) != file.size]
        if missing:
            raise PushError(
                f"After a push, the repository must hold every file. {self.repo_id} lacks {len(missing)} of them, "
                f"{missing[0]} among them. Check whether its .gitignore excludes it, and push again."
            )


def _family(path: str) -> str | None:
    """The same for all shards of one set of weights, for their index, and for a single file in their place."""
    match = re.fullmatch(r"(.+?)(-\d+(-of)?-\d+)?\.safetensors(\.index\.json)?", path)
    return match and match[1]


def _patiently(request: Callable[[], _T]) -> _T:
    """What a request gives, repeated while the Hub is too busy or the connection is lost."""
    for wait in WAITS:
        try:
            return request()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            asked = ""
            if isinstance(error, HfHubHTTPError):
                if error.response.status_code not in _PASSING:
                    raise
                asked = error.response.headers.get("Retry-After", "")
            seconds = float(asked) if asked.isdigit() else wait
            logger.warning(f"{_outcome(error)}. Trying again in {seconds:g} s.")
            time.sleep(seconds)
    return request()


def _outcome(error: Exception) -> str:
    """What happened to a request, without addresses that may be signed."""
    if not isinstance(error, HfHubHTTPError):
        return f"{_LOST} ({type(error).__name__})"
    return f"The Hub answered {error.response.status_code} {error.response.reason_phrase}"


@contextmanager
def _explained(repo_id: str, repo_type: str, endpoint: str) -> Generator[None]:
    """Errors of the client become a [`PushError`] that says what is needed."""
    try:
        yield
    except (HfHubHTTPError, httpx2.TransportError) as error:
        raise PushError(_explanation(error, repo_id, repo_type, endpoint)) from error
    except RuntimeError as error:  # threads that upload weights put theirs into one
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError | httpx2.TransportError):
            raise PushError(_explanation(cause, repo_id, repo_type, endpoint)) from error
        raise PushError(f"Weights could not be sent to {repo_id} ({error}). {_AGAIN}") from error
    except (ValueError, OfflineModeIsEnabled) as error:  # a card or an answer that cannot be read; or no network
        raise PushError(f"The Hub did not take the folder for {repo_id}. {' '.join(str(error).split())}") from error


def _explanation(error: HfHubHTTPError | httpx2.TransportError, repo_id: str, repo_type: str, endpoint: str) -> str:
    outcome = _outcome(error)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    log_in = f"Make a write token at {endpoint}/settings/tokens and pass it to `hf auth login`"
    if status == 401:
        return f"A push to {repo_id} needs a write token. {outcome}: there is none, or it is not valid. {log_in}."
    if status == 403:
        return (
            f"A push to {repo_id} needs a token that may write there. {outcome} to the one in use. {log_in}, or push "
            f"to a repository of your own."
        )
    if status == 404:
        return (
            f"A push needs a repository that its token may see. {outcome} for the {repo_type} {repo_id}. Check the "
            f"name. If it is right, the token may be the wrong one. {log_in}."
        )
    if status in (409, 412):
        return f"Two pushes must not run at the same time. {outcome}: {repo_id} changed during this one. {_AGAIN}"
    if status is None or status in _PASSING:
        return f"The Hub must take every file for {repo_id}. {outcome}, {len(WAITS) + 1} times. {_AGAIN}"
    assert isinstance(error, HfHubHTTPError)  # others have no status
    detail = " ".join((error.server_message or "").split())
    return f"The Hub did not take the folder for {repo_id}. {outcome}. {detail}".rstrip()


def _in_words(size: int) -> str:
    for unit, one in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size} B"
