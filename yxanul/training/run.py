"""One run from configuration to result: make what it needs, resume where it was, train, and say what came out."""

import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import yaml
from rich.console import Console

from yxanul import hardware
from yxanul.composition import first_difference, identity, to_plain
from yxanul.config import Config, Parallel, WandbMode
from yxanul.data.ngrams import counted_documents
from yxanul.data.stream import Stream
from yxanul.errors import ConfigError, LostProcess, UserError
from yxanul.files import atomic_path, locked, read_record, remove_temporaries, write_json
from yxanul.kernels import attention_of
from yxanul.model import count
from yxanul.model.transformer import Transformer
from yxanul.optim.build import build_optimizers
from yxanul.planning import RunPlan, make_plan
from yxanul.precision.linear import Precision, build_precision
from yxanul.reporting.plan_table import plan_table
from yxanul.reporting.result_table import result_table, written
from yxanul.tracking import (
    BackgroundSink,
    ConsoleSink,
    Record,
    SafeSink,
    StartRow,
    TensorBoardSink,
    Tracker,
    WandbSink,
    read_rows,
    wandb_mode,
)
from yxanul.training import checkpoint
from yxanul.training.checkpoint import Saver, TrainState
from yxanul.training.distributed import ToldElsewhere, World, joined
from yxanul.training.evaluation import Score, evaluate
from yxanul.training.guard import Guard
from yxanul.training.initial import begin_with
from yxanul.training.loop import Trainer
from yxanul.training.parallel import shard
from yxanul.training.result import sample_texts, write_result
from yxanul.training.room import room_for_checkpoints
from yxanul.training.setup import build_model
from yxanul.training.signals import stop_on_signals
from yxanul.training.text import Text, keep_text, read_text
from yxanul.training.watch import Watch
from yxanul.training.watchdog import Watchdog

log = logging.getLogger(__name__)


def train_run(config: Config, folder: Path, console: Console, began: float) -> int:
    """Train the run that lives in `folder`, from its last checkpoint if it has one, with the processes that there are.

    Args:
        began: when the command did, by time.perf_counter.

    Returns:
        The exit status: 0 when the run is finished, 128 + the signal's number when it was asked to stop, that of
        LostProcess on a process that leaves because the first has an error to tell.

    Raises:
        UserError: the data, the tokenizer, a checkpoint or the device cannot be used, or the folder holds
            another run.
    """
    hardware.set_deterministic(config.hardware.deterministic)
    device = hardware.select_device(config.hardware.device)
    try:
        with joined(device) as world:
            console = console if world.first else Console(quiet=True)
            return _train_together(config, folder, device, world, console, began)
    except ToldElsewhere:
        return LostProcess.status


def _train_together(
    config: Config, folder: Path, device: torch.device, world: World, console: Console, began: float
) -> int:
    with ExitStack() as stack:
        if world.from_first(lambda: _finished_or_ours(config, folder, world, stack, console)):
            return 0
        return _train(config, folder, device, world, console, began)


def _finished_or_ours(config: Config, folder: Path, world: World, stack: ExitStack, console: Console) -> bool:
    """Whether there is nothing left to do; else the folder is held until `stack` is closed."""
    _refuse_another_run(config, folder)
    result_file = folder / "result.json"
    if result_file.exists():
        result = read_record(result_file, "remove it to have it made again", ["bits_per_byte"])
        console.print(
            f"{folder} is finished: {result['bits_per_byte']:.4f} bits per byte; see {result_file}",
            soft_wrap=True,
        )
        return True
    _refuse_another_number(config, world)
    stack.enter_context(run_lock(folder))
    for place in (folder, folder / "checkpoints"):
        remove_temporaries(place)
    return False


def _refuse_another_number(config: Config, world: World) -> None:
    """A run for which several GPUs are named does not begin on one because its launcher was forgotten."""
    nodes, gpus = config.hardware.nodes, config.hardware.gpus_per_node
    if nodes * gpus not in (1, world.size):
        raise ConfigError(
            "hardware.gpus_per_node",
            gpus,
            f"with hardware.nodes={nodes} asks for {nodes * gpus} processes, and there are {world.size}; "
            "start one a GPU by torchrun or srun, or leave both keys at 1",
        )


