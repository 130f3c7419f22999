"""Make what a run reads: find or download its text, load or train its tokenizer, tokenize with all cores.

A part of the source is one task and gives one shard. A shard is written by whoever holds its lock, and what is
finished is never done again: several processes, here or on other machines that see the folder, share the work
without speaking to one another, and a stopped preparation goes on where it was.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path, PurePosixPath

from rich.console import Console

from yxanul.config import DataConfig, DataKind, OnError, TokenizerConfig
from yxanul.data import documents
from yxanul.data.documents import Part, Skipped
from yxanul.data.progress import Progress, phases
from yxanul.data.shards import Corpus, ShardFolder, first_by_hash, shard_folder, training_documents
from yxanul.errors import ConfigError, UserError
from yxanul.files import locked, room
from yxanul.spent import add_seconds
from yxanul.tokenizer.encode import Encoder
from yxanul.tokenizer.load import Tokenizer, load_tokenizer

INLINE_BYTES = 16_000_000
"""Unless data.workers says otherwise, less text is tokenized here: workers would cost more than they save."""
BUSY_WAIT = 0.2  # seconds between looks at shards that other processes are writing
MAX_KILLS = 2
"""Workers that may be killed over one part, for example for want of memory, before it is given up."""
log = logging.getLogger(__name__)


def prepare_text(data: DataConfig, tokenizer: TokenizerConfig, console: Console) -> tuple[Tokenizer, Corpus]:
    """The tokenizer and the tokens of a configuration, made if they are missing.

    With `data.parts` above 1 only the shards of `data.part` are made, and the corpus holds what is finished.

    Raises:
        UserError: the text or the tokenizer is missing or damaged, or there is nothing to train on.
    """
    cache = Path(data.cache).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "data.cache", data.cache, f"cannot be made ({error.strerror}); name another folder"
        ) from error
    fetch(data)
    parts = documents.open_source(data)
    with phases(console, "training the tokenizer") as progress:
        loaded = tokenizer_for(parts, data, tokenizer, progress)
    return loaded, prepare(parts, loaded, data, tokenizer.bytes_per_token, console)


def tokenizer_for(
    parts: list[Part], data: DataConfig, tokenizer: TokenizerConfig, progress: Callable[[str, float], None]
) -> Tokenizer:
    """The tokenizer of a run on `parts`; see `load_tokenizer`."""
    return load_tokenizer(
        tokenizer,
        Path(data.cache).expanduser(),
        corpus=lambda: training_documents(parts, data.held_out),
        corpus_fingerprint=corpus_fingerprint(parts, data),
        progress=progress,
    )


def corpus_fingerprint(parts: list[Part], data: DataConfig) -> str:
    """Of the documents that a tokenizer is trained on."""
    return f"{documents.source_fingerprint(parts)} {data.held_out}"


def whole_text(data: DataConfig, tokenizer: TokenizerConfig, console: Console) -> tuple[Tokenizer, Corpus]:
    """As `prepare_text`, for those who read all of it.

    Raises:
        ConfigError: only a share is asked for.
    """
    if data.parts > 1:
        raise ConfigError("data.parts", data.parts, "all the data is read here; only yxanul.prepare divides it")
    return prepare_text(data, tokenizer, console)


def held_out_texts(data: DataConfig, corpus: Corpus, at_most_bytes: int) -> list[str]:
    """The documents that a run is judged on: of data.held_out_path, else those that its corpus keeps apart.

    Raises:
        UserError: there are none.
    """
    if data.held_out_path is None:
        return corpus.held_out(at_most_bytes)
    texts = first_by_hash(documents.Texts(documents.open_source(held_out_data(data)), data.on_error), at_most_bytes)
    if not texts:
        raise ConfigError("data.held_out_path", data.held_out_path, "holds no document")
    return texts


def held_out_data(data: DataConfig) -> DataConfig:
    """What data.held_out_path names, as data of its own."""
    return replace(data, kind=DataKind.files, path=data.held_out_path, held_out_path=None, expected_files=None)


def prepare(
    parts: list[Part], tokenizer: Tokenizer, data: DataConfig, bytes_per_token: float, console: Console
) -> Corpus:
    """Tokenize what is not tokenized yet, if there is room for it; see `prepare_text`."""
    folder = shard_folder(
        parts,
        tokenizer.fingerprint,
        tokenizer.vocab_size,
        tokenizer.end_of_text,
        data.held_out,
        Path(data.cache).expanduser(),
    )
    mine = list(folder.parts)[data.part :: data.parts]
    missing = [name for name in mine if not folder.finished(name)]
    missing.sort(key=lambda name: -folder.parts[name].bytes)  # so that the workers end together
    began = time.perf_counter()
    if missing:
        size = sum(folder.parts[name].bytes for name in missing)
        tokens = round(size / bytes_per_token * folder.dtype.itemsize)
        room("data.cache", folder.path, tokens, "the tokens take about")
        with Progress(console, size) as progress:
            job = Job(folder, tokenizer.bulk_encoder(), data.on_error)
            workers = data.workers or (os.cpu_count() if size > INLINE_BYTES else 1)
            if workers == 1:
                job.make(missing, lambda name: None, progress.add)
            else:
                Workers(job, missing, progress.add).run(min(workers, len(missing)))
        add_seconds(Path(data.cache).expanduser(), folder.path.name, time.perf_counter() - began)
    shards = [info for name in folder.parts if (info := folder.finished(name))]
    if missing or folder.counted() != len(shards):  # who made the last shard may have been killed before it counted
        folder.write_manifest()
    corpus = Corpus(folder.path, folder.dtype, shards, len(folder.parts))
    if corpus.skipped:
        first = next(skip for shard in shards for skip in shard.skips)
        log.warning("%d rows gave no document, the first %s", corpus.skipped, first)
    if corpus.tokens == 0 and data.parts == 1:
        raise UserError("the data holds no document to train on; give more documents or lower data.held_out")
    return corpus


@dataclass(frozen=True)
class Job:
    """What it takes to make shards."""

    folder: ShardFolder
    encoder: Encoder
    on_error: OnError

    def make(self, names: list[str], begun: Callable[[str], None], report: Callable[[int, int], None]) -> None:
        """Make the shards that no other process makes, and wait for the others.

        Args:
            begun: called with the name of each shard before it is made here.
            report: called now and then with the bytes and tokens done since.
        """
        while names := [name for name in names if not self._make_one(name, begun, report)]:
            time.sleep(BUSY_WAIT)

    def _make_one(self, name: str, begun: Callable[[str], None], report: Callable[[int, int], None]) -> bool:
        """Whether the shard is finished; it is not if another process is at it."""
        with self._claimed(name) as ours:
            if ours and not self.folder.finished(name):
                begun(name)
                self.folder.write(name, self.encoder, self.on_error, report)
            return ours

    def give_up(self, name: str) -> None:
        """Deal with a part that workers do not survive.

        Raises:
            UserError: `on_error` is stop; else an empty shard that tells of it is written.
        """
        if self.folder.finished(name):  # the last worker was killed after it
            return
        part = self.folder.parts[name]
        wrong = Skipped(part.name, None, f"{MAX_KILLS} workers were killed over it (out of memory?)")
        if self.on_error is OnError.stop:
            raise UserError(f"{wrong}; try data.workers=1, or go on without it by data.on_error=skip")
        told = replace(self.folder, parts=self.folder.parts | {name: replace(part, documents=lambda: [wrong])})
        with self._claimed(name):
            told.write(name, self.encoder, self.on_error)

    @contextmanager
    def _claimed(self, name: str) -> Iterator[bool]:
        lock = self.folder.path / f".{name}.lock"
        with locked(lock, wait=False) as ours:
            yield ours
            if ours:  # and the shard is finished: whoever still waits for this very file will see that
                lock.unlink(missing_ok=True)


class Workers:
    """Processes that make shards side by side; what each is at is known, so that its end can be told."""

    def __init__(self, job: Job, names: list[str], report: Callable[[int, int], None]):
        self._job = job
        self._names = names
        self._report = report
        self._kills: Counter[str | None] = Counter()
        self._running: dict[Connection, multiprocessing.Process] = {}
        self._current: dict[Connection, str] = {}

    def run(self, workers: int) -> None:
        """Make all shards.

        Raises:
            UserError, OSError: what stopped a worker; the others are stopped too.
        """
        try:
            for _ in range(workers):
                self._start()
            while self._running:
                for connection in wait(list(self._running)):
                    self._receive(connection)
        finally:
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                process.join()

    def _start(self) -> None:
        inbox, outbox = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=_work, args=(self._job, self._names, outbox, os.getpid()))
        process.start()
        outbox.close()  # so that the worker's end is the only one, and its death is the end of the pipe
        self._running[inbox] = process

    def _receive(self, connection: Connection) -> None:
        try:
            message = connection.recv()
        except EOFError:
            self._ended(connection)
            return
        match message:
            case Exception():
                raise message
            case str():
                self._current[connection] = message
            case num_bytes, tokens:
                self._report(num_bytes, tokens)

    def _ended(self, connection: Connection) -> None:
        process = self._running.pop(connection)
        process.join()
        if process.exitcode > 0:
            raise RuntimeError("a worker failed; its error stands above")
        if process.exitcode < 0:
            name = self._current.get(connection)
            log.warning(
                "a worker was killed by %s%s; another goes on",
                signal.Signals(-process.exitcode).name,
                f" at {self._job.folder.parts[name].name}" if name else "",
            )
            self._kills[name] += 1
            if self._kills[name] == MAX_KILLS:
                if name is None:
                    raise UserError("workers are killed as they start (out of memory?); try data.workers=1")
                self._job.give_up(name)
            self._start()


def _work(job: Job, names: list[str], outbox: Connection, parent: int) -> None:
    """A worker's life: it ends with its work, with an error, when told to, or with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and tells
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())

    def report(num_bytes: int, tokens: int) -> None:
        if os.getppid() != parent:
            sys.exit()
        outbox.send((num_bytes, tokens))

    try:
        job.make(names, outbox.send, report)
    except (UserError, OSError) as error:
        outbox.send(error)


def download_folder(data: DataConfig) -> Path | None:
    """The folder that the files of `data` are downloaded to where there are none.

    None if they never are: a path that does not end in the files' folder is the user's own copy, and left alone.
    """
    if data.repo is None:
        return None
    path, inner = Path(data.path).expanduser(), PurePosixPath(data.files).parent.parts
    outer = len(path.parts) - len(inner)
    return Path(*path.parts[:outer]) if path.parts[outer:] == inner else None


def fetch(data: DataConfig) -> None:
    """Download the files of `data` where there are none, or a download is unfinished.

    Raises:
        UserError: they cannot be had.
    """
    root = download_folder(data)
    if root is None:
        return
    from yxanul.data.download import download, recorded  # half a second that others need not wait

    if recorded(root) or not documents.source_files(Path(data.path).expanduser()):
        download(data.repo, data.revision, data.files, root)
