"""`python -m yxanul.plan group=choice key=value ...`: what the composed run would do, before it does it.

Prints the stages with their steps, tokens, bytes of text, learning rates, memory and predicted time, and for
several GPUs (`hardware.nodes`, `hardware.gpus_per_node`) how many pay. Takes the same overrides as
`yxanul.train`; reads no data and writes nothing. A GPU that is not here can be planned for: `hardware=h100`.
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
    from yxanul.reporting.scaling_table import scaling_table
    from yxanul.scaling import plan_scaling

    device = hardware.planned_device(config.hardware.device)
    precision = build_precision(config.precision, device, config.hardware.compute_capability)
    devices = config.hardware.nodes * config.hardware.gpus_per_node
    planned, console = make_plan(config, device, precision, devices), Console(markup=False, emoji=False)
    console.print(plan_table(planned))
    if devices > 1:
        console.print(scaling_table(plan_scaling(config, device, precision, planned)))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(plan, "plan"))