def _refuse_another_run(config: Config, folder: Path) -> None:
    """A folder that the user names (hydra.run.dir) may hold a run of other settings; nothing is mixed into it."""
    try:
        there = read_record(folder / "config.yaml", "remove it to go on with this run", ["data", "hardware"])
    except (FileNotFoundError, NotADirectoryError):
        return
    free = {"hardware": None, "resume_from_checkpoint": None}  # a run may move to another device
    difference = first_difference(identity(to_plain(config)) | free, identity(there) | free)
    if difference:
        key, ours, theirs = difference
        raise UserError(
            f"{key}={ours}: {folder} holds a run with {key}={theirs} (its config.yaml); choose another hydra.run.dir, "
            "and resume_from_checkpoint to go on from its weights"
        )


def _train(config: Config, folder: Path, device: torch.device, world: World, console: Console, began: float) -> int:
    hardware.keep_freed_memory(device)
    precision = build_precision(config.precision, device, config.hardware.compute_capability)
    plan = world.from_first(lambda: make_plan(config, device, precision, world.size))  # it may be timed: one for all
    console.print(plan_table(plan))
    world.from_first(lambda: room_for_checkpoints(config, folder, len(plan.steps)))
    text = world.after_first(lambda: read_text(config, console))
    stream = Stream(text.corpus, config.seed, text.tokenizer.byte_lengths, counted_documents(text.corpus, config.ngram))
    _say_epochs(plan, stream, console)

    model = _model(config, plan, precision, device, text, world)
    attention = attention_of(plan.kernels, device, precision.dtype)
    optimizers = build_optimizers(model, config.optimizer, precision.dtype)
    state = world.after_first(lambda: _resume(config, folder, plan, model, optimizers, text, console))
    if state != world.from_first(lambda: state):
        raise UserError(f"{folder}: process {world.rank} does not find the checkpoint of process 0; share the folder")
    if world.first:
        _keep(config, plan, text, folder)
    tracker = _tracker(config, folder, plan, state, console) if world.first else Tracker(None, [])
    watch = Watch(model, config.precision, plan.products, plan.fp8)
    watch.leave_fp8(state.left_fp8)
    watchdog = Watchdog(config.tracking.stall_seconds, folder / f"stalls-{world.rank}.txt")
    saver = Saver(folder / "checkpoints", config.checkpoint.keep, world)
    trainer = Trainer(
        model=model,
        optimizers=optimizers,
        stream=stream,
        steps=plan.steps,
        device=device,
        attention_of=attention,
        tracker=tracker,
        saver=saver,
        save_every=config.checkpoint.every,
        evaluate_every=config.evaluate.every,
        score=lambda: evaluate(model, text.held_out, device, attention(text.held_out.context)),
        eval_bytes=text.held_out.bytes,
        flops_per_token=partial(count.training_flops_per_token, config.model, config.tokenizer.vocab_size),
        peak_flops=None if plan.emulated else plan.peak_flops,
        guard=Guard(config.train.on_spike, config.train.max_bad_steps),
        at=watchdog.at,
        watch=watch,
        world=world,
        warm=plan.kernels.compiled or device.type == "cuda",
    )
    tracker.log(_start_row(state, text, time.perf_counter() - began))
    result = None
    try:
        with stop_on_signals() as stop, watchdog:
            state, score = trainer.train(state, stop)
        if state.step == len(plan.steps):
            score = score or _late_score(trainer, state, folder)
            samples = sample_texts(config, text, model, world)
            result = world.from_first(lambda: write_result(folder, plan, text, trainer, state, score, samples))
    finally:
        saver.close()
        tracker.close(result)
    if result is None:
        return _stopped(stop.signal, state, plan, folder, console)
    console.print(result_table(result))
    console.print(written(result, folder), highlight=False, soft_wrap=True)
    return 0


def _model(
    config: Config, plan: RunPlan, precision: Precision, device: torch.device, text: Text, world: World
) -> Transformer:
    """The model at its beginning, or at that which the user names, shared out if it is to be."""
    model = build_model(config, plan, precision, device, text.ngrams)
    if config.init_from is not None:
        begin_with(Path(config.init_from).expanduser(), config, model, text.tokenizer)
    if world.size > 1 and config.hardware.parallel is Parallel.fsdp:
        shard(model, device, world)
    return model


