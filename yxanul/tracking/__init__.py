"""What a run says of itself while it trains.

`metrics.jsonl` is the record: every figure that a report or a claim rests on is read from it, so
a row that cannot be written stops the run. Console, TensorBoard and wandb are sinks: they show
the same rows to people, and one that fails is dropped with a warning while the run goes on. Those
that may hang, on a network or a disk, work in the background.

    tracker = Tracker(
        Record(run / "metrics.jsonl"),
        [
            SafeSink("console", partial(ConsoleSink, ...)),
            SafeSink("tensorboard", partial(BackgroundSink, partial(TensorBoardSink, ...))),
        ],
    )
    tracker.log(TrainRow(kind="train", step=1, ...))
    tracker.close(summary)
"""

from yxanul.tracking.background import BackgroundSink
from yxanul.tracking.console import ConsoleSink
from yxanul.tracking.record import Record, read_rows
from yxanul.tracking.rows import EvalRow, EventRow, PrecisionRow, Row, StartRow, TrainRow
from yxanul.tracking.sink import SafeSink, Sink
from yxanul.tracking.tensorboard import TensorBoardSink
from yxanul.tracking.tracker import Tracker
from yxanul.tracking.wandb import WandbSink, wandb_mode

__all__ = [
    "BackgroundSink",
    "ConsoleSink",
    "EvalRow",
    "EventRow",
    "PrecisionRow",
    "Record",
    "Row",
    "SafeSink",
    "Sink",
    "StartRow",
    "TensorBoardSink",
    "Tracker",
    "TrainRow",
    "WandbSink",
    "read_rows",
    "wandb_mode",
]
