"""Fetches the files of one commit of a dataset from the Hugging Face hub, whole, and only what is missing.

A record in the folder pins the commit and lists the files: what was begun goes on, what is finished needs no network.
"""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, RepoFile, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import tqdm

from yxanul.errors import UserError
from yxanul.files import write_json

RECORD = ".yxanul-download.json"
WORKERS = 8  # files fetched at a time
ANSWER_SECONDS = 8  # for the hub's first answer
LISTING_SECONDS = 120  # for the list of files, a request for every thousand of them
ANOTHER_WAY = "get the files another way and name them with data.path=DIR"


def download(repo: str, revision: str | None, pattern: str, folder: Path, endpoint: str | None = None) -> Path:
    """Have `folder` hold the dataset's files that match, fetching what is missing or has the wrong size.

    Args:
        repo: the dataset's name on the hub, OWNER/NAME.
        revision: a commit, branch or tag; None is the recorded commit, or else the newest, which is then recorded.
        pattern: a glob over paths in the repository, e.g. "data/*.parquet"; `*` matches `/` too.
        folder: receives the repository's tree; returned.
        endpoint: the hub's address; None is the library's own (HF_ENDPOINT).

    Raises:
        UserError: the folder is another download's, the hub refuses or gives no answer in ANSWER_SECONDS (midway in
            half a minute, the library's retries), nothing matches, the disk is full, a file is wrong twice.
    """
    record = recorded(folder)
    wanted = f"dataset {repo} at {revision or 'its newest commit'}"
    if record and (record["repo"] != repo or revision not in (None, record["asked"], record["revision"])):
        held = f"holds dataset {record['repo']} at {record['revision']}"
        raise UserError(f"{folder}: {held}, not {wanted}; name another folder, or remove this one")
    if record is None or record["pattern"] != pattern or missing(folder, record["files"]):
        with _one_line(wanted, folder):
            record = _ask(HfApi(endpoint=endpoint), repo, revision, pattern, record)
            write_json(folder / RECORD, record)
        _fetch(repo, record["revision"], missing(folder, record["files"]), folder, endpoint)
    return folder


def recorded(folder: Path) -> dict[str, Any] | None:
    """The record of the download in `folder`, None if there is none.

    Returns:
        "repo", the revision "asked" for (or None), the "revision" that is (a commit), the "pattern", and "files":
        for each path its "size" in bytes and its "sha256" (None where the hub names none).

    Raises:
        UserError: the record is damaged.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        texts = [record["repo"], record["revision"], record["pattern"], record["asked"] or "", *record["files"]]
        sizes = [file["size"] for file in record["files"].values()]
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(size, int) for size in sizes):
            raise TypeError("a value of another type")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged ({error!r}); remove it and start again: what is there is kept") from error
    return record


def missing(folder: Path, files: dict[str, Any]) -> dict[str, Any]:
    """The files that are not there or have the wrong size."""
    sizes = {name: path.stat().st_size for name in files if (path := folder / name).is_file()}
    return {name: file for name, file in files.items() if sizes.get(name) != file["size"]}


def _ask(api: HfApi, repo: str, revision: str | None, pattern: str, record: dict[str, Any] | None) -> dict[str, Any]:
    """The new record: the recorded commit, or else the one that `revision` is, with its matching files."""
    asked, wanted = (record["asked"], record["revision"]) if record else (revision, revision)
    # The one request that the library does not repeat for 23 seconds where there is no network.
    info = _within(ANSWER_SECONDS, partial(api.dataset_info, repo, revision=wanted, timeout=ANSWER_SECONDS))
    # The information holds a list too, but the hub may cut it short at a thousand files.
    tree = partial(api.list_repo_tree, repo, repo_type="dataset", revision=info.sha, recursive=True)
    listed = [file for file in _within(LISTING_SECONDS, lambda: list(tree())) if isinstance(file, RepoFile)]
    matching = [file for file in listed if fnmatchcase(file.path, pattern)]
    if not matching:
        some = ", ".join(file.path for file in listed[:3])
        raise UserError(f"dataset {repo}: none of its {len(listed)} files matches {pattern}; they are like {some}")
    files = {file.path: {"size": file.size, "sha256": file.lfs and file.lfs.sha256} for file in matching}
    return {"repo": repo, "asked": asked, "revision": info.sha, "pattern": pattern, "files": files}


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """`call()`, or TimeoutError: the library's timeouts hold for each address, and not for the search for one."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()  # the process may end before it does
    if not wait([answer], seconds).done:
        raise TimeoutError(f"no answer in {seconds} seconds")
    return answer.result()


