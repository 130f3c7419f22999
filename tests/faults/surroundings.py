"""A world that misbehaves around a run: clocks that jump, a second process, sinks that raise or hang."""

import time
from itertools import pairwise, product

from .bench import Ended, wait
from .same import result_of, rows
from .trial import Case, Outcome, Verdict, fault

DAY = 86_400.0
AT_ONCE = 0.3  # seconds between two processes that are started "at once"
MINUTE = 60.0  # that a dead sink may cost
SHORT_MINUTE = 3.0  # the same minute, where it is known that it will be waited for
SINKS = list(product(("build", "log", "close"), ("wandb", "tensorboard")))


@fault("clock-jumps")
def clock(case: Case) -> Verdict:
    """The wall clock jumps ahead and back by up to a day; no duration is to notice."""
    jumps = [(case.random.randrange(200), case.random.uniform(-DAY, DAY)) for _ in range(5)]
    ended = case.train(inject=[("jump", {"jumps": jumps})], cache=case.cache)
    return case.judge(ended, end=lambda: case.end() or _strange_durations(case, ended))


def _strange_durations(case: Case, ended: Ended) -> str | None:
    since = [row["seconds"] for row in rows(case.run, "train")]
    found = {name: value for row in rows(case.run, "start", "eval") for name, value in row.items() if "seconds" in name}
    found |= {"seconds": result_of(case.run)["seconds"]}
    wrong = [name for name, value in found.items() if not 0 <= value < ended.seconds]
    if wrong or any(later <= earlier for earlier, later in pairwise(since)):
        return f"a process of {ended.seconds:.1f} s has recorded {found} and steps after {since} s"
    return None


@fault("two-at-once")
def two_at_once(case: Case) -> Verdict:
    """Two or three processes are given one run, with an empty cache in every other trial; one of them trains it."""
    cache = case.cache if case.number % 2 else case.bench.cache
    processes = []
    for _ in range(case.random.choice((2, 3))):
        processes.append(case.bench.start(case.run, cache=cache))
        time.sleep(case.random.uniform(0, AT_ONCE))
    ended = [wait(process) for process in processes]
    bad = [each.last_words for each in ended if each.status and not (each.told and "another process" in each.err)]
    if bad:
        return Verdict(Outcome.lost, "; ".join(bad))
    return case.judge(min(ended, key=lambda each: each.status))


@fault("sink-raises")
def sink_raises(case: Case) -> Verdict:
    return _broken_sink(case, "raise")


@fault("sink-hangs")
def sink_hangs(case: Case) -> Verdict:
    return _broken_sink(case, "hang")


def _broken_sink(case: Case, how: str) -> Verdict:
    """TensorBoard or wandb, when it begins, at a row, or when it ends; the run ends at most a minute later."""
    at, sink = SINKS[case.number % len(SINKS)]
    broken = ("break_sink", {"sink": sink, "at": at, "how": how, "patience": SHORT_MINUTE})
    shown = f"tracking.{'tensorboard=true' if sink == 'tensorboard' else 'wandb.mode=offline'}"
    ended = case.train(shown, inject=[broken], patience=case.bench.life + MINUTE)
    if ended.status == 0 and f"{sink} failed and is dropped" not in " ".join(ended.out.split()):
        return Verdict(Outcome.lost, f"nobody was told that {sink} is broken")
    return case.judge(ended)
