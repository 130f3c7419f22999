"""`python -m yxanul.inspect_data group=choice key=value ...`: what a run would read.

Says what the data holds (files, tokens, lengths, duplicates, what was skipped), what each stage of the
curriculum cuts from it, and shows the first sequences of one: `stage=3 sequences=8`. Takes the same overrides as
`yxanul.train`, and prepares what is missing as that does.
"""

import sys

from yxanul import cli
from yxanul.config import InspectConfig


def inspect_data(config: InspectConfig) -> int:
    from rich.console import Console

    from yxanul.data.inspection import inspect, plan_stages
    from yxanul.data.preparation import whole_text
    from yxanul.reporting.data_table import corpus_overview, inspection_tables

    stages = plan_stages(config)
    console = Console(markup=False, emoji=False)
    tokenizer, corpus = whole_text(config.data, config.tokenizer, console)
    console.print(corpus_overview(config.data, tokenizer, corpus), highlight=False, markup=False, soft_wrap=True)
    console.print(inspection_tables(inspect(corpus, tokenizer, config, stages), tokenizer))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(inspect_data, "inspect_data", InspectConfig))