def _fetch(repo: str, commit: str, files: dict[str, Any], folder: Path, endpoint: str | None) -> None:
    """Fetch `files`, several at a time, with a bar on a terminal; after the first failure no other is begun."""
    needed = sum(file["size"] for file in files.values())
    if needed > (free := shutil.disk_usage(folder).free):
        sizes = f"{needed / 1e9:.2f} GB are to be fetched, {free / 1e9:.2f} GB are free"
        raise UserError(f"{folder}: {sizes}; make room there, or name another folder")
    pool = ThreadPoolExecutor(WORKERS)
    with tqdm(desc=repo, total=needed, unit="B", unit_scale=True, disable=None) as bar:  # None: on a terminal only
        source = {"repo_type": "dataset", "revision": commit, "endpoint": endpoint}
        get = partial(hf_hub_download, repo, **source, local_dir=folder, tqdm_class=_share(bar))
        try:
            for done in as_completed([pool.submit(_fetch_one, *file, folder, get) for file in files.items()]):
                done.result()
        finally:
            pool.shutdown(cancel_futures=True)
    for begun in folder.glob(".cache/huggingface/download/**/*.incomplete"):
        begun.unlink(missing_ok=True)  # by a killed process; the library never takes it up again


def _share(bar: tqdm) -> type[tqdm]:
    """A class for the library's `tqdm_class`: draws nothing, and counts a file's bytes into `bar`."""

    class Share(tqdm):
        def __init__(self, *_: Any, **__: Any):
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            bar.update(n)

        def update_transfer(self, *_: Any, **__: Any) -> None:
            """Called for the hub's Xet store: bytes on the wire, beside those of the file."""

        set_transfer_postfix_str = update_transfer

    return Share


def _fetch_one(name: str, file: dict[str, Any], folder: Path, get: Callable[..., str], again: bool = False) -> None:
    """Fetch a file and compare it with the hub's list; if anything goes wrong, once again."""
    path = folder / name
    try:
        with _one_line(name, folder):
            get(filename=name, force_download=again)  # unforced, it believes in a file here or in the user's cache
            with path.open("rb") as content:
                sha256 = file["sha256"] and hashlib.file_digest(content, "sha256").hexdigest()
            got = {"size": path.stat().st_size, "sha256": sha256}
        wrong = [f"its {key} is {got[key]}, not the hub's {file[key]}" for key in file if got[key] != file[key]]
        if wrong:
            path.unlink()
            raise UserError(f"{path}: fetched twice, and {wrong[0]}; start again later, or {ANOTHER_WAY}")
    except UserError:
        if again:
            raise
        _fetch_one(name, file, folder, get, again=True)


@contextmanager
def _one_line(subject: str, folder: Path) -> Iterator[None]:
    """Raise as a UserError what the hub's library raises, or the HTTP library or the Xet client below it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ if type(error) is ValueError and error.__cause__ else error  # as forced fetches fail
        raise UserError(_advice(cause, subject, folder)) from error


def _advice(error: BaseException, subject: str, folder: Path) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return f"{subject}: is not all in {folder}, and HF_HUB_OFFLINE is set; unset it, or {ANOTHER_WAY}"
    reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403, 404) or isinstance(error, HFValidationError):
        mend = f"check the name, log in with `hf auth login`, or {ANOTHER_WAY}"
        return f"{subject}: is not on the Hugging Face hub, or not yours to read ({reason}); {mend}"
    if isinstance(error, OSError) and error.errno is not None:  # one that comes by network has none
        return f"{folder}: cannot be written ({reason}); make room there, or name another folder"
    return f"{subject}: cannot be had from the Hugging Face hub ({reason}); start again to go on, or {ANOTHER_WAY}"
