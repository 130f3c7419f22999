"""What the machine has: software, GPUs, processor, compilers, libraries, FP8. Nothing here is a problem in itself."""

import importlib.metadata
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import torch

from yxanul import __version__, hardware
from yxanul.diagnosis.composed import Run
from yxanul.diagnosis.findings import BROKEN, Row, State, first_line, known
from yxanul.errors import ConfigError
from yxanul.kernels import compiles, find_compiler
from yxanul.precision import support

LIBRARIES = {
    "Triton": "triton",
    "Transformer Engine": "transformer-engine",
    "flash-attn": "flash-attn",
    "torchao": "torchao",
    "Liger": "liger-kernel",
}
"""What a GPU may use beside torch: name -> distribution."""

ANSWER_SECONDS = 10
"""For nvidia-smi."""


def _software(run: Run) -> Iterator[Row]:
    yield "yxanul", State.ok, f"{__version__} on Python {platform.python_version()}, {platform.platform()}"
    cuda = torch.version.cuda
    yield "torch", State.ok, f"{torch.__version__}, {f'built for CUDA {cuda}' if cuda else 'built without CUDA'}"


def _gpus(run: Run) -> Iterator[Row]:
    """The machine's, whether the run uses them or not: nothing about them is a problem in itself."""
    reason = _why_no_cuda()
    if reason:
        seen = ", ".join(_nvidia_smi("name"))
        advice = f"; nvidia-smi sees {seen}: install a torch and a driver that fit each other" if seen else ""
        yield "CUDA", State.info, f"no GPU that torch can use ({reason}){advice}"
        return
    for index in range(torch.cuda.device_count()):
        try:
            gpu = torch.cuda.get_device_properties(index)
        except BROKEN as error:
            yield f"cuda:{index}", State.info, f"does not answer ({first_line(error)})"
            continue
        memory = f"{gpu.total_memory / 2**30:.1f} GiB"
        yield f"cuda:{index}", State.ok, f"{gpu.name}, compute capability {gpu.major}.{gpu.minor}, {memory}"
    driver = _nvidia_smi("driver_version")
    yield "driver", known(bool(driver)), driver[0] if driver else "not known: nvidia-smi does not answer"


def _why_no_cuda() -> str | None:
    """Why torch can use no GPU, in its own words; None if it can."""
    try:
        torch.cuda.init()
    except BROKEN as error:
        return first_line(error)
    return None if torch.cuda.is_available() else "none found"


def _nvidia_smi(field: str) -> list[str]:
    """A field of every GPU; none where there is no such program, or it fails."""
    ask = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()


def _processor(run: Run) -> Iterator[Row]:
    memory = hardware.memory_bytes(replace(run.config.hardware, memory_gb=None), torch.device("cpu"))
    cores = f"{os.cpu_count()} cores, of which torch uses {torch.get_num_threads()}"
    yield "processor", State.ok, f"{hardware.processor()}, {memory / 2**30:.1f} GiB, {cores}"
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if torch.cpu.get_capabilities().get(unit)]
    yield "bf16 units", known(bool(units)), ", ".join(units) or "none"


def _compilers(run: Run) -> Iterator[Row]:
    compiler = find_compiler(torch.device("cpu"))
    yield "C++ compiler", known(compiler is not None), compiler or "none"
    compiled = compiles(run.config.hardware, run.device)
    yield "torch.compile", State.ok, f"the layers would be {'compiled' if compiled else 'left as they are'}"


def _libraries(run: Run) -> Iterator[Row]:
    for name, distribution in LIBRARIES.items():
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            yield name, State.info, "not installed"
            continue
        missing = support.transformer_engine_missing() if distribution == "transformer-engine" else None
        yield name, known(missing is None), f"{version}; {missing}" if missing else version


def _fp8(run: Run) -> Iterator[Row]:
    machine = support.machine(run.device, run.config.hardware.compute_capability)
    for backend, recipes in support.RECIPES.items():
        by_reason = defaultdict(list)
        for recipe in recipes:
            by_reason[support.why_not(backend, recipe, machine)].append(recipe.value)
        for reason, names in by_reason.items():
            words = f"{', '.join(names)}: {reason or ('can run' if machine.here else 'could run')}"
            yield support.NAMES[backend], known(reason is None), words
    try:
        choice = support.choose(replace(run.config.precision, fp8=True), machine)
    except ConfigError as error:  # a problem only of a run in FP8; its precision says so
        yield "precision=fp8", State.info, f"would not start: {error}"
        return
    words = f"would compute without FP8: {choice}" if isinstance(choice, str) else f"would compute in {choice}"
    yield "precision=fp8", known(not isinstance(choice, str)), words


PROBES = (
    ("software", _software),
    ("GPU", _gpus),
    ("CPU", _processor),
    ("compilation", _compilers),
    ("libraries", _libraries),
    ("FP8", _fp8),
)
"""Topic and probe, in the order in which they are told."""
