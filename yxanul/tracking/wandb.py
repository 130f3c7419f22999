"""Rows as a wandb run.

wandb's own step only ever rises: it drops rows that a resumed run logs anew, and with them
whatever else came late. So that step is left to wandb as a mere count of rows, and every chart
gets the optimizer's step as its axis. A resumed online run is told by its summary how far it
came; train and eval rows up to there are the same rows again and are not sent twice. (Offline,
nothing is known of earlier processes: `wandb sync` may then show the repeated rows twice.)
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yxanul.tracking.rows import Row, scalars

logger = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
# wandb's own limits are 90 seconds, and none. Both together are less than what BackgroundSink waits at the end.
INIT_SECONDS = 20.0
FINISH_SECONDS = 30.0  # what is not sent by then stays on disk, for `wandb sync`
PLOTTED = ("start", "train", "eval", "precision")


def wandb_mode(configured: str | None, environ: Mapping[str, str]) -> str:
    """Settle "auto" (or None): online for whoever has set WANDB_API_KEY, else disabled.

    When the answer is "disabled", build no `WandbSink`.
    """
    mode = configured or "auto"
    if mode not in MODES:
        raise ValueError(f"wandb mode {mode!r} is none of {', '.join(MODES)}")
    if mode == "auto":
        return "online" if environ.get("WANDB_API_KEY") else "disabled"
    return mode


class WandbSink:
    """`run_id` must be born with the run's directory and kept in it.

    A new run under an old id would take the old one's rows for its own.
    """

    def __init__(
        self,
        directory: Path,
        run_id: str,
        name: str,
        config: dict[str, Any],
        mode: str,
        project: str,
    ) -> None:
        import wandb  # slow to import, and optional

        directory.mkdir(parents=True, exist_ok=True)  # else wandb writes to a temporary one
        self._run = wandb.init(
            id=run_id,
            name=name,
            config=config,
            project=project,
            dir=str(directory),
            mode=mode,
            resume="allow" if mode == "online" else None,
            # In a local sweep many runs share one process: never be handed another's run.
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )
        self._run.define_metric("step")
        for kind in PLOTTED:
            self._run.define_metric(f"{kind}/*", step_metric="step")
        self._sent = {kind: self._run.summary.get(f"{kind}/step", -1) for kind in PLOTTED}
        if mode == "online":
            logger.info("wandb: %s", self._run.url)

    def log(self, row: Row) -> None:
        kind, step = row["kind"], row["step"]
        if kind == "event":
            self._run.log({"step": step, "event": row["message"]})
        elif step > self._sent[kind]:
            self._run.log({"step": step, f"{kind}/step": step, **scalars(row)})

    def close(self, summary: Row | None) -> None:
        if summary is not None:
            self._run.summary.update(summary)
        self._run.finish(exit_code=0 if summary is not None else 1)
