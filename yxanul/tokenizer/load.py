"""A run's tokenizer: a published file, a local one, or one trained on the run's own data at first use."""

import hashlib
import heapq
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from yxanul.config import TokenizerConfig, TokenizerKind
from yxanul.errors import ConfigError, UserError
from yxanul.files import atomic_path, locked
from yxanul.seals import intact, seal
from yxanul.spent import add_seconds
from yxanul.tokenizer.encode import BYTE_OF, Encoder, StockEncoder, build_encoder, stock_encoder
from yxanul.tokenizer.superbpe import Progress, annotated, recipe, train_bpe, train_superbpe

SPARE_IDS = 64
"""How many ids a file may lack of tokenizer.vocab_size (reserved or special tokens left out of it)."""

ANSWER_SECONDS = 8
"""How long the hub may take to say that it has a tokenizer."""


@dataclass(frozen=True)
class Tokenizer:
    """Text <-> ids, with what the bytes of each id are.

    Attributes:
        library, stock: the loaded file, and the same as an encoder.
        description: what the file says.
        vocab_size: ids that may occur.
        end_of_text: id that begins every document.
        byte_lengths: (vocab_size,) uint16, the bytes of UTF-8 each id stands for; 0 for special tokens.
        fingerprint: hash of the file.
        path: the tokenizer.json.
    """

    library: tokenizers.Tokenizer
    stock: StockEncoder
    description: dict[str, Any]
    vocab_size: int
    end_of_text: int
    byte_lengths: np.ndarray
    fingerprint: str
    path: Path

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """What each id spells, (vocab_size,); nothing for special tokens and ids that the file leaves out."""
        spelled = [b""] * self.vocab_size
        for token, index in self.description["model"]["vocab"].items():
            spelled[index] = bytes(BYTE_OF[symbol] for symbol in token)
        for index, token in self.library.get_added_tokens_decoder().items():
            spelled[index] = b"" if token.special else token.content.encode()
        return spelled

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; special-token text inside a document stays ordinary text."""
        ids, begins = self.stock.encode(texts)
        return [ids[begin:end].tolist() for begin, end in pairwise(begins)]

    def bulk_encoder(self) -> Encoder:
        """Gives the same ids for much text; it takes a second to build."""
        return build_encoder(self.stock, self.description, self.byte_lengths)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens shown."""
        return self.library.decode(list(ids), skip_special_tokens=False)


def load_tokenizer(
    config: TokenizerConfig,
    cache: Path,
    corpus: Callable[[], Iterable[str]],
    corpus_fingerprint: str,
    progress: Progress = lambda stage, done: None,
) -> Tokenizer:
    """The tokenizer that the configuration names.

    Args:
        cache: folder for tokenizers trained here.
        corpus: the training documents, asked for only if a tokenizer must be trained.
        corpus_fingerprint: names what was trained on, so that other text trains another tokenizer.
        progress: told what is being done in training one, and the share of it that is done.

    Raises:
        UserError: the file is missing, unreadable or of another size, or cannot be downloaded.
    """
    path = find_tokenizer(config, cache, corpus_fingerprint)
    if path is None and config.kind is TokenizerKind.hub:
        path = _download(config)
    elif path is None:
        path = _trained(config, cache, corpus, corpus_fingerprint, progress)
    return open_tokenizer(path, config)


def find_tokenizer(config: TokenizerConfig, cache: Path, corpus_fingerprint: str) -> Path | None:
    """The file of the tokenizer, None if it is still to be downloaded or trained; see `load_tokenizer`.

    Raises:
        UserError: the file that is named is not there, or the hub's library cannot look.
    """
    if config.path is not None:
        path = Path(config.path).expanduser()
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.is_file():
            raise ConfigError("tokenizer.path", config.path, "no such file; name a tokenizer.json or its folder")
        return path
    if config.kind is TokenizerKind.hub:
        return _downloaded(config)
    path = _trained_path(config, cache, corpus_fingerprint)
    return path if intact(path) else None


