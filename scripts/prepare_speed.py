"""`python -m yxanul.prepare` against `datasets.map`: `python scripts/prepare_speed.py DIR TOKENIZER_JSON OTHER_PYTHON`.

Tokenizes the parquet files of DIR both ways, as whole processes with empty caches, in turns, so that a noisy machine
is noisy for both, and prints the seconds and the ratio. The other side is what one would write with the `datasets`
library: the stock tokenizer in `map(batched=True, num_proc=2)`. OTHER_PYTHON is the interpreter of an environment that
has `datasets` and `tokenizers`; nothing else here needs it.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROCESSES = 2
ROUNDS = 5

BASELINE = """
import sys
from datasets import load_dataset
from tokenizers import Tokenizer

files, tokenizer, cache, processes = sys.argv[1].split(","), Tokenizer.from_file(sys.argv[2]), sys.argv[3], sys.argv[4]

def encode(batch):
    return {"ids": [encoding.ids for encoding in tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)]}

if __name__ == "__main__":
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    rows.map(encode, batched=True, num_proc=int(processes), remove_columns=rows.column_names)
"""


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main(data: Path, tokenizer: Path, other_python: str) -> None:
    files = ",".join(map(str, sorted(data.glob("*.parquet"))))
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "baseline.py").write_text(BASELINE)
        os.environ["HF_HOME"] = folder
        for index in range(ROUNDS):
            cache = str(Path(folder) / str(index))
            prepare = [
                sys.executable,
                "-m",
                "yxanul.prepare",
                "data=parquet",
                f"data.path={data}",
                f"data.cache={cache}",
            ]
            ours.append(seconds([*prepare, f"tokenizer.path={tokenizer}", f"data.workers={PROCESSES}"]))
            theirs.append(
                seconds([other_python, f"{folder}/baseline.py", files, str(tokenizer), cache, str(PROCESSES)])
            )
            shutil.rmtree(cache)
            print(
                f"yxanul.prepare {ours[-1]:.1f} s, datasets.map {theirs[-1]:.1f} s: {theirs[-1] / ours[-1]:.2f} times",
                flush=True,
            )
    ratios = [other / own for own, other in zip(ours, theirs, strict=True)]
    print(f"median of {ROUNDS}: {statistics.median(ratios):.2f} times as fast as datasets.map")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