def _keep(config: Config, plan: RunPlan, text: Text, folder: Path) -> None:
    """Write down what the run is, before its first step."""
    with atomic_path(folder / "config.yaml") as path:
        path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False))
    keep_text(text, config, folder)
    write_json(folder / "plan.json", plan.record() | {"corpus": text.corpus.record()})


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the run's folder, so that two processes cannot write one run.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            ours = stack.enter_context(locked(folder / ".lock", wait=False))
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); choose another with hydra.run.dir=DIR"
            ) from error
        if not ours:
            raise UserError(f"{folder}: another process is training this run; wait for it, or change the seed")
        yield


def _say_epochs(plan: RunPlan, stream: Stream, console: Console) -> None:
    epochs = sum(step.tokens for step in plan.steps) / stream.tokens_per_epoch
    if epochs > 1:
        console.print(f"the budget reads the data {epochs:.2f} times", style="yellow")


def _resume(
    config: Config,
    folder: Path,
    plan: RunPlan,
    model: Transformer,
    optimizers: Sequence[torch.optim.Optimizer],
    text: Text,
    console: Console,
) -> TrainState:
    """The state to go on from: the run's own newest checkpoint, else the one that is named, else the beginning."""
    fresh = TrainState(corpus=text.corpus.fingerprint, tokenizer=text.tokenizer.fingerprint)
    own = checkpoint.checkpoints(folder / "checkpoints")
    if not own and config.resume_from_checkpoint is None:
        return fresh
    path = own[-1] if own else Path(config.resume_from_checkpoint).expanduser()
    state = checkpoint.load(path, model, optimizers)
    if state.tokenizer != fresh.tokenizer:
        raise UserError(f"{path}: was trained with another tokenizer; compose the same one")
    if state.corpus != fresh.corpus:
        if own:
            raise UserError(f"{path}: the data has changed since; put it back, or start a new run by another seed")
        log.warning("%s was trained on other data", path)
    if state.step > len(plan.steps):
        raise UserError(f"{path}: is at step {state.step}, beyond the plan's {len(plan.steps)}; raise train.tokens")
    console.print(f"resuming from {path} at step {state.step}", soft_wrap=True)
    return replace(state, corpus=fresh.corpus)


def _tracker(config: Config, folder: Path, plan: RunPlan, state: TrainState, console: Console) -> Tracker:
    record = Record(folder / "metrics.jsonl")
    record.truncate_after(state.step)
    tracking = config.tracking
    tokens, stages = sum(step.tokens for step in plan.steps), len(config.curriculum.stages)
    sinks = [
        SafeSink(
            "console",
            partial(ConsoleSink, tokens, len(plan.steps), stages, tracking.log_every, console),
        )
    ]
    if tracking.tensorboard:
        build = partial(TensorBoardSink, folder / "tensorboard", state.step + 1)
        sinks.append(SafeSink("tensorboard", partial(BackgroundSink, build)))
    mode = wandb_mode(tracking.wandb.mode.value, os.environ)
    if mode != WandbMode.disabled.value:
        build = partial(
            WandbSink,
            folder,
            run_id=folder.name,
            name=folder.name,
            config=to_plain(config),
            mode=mode,
            project=tracking.wandb.project,
        )
        sinks.append(SafeSink("wandb", partial(BackgroundSink, build)))
    return Tracker(record, sinks)


def _start_row(state: TrainState, text: Text, seconds: float) -> StartRow:
    """What a start took, of which `seconds` have passed."""
    return StartRow(
        kind="start",
        step=state.step,
        start_up_seconds=seconds - text.preparing_seconds,
        preparation_seconds=text.preparation_seconds,
        held_out=text.held_out.name,
    )


def _late_score(trainer: Trainer, state: TrainState, folder: Path) -> Score:
    """The last evaluation of a run that was killed after its last checkpoint; its row may be recorded already."""

    def recorded() -> bool:
        rows = read_rows(folder / "metrics.jsonl")
        return any(row["kind"] == "eval" and row["step"] == state.step for row in rows)

    return trainer.score() if trainer.world.from_first(recorded) else trainer.evaluate(state)


def _stopped(number: signal.Signals | None, state: TrainState, plan: RunPlan, folder: Path, console: Console) -> int:
    console.print(
        f"stopped by {number.name} at step {state.step} of {len(plan.steps)}; "
        f"the same command goes on from {folder / 'checkpoints'}",
        soft_wrap=True,
    )
    return 128 + number
