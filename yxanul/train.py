"""`python -m yxanul.train group=choice key=value ...`: train the composed run, or go on with it.

The same command is the same run: started again it resumes from its last checkpoint, or says that it is
finished. `python -m yxanul.train --help` lists the groups and keys.
"""

import sys
import time

from yxanul import cli
from yxanul.config import Config


def train(config: Config) -> int:
    began = time.perf_counter()  # before torch is imported
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from yxanul.training.run import train_run

    folder = Path(HydraConfig.get().runtime.output_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    return train_run(config, folder, Console(markup=False, emoji=False), began)


if __name__ == "__main__":
    sys.exit(cli.run(train, "train"))
