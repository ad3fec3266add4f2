"""Folders of networks from and to the Hugging Face Hub, by huggingface_hub.

Its own settings hold: ``HF_ENDPOINT`` (a mirror), ``HF_HOME`` and ``HF_HUB_CACHE``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import http_backoff

__all__ = ["HubError", "Publication", "fetch", "upload"]

T = TypeVar("T")

_PAUSES = (1.0, 2.0, 4.0)  # seconds before trying again what may pass
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses of that kind
_PATIENT = 5.0  # seconds after which huggingface_hub has tried again by itself, as it does where it downloads
# what broken connections raise, by the client's own account: it is httpx's or, in older versions, that of requests
_BROKEN_OFF: Any = inspect.signature(http_backoff).parameters["retry_on_exceptions"].default


class HubError(RuntimeError):
    """The Hub did not do what was asked of it; the message says why, and the way out."""


@dataclass(frozen=True)
class Publication:
    """What :func:`upload` has done.

    Attributes:
        repo_id: The repository.
        revision: Its 40-hex commit that holds the folder.
        is_new: Whether that commit was made now; False if the repository held the same files already.
        pull_request: Address of the pull request, where one was opened.
        tag: The tag that was set.
    """

    repo_id: str
    revision: str
    is_new: bool
    pull_request: str | None = None
    tag: str | None = None


def fetch(repo_id: str, revision: str, names: Sequence[str], *, again: bool = False) -> Path:
    """Fetch files of one commit into the cache; what is there already is not asked for again.

    Args:
        repo_id: ``ORG/NAME``.
        revision: Commit, tag or branch; a branch is resolved once, so that all files are of one commit.
        names: Paths of the files.
        again: Fetch them even where the cache has them, and put them in their place.

    Returns:
        The folder in the cache that holds them.

    Raises:
        HubError: There is no such repository, revision or file, it may not be read, or the Hub cannot be reached and
            the cache does not have it.
    """
    folder: Path | None = None
    for name in names:
        what = f"{name} of {repo_id} at {revision}"
        get = partial(hf_hub_download, repo_id, name, revision=revision, force_download=again)
        file = _patiently(get, what)
        folder = Path(file[: -len(name) - 1])
        revision = folder.name  # .../snapshots/COMMIT
    if folder is None:
        raise ValueError("no file to fetch")
    return folder


def upload(
    folder: Path,
    repo_id: str,
    *,
    message: str,
    private: bool = False,
    create_pr: bool = False,
    tag: str | None = None,
) -> Publication:
    """Put a folder's files into a repository, in one commit; files that are there already and equal are left alone.

    Args:
        folder: The folder.
        repo_id: ``ORG/NAME``; it is made if it is not there.
        message: Of the commit.
        private: Whether a new repository is private.
        create_pr: Open a pull request instead of changing the main branch.
        tag: Name for the commit.

    Raises:
        ValueError: Both a tag and a pull request are asked for: what is not accepted yet has no name.
        HubError: No token, no permission, no connection, or the tag names another commit.
    """
    if tag and create_pr:
        raise ValueError("a pull request cannot be tagged before it is merged: leave out one of tag and create_pr")
    api = HfApi()
    what = f"publishing {repo_id}"
    _patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True), what)
    before = _patiently(lambda: api.model_info(repo_id).sha, what)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    # one commit at a time, and none where everything is there already: the client compares
    commit: Any = _patiently(
        lambda: api.create_commit(
            repo_id,
            [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files],
            commit_message=message,
            create_pr=create_pr,
            parent_commit=None if create_pr else before,
        ),
        what,
        can_repeat=not create_pr,
    )
    if tag:
        _tag(api, repo_id, tag, commit.oid)
    return Publication(repo_id, commit.oid, commit.oid != before, commit.pr_url, tag)


def _tag(api: HfApi, repo_id: str, tag: str, revision: str) -> None:
    refs = _patiently(lambda: api.list_repo_refs(repo_id), f"reading the tags of {repo_id}")
    there = {ref.name: ref.target_commit for ref in refs.tags}
    if there.get(tag) == revision:
        return
    if tag in there:
        raise HubError(
            f"{repo_id} was published as {revision}, but its tag {tag!r} is taken by {there[tag]}: choose another tag"
        )
    _patiently(lambda: api.create_tag(repo_id, tag=tag, revision=revision), f"tagging {repo_id} as {tag!r}")


def _patiently(call: Callable[[], T], what: str, *, can_repeat: bool = True) -> T:
    """Call, and call again after what may pass: a busy server, a connection that breaks off.

    Where a lost answer must not lead to doing a thing twice, ``can_repeat`` is False: then only after a refusal.
    """
    for pause in (*_PAUSES, None):
        start = time.monotonic()
        try:
            return call()
        except Exception as error:  # httpx's, huggingface_hub's and OSError have no class in common
            client_has_tried_again = time.monotonic() - start > _PATIENT
            if pause is None or client_has_tried_again or not _may_pass(error, can_repeat):
                raise HubError(_explain(error, what)) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def _status(error: BaseException | None) -> int | None:
    """HTTP status behind an error."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response.status_code
        error = error.__cause__
    return None


def _may_pass(error: BaseException | None, can_repeat: bool) -> bool:
    if constants.HF_HUB_OFFLINE or isinstance(error, (OfflineModeIsEnabled, LocalTokenNotFoundError)):
        return False
    if (status := _status(error)) is not None:
        return status in _PASSING
    while error is not None and can_repeat:
        # an OSError without a number is none of this machine's, such as a full disk: a file ended before its end
        if isinstance(error, _BROKEN_OFF) or (isinstance(error, OSError) and error.errno is None):
            return True
        error = error.__cause__
    return False


def _explain(error: BaseException, what: str) -> str:
    status = _status(error)
    login = "log in with `hf auth login` or set HF_TOKEN to a token that may do that"
    if isinstance(error, HFValidationError):
        return f"{what}: {error}"
    if isinstance(error, LocalTokenNotFoundError) or (status == 401 and not isinstance(error, RepositoryNotFoundError)):
        return f"{what}: the Hub asks who you are (401); {login}"
    if isinstance(error, GatedRepoError) or status == 403:
        return f"{what}: the Hub does not let you (403); {login}, or ask the owner"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{what}: there is no such repository, or it is private and you may not see it; check the name, or {login}"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{what}: the repository has no such revision; name a branch, tag or commit of it"
    if constants.HF_HUB_OFFLINE or isinstance(error, OfflineModeIsEnabled):
        return f"{what}: HF_HUB_OFFLINE is set and {constants.HF_HUB_CACHE} does not have it; fetch it online once"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{what}: the repository has no such file, so it holds no network of lightning-tspike"
    if status == 412:
        return f"{what}: somebody else has changed the repository meanwhile; publish again"
    if status == 429:
        return f"{what}: the Hub has had too many requests from you (429), also after several tries; wait a while"
    if status is not None:
        return f"{what}: the Hub answered with status {status}, also after several tries; try again later ({error})"
    return (
        f"{what}: {constants.ENDPOINT} cannot be reached and {constants.HF_HUB_CACHE} does not have it: {error}; check "
        "the connection, set HF_ENDPOINT to a mirror, or load a folder on disk"
    )
