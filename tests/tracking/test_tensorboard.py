import pytest

pytest.importorskip("tensorboard", reason="tensorboard is an optional sink")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from yxanul.tracking import TensorBoardSink


def log_steps(directory, steps: range, loss: float) -> None:
    sink = TensorBoardSink(directory, purge_step=steps.start)
    for step in steps:
        sink.log({"kind": "train", "step": step, "loss": loss, "mfu": None})
        if step % 5 == 0:
            sink.log({"kind": "eval", "step": step, "bits_per_byte": loss / 2})
    sink.log({"kind": "event", "step": steps[-1], "message": "saved"})
    sink.close(None)


def read(directory) -> EventAccumulator:
    events = EventAccumulator(str(directory))
    events.Reload()
    return events


def series(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_rows_are_readable_by_step(tmp_path):
    log_steps(tmp_path, range(1, 11), loss=2.0)
    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == ["eval/bits_per_byte", "train/loss"]
    assert series(events, "train/loss") == [(step, 2.0) for step in range(1, 11)]
    assert series(events, "eval/bits_per_byte") == [(5, 1.0), (10, 1.0)]
    [text] = events.Tensors("event/text_summary")
    assert text.step == 10 and text.tensor_proto.string_val == [b"saved"]


def test_a_resumed_run_purges_the_steps_that_it_repeats(tmp_path):
    log_steps(tmp_path, range(1, 11), loss=2.0)
    log_steps(tmp_path, range(7, 13), loss=1.0)
    assert series(read(tmp_path), "train/loss") == [(step, 2.0) for step in range(1, 7)] + [
        (step, 1.0) for step in range(7, 13)
    ]
    assert series(read(tmp_path), "eval/bits_per_byte") == [(5, 1.0), (10, 0.5)]
