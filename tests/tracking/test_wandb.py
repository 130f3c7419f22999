import sys
from functools import partial
from types import SimpleNamespace

import pytest

from yxanul.tracking import BackgroundSink, WandbSink, wandb_mode


@pytest.mark.parametrize(
    ("configured", "environ", "mode"),
    [
        ("auto", {"WANDB_API_KEY": "x"}, "online"),
        ("auto", {"WANDB_API_KEY": ""}, "disabled"),
        ("auto", {}, "disabled"),
        (None, {}, "disabled"),
        (None, {"WANDB_API_KEY": "x"}, "online"),
        ("online", {}, "online"),
        ("offline", {"WANDB_API_KEY": "x"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "x"}, "disabled"),
    ],
)
def test_mode(configured, environ, mode):
    assert wandb_mode(configured, environ) == mode


def test_an_unknown_mode_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match="'off' is none of auto, online, offline, disabled"):
        wandb_mode("off", {})


class FakeRun:
    """A wandb run that remembers what it is sent."""

    url = "https://wandb.test/run"

    def __init__(self, summary: dict) -> None:
        self.summary = summary
        self.axes: dict[str, str | None] = {}
        self.history: list[dict] = []
        self.exit_code: int | None = None

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, values):
        self.history.append(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def fake(monkeypatch):
    """A module in wandb's place. `fake.run` is what its init returns, `fake.init_with` its call."""
    fake = SimpleNamespace(run=FakeRun({}), Settings=lambda **settings: settings)

    def init(**arguments):
        fake.init_with = arguments
        return fake.run

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def sink(directory, run_id: str = "id1", mode: str = "online") -> WandbSink:
    return WandbSink(directory, run_id=run_id, name="tiny", config={"seed": 1}, mode=mode, project="yxanul")


def test_the_axis_is_the_optimizer_step(fake, tmp_path):
    online = sink(tmp_path)
    online.log({"kind": "train", "step": 7, "loss": 2.0, "mfu": None})
    online.log({"kind": "event", "step": 7, "message": "saved"})
    online.close({"bits_per_byte": 1.0})
    assert fake.init_with["resume"] == "allow" and fake.init_with["id"] == "id1"
    assert fake.run.axes == {
        "step": None,
        "start/*": "step",
        "train/*": "step",
        "eval/*": "step",
        "precision/*": "step",
    }
    assert fake.run.history == [
        {"step": 7, "train/step": 7, "train/loss": 2.0},
        {"step": 7, "event": "saved"},
    ]
    assert fake.run.summary == {"bits_per_byte": 1.0} and fake.run.exit_code == 0


def test_a_resumed_run_sends_no_row_twice(fake, tmp_path):
    fake.run = FakeRun({"train/step": 12, "eval/step": 10})
    resumed = sink(tmp_path)
    for step in (10, 11, 12, 13):
        resumed.log({"kind": "train", "step": step, "loss": 1.0})
    for step in (10, 12):
        resumed.log({"kind": "eval", "step": step, "bits_per_byte": 1.0})
    resumed.close(None)
    assert [row.get("train/step") or row["eval/step"] for row in fake.run.history] == [13, 12]
    assert fake.run.exit_code == 1


@pytest.fixture
def wandb(monkeypatch):
    """The real wandb, if its service can start on this machine."""
    wandb = pytest.importorskip("wandb", reason="wandb is an optional sink")
    # A stranger's own settings must not steer the test.
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    try:
        wandb.setup()
    except Exception as error:
        pytest.skip(f"the wandb service cannot start here: {error}")
    yield wandb
    wandb.teardown()


def test_offline_runs_are_written_each_to_its_own_directory(wandb, tmp_path, capfd):
    """Two at once in one process, each in a thread: what a sweep meets after a job whose sink was dropped."""
    run_ids = ["id1", "id2"]
    sinks = [BackgroundSink(partial(sink, tmp_path / run_id, run_id, mode="offline")) for run_id in run_ids]
    for offline in sinks:
        for step in range(1, 4):
            offline.log({"kind": "train", "step": step, "loss": 2.0})
        offline.log({"kind": "eval", "step": 3, "bits_per_byte": 1.0})
        offline.close({"gzip_bits_per_byte": 2.5})
    wandb.teardown()  # its service writes the last of an offline run after finish() has returned
    for run_id in run_ids:
        [written] = (tmp_path / run_id).glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb")
        for name in (b"train/loss", b"eval/bits_per_byte", b"gzip_bits_per_byte", b"seed"):
            assert name in written.read_bytes()
    assert capfd.readouterr() == ("", "")
