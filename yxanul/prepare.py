"""`python -m yxanul.prepare group=choice key=value ...`: the data and the tokenizer of a run, made ready for it.

Takes the same overrides as `yxanul.train`, which prepares by itself what is missing; this command does it
beforehand. Downloads the data if its path is missing, trains the tokenizer if it is one that is trained, and
tokenizes with all cores. Stopped and started again it does what is missing. Several machines that see the cache
share the files: `--multirun data.part=0,1,2,3 data.parts=4`, or one command a machine.
"""

import sys

from yxanul import cli
from yxanul.config import Config


def prepare(config: Config) -> int:
    from rich.console import Console

    from yxanul.data.preparation import prepare_text
    from yxanul.reporting.data_table import corpus_summary

    console = Console(markup=False, emoji=False)
    tokenizer, corpus = prepare_text(config.data, config.tokenizer, console)
    console.print(corpus_summary(tokenizer, corpus), highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(prepare, "prepare"))
