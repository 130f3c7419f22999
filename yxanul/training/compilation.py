"""torch.compile for the layers, one graph for all of them whatever the sequence length.

A layer's part before attention and its part after it see flat tokens alone. Compiled once with the number of
tokens left open, they serve every layer, every stage and every row of the evaluation; attention between them
is a kernel of its own. `fullgraph` makes a graph break, and a recompile limit that is reached, an error
instead of a silent fall back to eager.
"""

import sys

import torch

from yxanul.model.transformer import Transformer


def compile_layers(model: Transformer) -> None:
    """Let torch.compile make the graphs of all layers, at their first calls."""
    # All models of a process share these functions' graphs, and each needs a few: with and without gradients, with and
    # without recomputation.
    torch._dynamo.config.recompile_limit = 64
    for block in model.blocks:
        block.before = torch.compile(block.before, fullgraph=True, dynamic=True)
        block.after = torch.compile(block.after, fullgraph=True, dynamic=True)


def graphs_compiled() -> int:
    """How many graphs torch.compile has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # it takes over a second to import, and eager runs do without
    return dynamo.counters["stats"]["unique_graphs"] if dynamo else 0
