"""How a process writes its share of a checkpoint: a file for each part, straight from the tensors.

The library's own writer assembles a file in memory first, and again as bytes, which takes over ten times as long as
writing it and stops the training meanwhile. Imported only where something is saved, for that takes most of a second.
"""

import json
from collections import defaultdict
from pathlib import Path

import safetensors.torch
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    FORMAT_KEY,
    FORMAT_VALUE,
    HF_DCP_VERSION,
    SAVED_OFFSETS_KEY,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future


class CheckpointWriter(HuggingFaceStorageWriter):
    """Writes `<part>.safetensors`, or `<part>-<process>.safetensors` where there are several processes.

    Args:
        folder: to write into; it is there.
        parts: name of a tensor -> the part that it belongs to.
        processes: that write a checkpoint together.
    """

    def __init__(self, folder: Path, parts: dict[str, str], processes: int):
        super().__init__(str(folder), save_distributed=True)
        self._folder, self._parts, self._processes = folder, parts, processes

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write what of the plan is this process's; files are synced by whoever makes a checkpoint of them."""
        items: dict[str, list[WriteItem]] = defaultdict(list)
        for item in plan.items:
            items[self._parts[item.index.fqn]].append(item)
        for part, its in items.items():
            process = "" if self._processes == 1 else f"-{plan.storage_data['shard_index']:05d}"
            tensors = {item.index.fqn: planner.resolve_data(item).contiguous() for item in its}
            safetensors.torch.save_file(tensors, self._folder / f"{part}{process}.safetensors", _metadata(its))
        written: Future[list[WriteResult]] = Future()
        written.set_result([])  # of which the library would make an index, that a reader of shares does without
        return written


def _metadata(items: list[WriteItem]) -> dict[str, str]:
    """What the library's reader finds the places of shares by."""
    offsets = {item.index.fqn: {SAVED_OFFSETS_KEY: item.tensor_data.chunk.offsets} for item in items}
    return {
        CUSTOM_METADATA_KEY: json.dumps(offsets),
        DCP_VERSION_KEY: str(HF_DCP_VERSION),
        FORMAT_KEY: FORMAT_VALUE,
    }
