"""Processes that are killed: anywhere in their life, in each of its phases, and those that work for others."""

import signal
from collections.abc import Sequence
from typing import Any

from .bench import EVALUATION, SAVE, STEP, Injection
from .same import difference
from .trial import Case, Outcome, Verdict, fault

CHAIN = 4  # kills of one run at most; then it is left alone
SOON = 0.01  # seconds: of a kill inside a function


@fault("kill-anywhere")
def anywhere(case: Case) -> Verdict:
    """At any moment of a life that begins with nothing, again and again."""
    life = case.bench.life
    for _ in range(CHAIN):
        ended = case.train(cache=case.cache, patience=case.random.uniform(0, life))
        if ended.status != -signal.SIGKILL:
            break
    else:
        ended = case.train(cache=case.cache)
    return case.judge(ended)


@fault("kill-step")
def in_step(case: Case) -> Verdict:
    return _killed(case, _inside(case, STEP))


@fault("kill-evaluation")
def in_evaluation(case: Case) -> Verdict:
    return _killed(case, _inside(case, EVALUATION))


@fault("kill-write")
def in_write(case: Case) -> Verdict:
    """Before any operation on the run's files, most of which make its checkpoints, or inside what writes tensors."""
    if case.number % 3 == 2:
        return _killed(case, _inside(case, SAVE))
    place = {"below": str(case.run)}
    return _killed(case, {"place": place, "call": 1 + case.random.randrange(case.bench.count("run"))})


@fault("kill-stopping")
def in_stopping(case: Case) -> Verdict:
    """While it saves because it was asked to stop, at a step that it will not save again."""
    step = case.random.choice([step for step in range(1, case.bench.saved[-1]) if step not in case.bench.saved])
    files = 2 * sum(each < step for each in case.bench.saved)
    asked = {"place": {"function": "yxanul.training.loop:update"}, "call": step, "action": ["terminate", {}]}
    call = files + case.random.randint(1, 2)
    return _killed(case, {"place": {"function": "safetensors.torch:save_file"}, "call": call}, before=[("act", asked)])


@fault("kill-prepare")
def in_preparation(case: Case) -> Verdict:
    """Before any operation on the files of an empty cache: its tokenizer, its shards, its locks."""
    place = {"below": str(case.cache)}
    when = {"place": place, "call": 1 + case.random.randrange(case.bench.count("cache"))}
    return _killed(case, when, cache=case.cache)


def _inside(case: Case, functions: tuple[str, ...]) -> dict[str, Any]:
    """Some call of a function, or a moment later."""
    name = case.random.choice(functions)
    call = 1 + case.random.randrange(case.bench.count(name))
    return {"place": {"function": name}, "call": call, "delay": case.random.choice([0.0, case.random.uniform(0, SOON)])}


def _killed(case: Case, when: dict[str, Any], before: Sequence[Injection] = (), **rest: Any) -> Verdict:
    ended = case.train(inject=[*before, ("act", when | {"action": ["kill", {}]})], **rest)
    if ended.status != -signal.SIGKILL:
        return Verdict(Outcome.lost, f"not killed by {when}, but {ended.last_words}")
    return case.judge(case.train(**rest))


@fault("kill-worker")
def worker(case: Case) -> Verdict:
    """One of two processes that tokenize, once; in every other trial all of them, each at its nth file operation."""
    once = ["kill_once", {"marker": str(case.folder / "killed")}]
    when = {
        "place": {"below": str(case.cache), "worker": True},
        "call": case.random.randint(1, 6),
        "action": ["kill", {}] if case.number % 2 else once,
    }
    ended = case.train("data.workers=2", inject=[("act", when)], cache=case.cache)
    if "a worker was killed" not in ended.out:
        return Verdict(Outcome.lost, f"no worker was killed, or nobody said so: {ended.last_words}")
    return case.judge(ended, says="killed", again=lambda: case.train("data.workers=2", cache=case.cache))


@fault("kill-rank")
def rank(case: Case) -> Verdict:
    """One of two processes that train together: the other leaves with a line, and both go on when started again."""
    undisturbed = case.bench.undisturbed_pair
    killed = case.random.randrange(2)
    when = {"place": {"function": STEP[0]}, "call": case.random.randint(1, 20), "action": ["kill", {}]}
    ended = case.bench.train_pair(case.run, inject={killed: [("act", when)]})
    left = ended[1 - killed]
    line = left.err.strip().rpartition("\n")[2]  # above it torch may say that a connection broke
    if ended[killed].status != -signal.SIGKILL or left.status != 3 or not line.startswith("error: process "):
        return Verdict(Outcome.lost, f"killed: {ended[killed].last_words}; the other: {left.last_words}")
    for again in case.bench.train_pair(case.run, inject={}):
        if again.status:
            return Verdict(Outcome.lost, again.last_words)
    wrong = difference(case.run, undisturbed)
    return Verdict(Outcome.lost if wrong else Outcome.recovered, wrong or "")
