"""Numbers that go wrong in training: NaN and infinity in the loss and in gradients."""

from .bench import Injection
from .same import learned, result_of, rows, saved, tensors
from .trial import Case, Verdict, fault

KINDS = [(where, value) for where in ("loss", "gradient") for value in ("nan", "inf", "-inf")]
IN_A_ROW = 3  # skipped steps that end the run


@fault("nonfinite-step")
def some(case: Case) -> Verdict:
    """Some steps, no two in a row: each is counted and skipped, which leaves every tensor as it was."""
    last = case.bench.saved[-1]
    first = case.random.randrange(2, last - 4)
    bad = sorted([first, *case.random.sample(range(first + 2, last, 2), 2)])
    ended = case.train("checkpoint.every=1", "checkpoint.keep=100", inject=[_planted(case, bad)])
    return case.judge(ended, end=lambda: _wrong_steps(case, bad, bad[0]) or _moved(case, bad))


@fault("nonfinite-rest")
def all_the_rest(case: Case) -> Verdict:
    """All steps from some step on: after so many the run stops; with numbers again, it goes on from where it was."""
    limit = f"train.max_bad_steps={IN_A_ROW}"
    last = case.bench.saved[-1]
    first = case.random.randrange(case.bench.saved[0] + 1, last - IN_A_ROW)
    ended = case.train(limit, inject=[_planted(case, list(range(first, last + 1)))])
    newest = max(step for step in case.bench.saved if step < first + IN_A_ROW - 1)
    return case.judge(
        ended,
        says=f"not finite.* {IN_A_ROW} steps .* step {first + IN_A_ROW - 1};",
        again=lambda: case.train(limit),
        end=lambda: _wrong_steps(case, list(range(first, newest + 1)), first),
        since=first,
    )


# Loss spikes (train.on_spike) take longer runs: tests/training/test_guard.py.


def _planted(case: Case, steps: list[int]) -> Injection:
    where, value = KINDS[case.number % len(KINDS)]
    return "plant", {"steps": steps, "where": where, "value": value}


def _wrong_steps(case: Case, bad: list[int], first: int) -> str | None:
    """What is wrong with the steps that were skipped, and those before the first bad one."""
    told, skipped = [row["step"] for row in rows(case.run, "event")], result_of(case.run)["skipped_steps"]
    if told != bad or skipped != len(bad):
        return f"steps {bad} were bad, {told} were told, {skipped} were counted"
    before = [[row for row in learned(run) if row["step"] < first] for run in (case.run, case.bench.undisturbed)]
    return None if before[0] == before[1] else f"steps before {first} are not those of the undisturbed run"


def _moved(case: Case, bad: list[int]) -> str | None:
    moved = [step for step in bad if tensors(saved(case.run, step - 1)) != tensors(saved(case.run, step))]
    return f"bad steps {moved} moved something" if moved else None
