"""Files that are damaged between two starts: torn, with one bit turned, or gone."""

import shutil
from functools import partial
from itertools import product
from pathlib import Path
from random import Random

from .same import difference, learned, saved
from .trial import Case, Verdict, fault


def tear(path: Path, random: Random) -> None:
    """Keep less than the whole, as a file system that lost its power does."""
    path.write_bytes(path.read_bytes()[: random.randrange(path.stat().st_size)])


def turn_bit(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def remove(path: Path, random: Random) -> None:
    path.unlink()


CHECKPOINT = list(
    product(("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"), (tear, turn_bit))
)
"""What is damaged in turn, and how. Of a record (metrics.jsonl, result.json) no bit is turned: a number with another
digit is a number."""
RUN = [
    ("config.yaml", tear),
    ("tokenizer.json", tear),
    ("metrics.jsonl", tear),
    ("plan.json", tear),
    ("config.yaml", turn_bit),
    ("tokenizer.json", turn_bit),
    ("plan.json", turn_bit),
]
SHARD = ("tokens", "offsets.npy", "hashes.npy", "held_out.parquet", "json", "seal.json")
CACHE = ("tokenizers/*/tokenizer.json", "tokenizers/*/tokenizer.seal.json", "tokens/*/manifest.json", "times/*.json")


@fault("damage-checkpoint")
def of_checkpoint(case: Case) -> Verdict:
    """One file of the newest checkpoint."""
    name, damage = CHECKPOINT[case.number % len(CHECKPOINT)]
    step = case.random.choice(case.bench.saved[1:])
    case.bench.unfinished(case.run, step)
    newest = saved(case.run, step)
    damage(newest / name, case.random)
    return case.judge(case.train(), says=f"{newest.name}: .*remove", mend=partial(shutil.rmtree, newest), since=step)


@fault("damage-run")
def of_run(case: Case) -> Verdict:
    """A file of an unfinished run beside its checkpoints."""
    name, damage = RUN[case.number % len(RUN)]
    step = case.random.choice(case.bench.saved[1:-1])
    case.bench.unfinished(case.run, step)
    end = partial(_end_of_torn_record, case, step) if name == "metrics.jsonl" else None
    return _damaged(case, case.run / name, damage, end)


def _end_of_torn_record(case: Case, step: int) -> str | None:
    """As `Case.end`, for a record that has only the rows before the tear, and those after the checkpoint."""
    undisturbed = learned(case.bench.undisturbed)
    found = learned(case.run)
    before, after = ([row for row in found if (row["step"] <= step) == old] for old in (True, False))
    if before != undisturbed[: len(before)] or after != [row for row in undisturbed if row["step"] > step]:
        return "the record has other rows than undisturbed"
    return difference(case.run, case.bench.undisturbed, but="record")


@fault("damage-result")
def of_result(case: Case) -> Verdict:
    """The result of a finished run is torn."""
    shutil.copytree(case.bench.undisturbed, case.run)
    return _damaged(case, case.run / "result.json", tear)


@fault("damage-shard")
def of_shard(case: Case) -> Verdict:
    """A file of a shard is torn or gone; the run has begun, or not."""
    name, damage = list(product(SHARD, (tear, remove)))[case.number % (2 * len(SHARD))]
    return _in_cache(case, f"tokens/*/*[0-9].{name}", damage)


@fault("damage-cache")
def of_cache(case: Case) -> Verdict:
    """Another file of the cache is torn, or has a bit turned."""
    pattern, damage = list(product(CACHE, (tear, turn_bit)))[case.number % (2 * len(CACHE))]
    return _in_cache(case, pattern, damage)


@fault("damage-bit")
def of_bit(case: Case) -> Verdict:
    """One bit of a file of a shard is turned."""
    return _in_cache(case, f"tokens/*/*[0-9].{SHARD[case.number % len(SHARD)]}", turn_bit)


def _in_cache(case: Case, pattern: str, damage) -> Verdict:
    shutil.copytree(case.bench.cache, case.cache)
    if case.random.random() < 0.5:
        case.bench.unfinished(case.run, case.random.choice(case.bench.saved[1:-1]))
    path = case.random.choice(sorted(case.cache.glob(pattern)))
    return _damaged(case, path, damage, cache=case.cache)


def _damaged(case: Case, path: Path, damage, end=None, **rest) -> Verdict:
    whole = path.read_bytes()
    damage(path, case.random)
    verdict = case.judge(
        case.train(**rest),
        says=path.name,
        again=partial(case.train, **rest),
        mend=partial(path.write_bytes, whole),
        end=end,
    )
    return Verdict(verdict.outcome, f"{path.name}, {damage.__name__}: {verdict.says}")
