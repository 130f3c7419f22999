"""`python -m yxanul.benchmark group=choice key=value ...`: how fast the composed run is on this machine.

Measures the machine's ceilings, then real training steps of every stage: speed, utilization, where the time goes,
memory, compilation. Needs neither data nor tokenizer: the tokens are random. Further compositions are measured in
turns with the first, so that ratios hold on a noisy machine; each is a string of overrides on top of it, and the
shell needs quotes around the list:

    python -m yxanul.benchmark model=nano tokenizer=superbpe8k "compare=['precision=fp32','hardware.compile=true']"
"""

import shlex
import sys
from dataclasses import asdict
from datetime import UTC, datetime

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from yxanul import cli
from yxanul.composition import parse
from yxanul.config import BenchmarkConfig
from yxanul.errors import ConfigError, UserError
from yxanul.validation import validate


def benchmark(config: BenchmarkConfig) -> int:
    import tempfile
    from pathlib import Path

    from rich.console import Console

    from yxanul.benchmarking.measure import measure
    from yxanul.composition import to_plain
    from yxanul.files import atomic_path, output_folder, write_json
    from yxanul.reporting.benchmark_table import benchmark_page, benchmark_tables

    if config.rounds < 1:
        raise ConfigError("rounds", config.rounds, "must be at least 1")
    compositions = {"base": config} | {overrides: compose(overrides, config) for overrides in config.compare}
    folder = output_folder(config.output)
    console = Console(markup=False, emoji=False)
    now = datetime.now(UTC)
    command = shlex.join(["python", "-m", "yxanul.benchmark", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as tokens, console.status("") as status:
        found = measure(
            compositions, config.rounds, Path(tokens), command, now.isoformat(timespec="seconds"), status.update
        )
    console.print(benchmark_tables(found))
    record = folder / f"benchmark-{now:%Y%m%d-%H%M%S}.json"
    write_json(record, asdict(found) | {"configs": [to_plain(each) for each in compositions.values()]})
    with atomic_path(record.with_suffix(".html")) as path:
        path.write_text(benchmark_page(found), encoding="utf-8")
    console.print(f"\nwritten:\n  {record}\n  {record.with_suffix('.html')}", highlight=False, soft_wrap=True)
    return 0


def compose(overrides: str, base: BenchmarkConfig) -> BenchmarkConfig:
    """The composition of the command line with `overrides`, separated by spaces, in place of what they name.

    Raises:
        UserError: it cannot be composed, or is for another device.
    """
    changes = shlex.split(overrides)
    changed = {change.partition("=")[0].lstrip("+~") for change in changes}
    kept = [each for each in HydraConfig.get().overrides.task if each.partition("=")[0].lstrip("+~") not in changed]
    try:
        config = parse(hydra.compose("benchmark", overrides=[*kept, *changes]), BenchmarkConfig)
        validate(config)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        raise UserError(f"compare={overrides}: {cli.explain(error, BenchmarkConfig)}") from error
    if config.hardware.device is not base.hardware.device:
        raise UserError(f"compare={overrides}: is for another device; ratios hold on one alone")
    return config


if __name__ == "__main__":
    sys.exit(cli.run(benchmark, "benchmark", BenchmarkConfig))
