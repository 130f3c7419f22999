"""How fast a run's model writes: with the cache, without it, and exported in stock transformers, in one run.

    python scripts/generation_speed.py outputs/RUN

Greedy, one text, from the same first tokens, without an end; the three take turns, and of each the best time counts.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from yxanul import export
from yxanul.config import Dtype
from yxanul.hardware import describe
from yxanul.inference.generate import Decoding
from yxanul.inference.loading import OpenRun, open_run
from yxanul.model.sample import sample
from yxanul.model.sampling import Sampling

ROUNDS = 5
GREEDY = Sampling(temperature=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    given = parser.parse_args()
    run = open_run(given.run, torch.device("cpu"), Dtype.fp32)
    prompt = [run.tokenizer.end_of_text, *run.tokenizer.encode(["The "])[0]]
    with tempfile.TemporaryDirectory() as folder:
        export.export(given.run, Path(folder) / "exported")
        stock = AutoModelForCausalLM.from_pretrained(Path(folder) / "exported", dtype=torch.float32).eval()
    ways = {
        "with the cache": lambda: cached(run, prompt, given.tokens),
        "read anew": lambda: anew(run, prompt, given.tokens),
        "transformers": lambda: stock.generate(
            torch.tensor([prompt]),
            max_new_tokens=given.tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=run.tokenizer.end_of_text,
        )[0].tolist(),
    }
    texts = {name: way() for name, way in ways.items()}
    best = dict.fromkeys(ways, 0.0)
    for _ in range(ROUNDS):
        for name, way in ways.items():
            best[name] = max(best[name], given.tokens / seconds(way))
    found = {
        "device": describe(torch.device("cpu")),
        "tokens": given.tokens,
        "same_text": len({tuple(text) for text in texts.values()}) == 1,
        "tokens_per_second": best,
        "times_as_fast_as": {name: best["with the cache"] / rate for name, rate in best.items()},
    }
    print(json.dumps(found, indent=2))


def cached(run: OpenRun, prompt: list[int], tokens: int) -> list[int]:
    text = list(prompt)
    decoding = Decoding(run.model, run.config.model, [text], len(text) + tokens)
    while True:
        text.append(int(decoding.logits[0].argmax()))
        if len(text) == len(prompt) + tokens:
            return text
        decoding.step([0], [text])


def anew(run: OpenRun, prompt: list[int], tokens: int) -> list[int]:
    generator = torch.Generator()
    return sample(run.model, [prompt], tokens, run.config.model.max_seq_len, -1, generator, GREEDY)[0]


def seconds(way: Callable[[], object]) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
