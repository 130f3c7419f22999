"""`python -m yxanul.doctor group=choice key=value ...`: what this machine can do, and whether the run could start here.

Looks at the GPU, the processor, the libraries, FP8, the data, the tokenizer, the disk and the tracker as the
composed run would. Takes the same overrides as `yxanul.train`; asks no network and leaves nothing behind. The exit
status is 1 if something would stop the run from starting.
"""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig

from yxanul import cli
from yxanul.config import Config


def doctor(config: Config) -> int:
    from rich.console import Console

    from yxanul.diagnosis.diagnose import diagnose
    from yxanul.diagnosis.findings import problems
    from yxanul.reporting.doctor_table import doctor_table, verdict

    findings = diagnose(config, run_folder())
    console = Console(markup=False, emoji=False)
    console.print(doctor_table(findings))
    console.print(verdict(findings), highlight=False, soft_wrap=True)
    return 1 if problems(findings) else 0


def run_folder() -> Path:
    """Where `yxanul.train` would write with the same overrides."""
    given = HydraConfig.get().overrides
    composed = hydra.compose("train", overrides=[*given.hydra, *given.task], return_hydra_config=True)
    return Path(composed.hydra.run.dir)


if __name__ == "__main__":
    sys.exit(cli.run(doctor, "doctor"))
