"""What the faults' verdicts are worth, and the script that counts them."""

import hashlib
import json
import runpy
import signal
from random import Random

import pytest

from . import registry, trial
from .bench import ROOT, Ended
from .registry import FAULTS, Outcome, attempt
from .same import saved
from .trial import Case, Verdict


@pytest.fixture
def case(bench, tmp_path) -> Case:
    """A trial of its own, of a run that is not finished."""
    made = Case(bench, tmp_path, 0, Random(0))
    bench.unfinished(made.run, bench.saved[-2])
    return made


def test_another_end_is_lost(case):
    """Weights that were changed so that their hash fits."""
    newest = saved(case.run, case.bench.saved[-2])
    weights = newest / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    hashes = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(hashes | {weights.name: hashlib.sha256(content).hexdigest()}))
    assert case.judge(case.train()) == Verdict(Outcome.lost, "another record than undisturbed")


@pytest.mark.parametrize(
    "ended",
    [
        Ended(1, "", "Traceback (most recent call last):\nKeyError: 'data'\n", 1.0),
        Ended(1, "", "", 1.0),
        Ended(-signal.SIGKILL, "", "", 300.0),
    ],
)
def test_an_end_without_one_clear_line_is_lost(case, ended):
    assert case.judge(ended).outcome is Outcome.lost


def test_a_stop_that_harmed_an_earlier_checkpoint_is_lost(case):
    (saved(case.run, case.bench.saved[-3]) / "state.json").write_text("{}")
    verdict = case.judge(Ended(1, "", "error: of one line\n", 1.0))
    assert verdict.outcome is Outcome.lost and "state.json is damaged" in verdict.says


def test_a_stop_that_goes_on_when_mended_is_no_loss(case):
    (case.run / "file").touch()
    verdict = case.judge(case.train(f"data.cache={case.run}/file"), again=case.train)
    assert verdict.outcome is Outcome.stopped and "cannot be made" in verdict.says


# The script


def test_the_script_counts_and_fails_if_anything_is_lost(monkeypatch, tmp_path, capsys):
    verdicts = {number: Verdict(outcome, f"trial {number}") for number, outcome in enumerate(Outcome)}
    for module in (registry, trial):
        monkeypatch.setattr(module, "FAULTS", {"sham-all": lambda case: verdicts[case.number]})
    main = runpy.run_path(str(ROOT / "scripts" / "faults.py"))["main"]
    found = {}
    for number, status in {0: 0, 1: 0, 2: 1, 3: 0}.items():
        file = tmp_path / f"{number}.json"
        monkeypatch.setattr("sys.argv", ["faults.py", "--only=sham", f"--number={number}", f"--json={file}"])
        assert main() == status
        found[number] = json.loads(file.read_text())
    assert [record["trials"][0]["outcome"] for record in found.values()] == [outcome.value for outcome in Outcome]
    assert found[2]["counts"] == {"sham-all": {"recovered": 0, "stopped": 0, "lost": 1, "skipped": 0}}
    assert found[2]["command"].startswith("python faults.py --only=sham") and "torch" in found[2]["versions"]
    assert "sham-all, trial 2: LOST: trial 2" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["faults.py", "--only=none"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--only none: there are sham-all" in capsys.readouterr().err


def test_trials_of_a_number_are_the_same(bench, monkeypatch):
    """What chance decides is decided by the number, and by the seed."""
    monkeypatch.setitem(FAULTS, "sham", lambda case: Verdict(Outcome.recovered, str(case.random.random())))
    said = [attempt("sham", number, seed, bench).says for number, seed in ((0, 1), (0, 1), (1, 1), (0, 2))]
    assert said[0] == said[1] and len(set(said)) == 3
