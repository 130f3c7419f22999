"""How fast prepared data are: `python scripts/data_speed.py [group=choice key=value ...]`, as for yxanul.train.

Prints what the stream gives to the trainer at every length of the curriculum, on one core from a warm page cache,
and how long it takes to open a prepared set of 2.6 billion tokens in 300 shards (simulated: real records and
offsets, token files of the right size without content). Prepares the data first if that is needed.
"""

import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
from rich.console import Console
from rich.table import Table

from yxanul import cli
from yxanul.config import Config
from yxanul.curriculum import Step
from yxanul.data.documents import Part
from yxanul.data.preparation import prepare, whole_text
from yxanul.data.shards import SUFFIXES, ShardInfo, shard_folder
from yxanul.data.stream import Stream
from yxanul.files import write_json
from yxanul.seals import seal
from yxanul.tokenizer.load import Tokenizer

SECONDS = 1.0  # at each length
BATCH_TOKENS = 32_768
SHARDS, DOCUMENTS, TOKENS = 300, 1_480_000, 2_610_000_000  # FineWeb-Edu's highest-quality cut in t80k tokens


def main(config: Config) -> int:
    console = Console()
    tokenizer, corpus = whole_text(config.data, config.tokenizer, console)
    stream = Stream(corpus, config.seed, tokenizer.byte_lengths)
    table = Table("sequence length", "million tokens a second", title="what the stream gives, on one core")
    for stage in config.curriculum.stages:
        table.add_row(f"{stage.seq_len:,}", f"{stream_speed(stream, stage.seq_len) / 1e6:.0f}")
    console.print(table)
    with tempfile.TemporaryDirectory() as folder:
        data = replace(config.data, cache=folder)
        parts = simulate(tokenizer, data.held_out, Path(folder))
        began = time.perf_counter()
        opened = prepare(parts, tokenizer, data, config.tokenizer.bytes_per_token, console)
        Stream(opened, config.seed, tokenizer.byte_lengths).read(0, 1)
        console.print(
            f"opening {opened.tokens:,} tokens in {len(opened.shards)} shards, to the first token: "
            f"{time.perf_counter() - began:.2f} s"
        )
    return 0


def stream_speed(stream: Stream, seq_len: int) -> float:
    """Tokens a second of micro-batches of about BATCH_TOKENS; the first pass warms the page cache."""
    sequences = max(1, min(BATCH_TOKENS, stream.tokens_per_epoch) // seq_len)
    count = sequences * seq_len
    for _ in range(2):
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            stream.micro_batch(Step(0, 0, seq_len, (sequences,), done, count, 0.0, 0.0), 0)
            done += count
    return done / (time.perf_counter() - began)


def simulate(tokenizer: Tokenizer, held_out: float, cache: Path) -> list[Part]:
    """Write the shards of a large prepared set, but for the tokens themselves, and return its parts."""
    parts = [Part(f"{index:05d}.parquet", f"print {index}", list) for index in range(SHARDS)]
    folder = shard_folder(parts, tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.end_of_text, held_out, cache)
    folder.path.mkdir(parents=True)
    documents, tokens = DOCUMENTS // SHARDS, TOKENS // SHARDS
    inner = np.random.default_rng(0).choice(tokens - 1, documents - 1, replace=False) + 1
    offsets = np.concatenate([[0], np.sort(inner), [tokens]])
    for name, part in folder.parts.items():
        np.save(folder.path / f"{name}.offsets.npy", offsets)
        np.save(folder.path / f"{name}.hashes.npy", np.zeros(documents, np.uint64))
        with (folder.path / f"{name}.tokens").open("wb") as file:
            file.truncate(tokens * folder.dtype.itemsize)
        parquet.write_table(pyarrow.table({"text": ["held out"]}), folder.path / f"{name}.held_out.parquet")
        info = ShardInfo(name, part.name, part.fingerprint, tokens, documents, 7 * tokens, 1, 8, name)
        write_json(folder.path / f"{name}.json", asdict(info))
        seal(folder.path / f"{name}.json", *(folder.path / f"{name}{suffix}" for suffix in SUFFIXES))
    folder.write_manifest()
    return parts


if __name__ == "__main__":
    sys.exit(cli.run(main, "plan"))