def open_tokenizer(path: Path, config: TokenizerConfig) -> Tokenizer:
    """Read a tokenizer.json and hold it against the configuration.

    Raises:
        UserError: it cannot be read, has another size, or is not byte-level.
    """
    try:
        content = path.read_text(encoding="utf-8")
        library = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # the library raises bare Exception
        raise UserError(
            f"{path}: is no tokenizer.json that the tokenizers library reads ({str(error).splitlines()[0]})"
        ) from error
    description = json.loads(content)
    byte_level = '"ByteLevel"' in json.dumps([description.get(key) for key in ("pre_tokenizer", "decoder")])
    if not byte_level or "merges" not in description["model"]:
        raise UserError(f"{path}: is no byte-level BPE, so that bits per byte cannot be counted; choose one that is")
    if library.token_to_id(config.end_of_text) is None:
        library.add_special_tokens([config.end_of_text])
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    byte_lengths = _byte_lengths(library, description["model"]["vocab"])
    if not config.vocab_size - SPARE_IDS < len(byte_lengths) <= config.vocab_size:
        raise ConfigError(
            "tokenizer.vocab_size",
            config.vocab_size,
            f"{path} has {len(byte_lengths)} entries; choose the tokenizer of that size, or set tokenizer.vocab_size "
            "to it",
        )
    return Tokenizer(
        library=library,
        stock=stock_encoder(library, description),
        description=description,
        vocab_size=len(byte_lengths),
        end_of_text=library.token_to_id(config.end_of_text),
        byte_lengths=byte_lengths,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        path=path,
    )


def _byte_lengths(library: tokenizers.Tokenizer, vocabulary: dict[str, int]) -> np.ndarray:
    """In a byte-level vocabulary every character of a token is one byte; special tokens are no text."""
    added = library.get_added_tokens_decoder()
    lengths = np.zeros(1 + max(*vocabulary.values(), *added), dtype=np.uint16)  # some files leave ids out
    lengths[list(vocabulary.values())] = list(map(len, vocabulary))
    for index, token in added.items():
        lengths[index] = 0 if token.special else len(token.content.encode())
    return lengths


def _downloaded(config: TokenizerConfig) -> Path | None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _one_line(config), suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(**_wanted(config), local_files_only=True))
    return None


def _download(config: TokenizerConfig) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    with _one_line(config):
        # fails at once where a download would try for half a minute
        HfApi().model_info(config.repo, revision=config.revision, timeout=ANSWER_SECONDS)
        return Path(hf_hub_download(**_wanted(config)))


def _wanted(config: TokenizerConfig) -> dict[str, str | None]:
    return {"repo_id": config.repo, "filename": "tokenizer.json", "revision": config.revision}


@contextmanager
def _one_line(config: TokenizerConfig) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's, or one of the HTTP library below it
        raise UserError(
            f"tokenizer {config.repo}: cannot be downloaded ({type(error).__name__}); give its file with "
            "tokenizer.path=FILE, or train one on your data with tokenizer=superbpe8k"
        ) from error


def _trained_path(config: TokenizerConfig, cache: Path, corpus_fingerprint: str) -> Path:
    transition = config.transition if config.kind is TokenizerKind.superbpe else None
    asked = [config.kind.value, config.vocab_size, transition, config.train_bytes, corpus_fingerprint]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    return cache / "tokenizers" / f"{config.kind.value}-{config.vocab_size}-{digest}" / "tokenizer.json"


def _trained(
    config: TokenizerConfig,
    cache: Path,
    corpus: Callable[[], Iterable[str]],
    corpus_fingerprint: str,
    progress: Progress,
) -> Path:
    transition = config.transition if config.kind is TokenizerKind.superbpe else None
    path = _trained_path(config, cache, corpus_fingerprint)
    with locked(path.parent / ".lock"):
        if intact(path):
            return path
        began = time.perf_counter()
        texts = sample(corpus(), config.train_bytes)
        try:
            if transition is None:
                trained = train_bpe(texts, config.vocab_size, progress)
            else:
                trained = train_superbpe(texts, config.vocab_size, transition, progress)
        except ValueError as error:
            raise UserError(f"tokenizer.vocab_size={config.vocab_size}: {error}") from error
        # of the text alone: a copy of the data elsewhere gives the same file
        source = {"sha256": hashlib.sha256("\0".join(texts).encode()).hexdigest(), "train_bytes": config.train_bytes}
        record = recipe(texts, config.vocab_size, transition) | {"corpus": source}
        with atomic_path(path) as temporary:
            temporary.write_text(annotated(trained, record), encoding="utf-8")
        seal(path)
        add_seconds(cache, path.parent.name, time.perf_counter() - began)
    return path


def sample(documents: Iterable[str], at_most: int) -> list[str]:
    """The documents of smallest hash, up to about `at_most` bytes: the same ones in whatever order they come."""
    kept: list[tuple[bytes, str, int]] = []
    total = 0
    for text in documents:
        encoded = text.encode()
        heapq.heappush(kept, (_inverted_hash(encoded), text, len(encoded)))
        total += len(encoded)
        while total - kept[0][2] >= at_most:
            total -= heapq.heappop(kept)[2]
    return [text for _, text, _ in sorted(kept)]


def _inverted_hash(encoded: bytes) -> bytes:
    """Orders documents by descending hash, so that a heap's smallest element is the first to go."""
    return bytes(255 - byte for byte in hashlib.blake2b(encoded, digest_size=8).digest())
