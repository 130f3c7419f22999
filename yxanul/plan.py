"""`python -m yxanul.plan group=choice key=value ...`: what the composed run would do, before it does it.

Prints the stages with their steps, tokens, bytes of text, learning rates, memory and predicted time. Takes
the same overrides as `yxanul.train`; reads no data and writes nothing. A GPU that is not here can be planned
for: `hardware=h100`.
"""

import sys

from yxanul import cli
from yxanul.config import Config


def plan(config: Config) -> int:
    from rich.console import Console

    from yxanul import hardware
    from yxanul.planning import make_plan
    from yxanul.precision.linear import build_precision
    from yxanul.reporting.plan_table import plan_table

    device = hardware.planned_device(config.hardware.device)
    precision = build_precision(config.precision, device, config.hardware.compute_capability)
    devices = config.hardware.nodes * config.hardware.gpus_per_node
    Console().print(plan_table(make_plan(config, device, precision, devices)))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(plan, "plan"))
