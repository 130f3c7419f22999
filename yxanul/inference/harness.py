"""Models asked by EleutherAI's lm-evaluation-harness, on its tasks or on tasks of one's own.

Needs the extra `eval`, and is imported only where the harness is asked for.
"""

import contextlib
import io
import logging
import numbers
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial, reduce
from itertools import islice
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks.manager import TaskDict, TaskManager
from rich.console import Console
from rich.progress import track
from torch import Tensor

from yxanul.errors import UserError
from yxanul.inference.foreign import OpenFolder, StockModel, is_stock, open_stock
from yxanul.inference.generate import Limits, generate
from yxanul.inference.loading import OpenRun, open_run
from yxanul.inference.prompt import Vocabulary
from yxanul.model.attention import sdpa
from yxanul.model.sampling import Sampling
from yxanul.model.transformer import Transformer
from yxanul.tokenizer.load import Tokenizer
from yxanul.training.evaluation import held_out, pack, token_nats

RESAMPLES = 1_000
"""For the standard error of a metric that has no formula for it."""

Write = Callable[[str, Limits, Sampling, int], str]
"""Continues a prompt; the number is a seed."""


@dataclass(frozen=True)
class Measured:
    """What the harness found; `stderr` is None where it gives none."""

    task: str
    metric: str
    value: float
    stderr: float | None


@dataclass(frozen=True)
class Question:
    """A continuation to be scored, in tokens.

    Attributes:
        ids: of context and continuation, after the end-of-text token that begins every document.
        to_spell: what each scored token, which are the last ones, finds still unsaid of the context; mostly nothing.
    """

    ids: list[int]
    to_spell: list[bytes]

    def windows(self, context: int) -> Iterator[tuple[list[int], int]]:
        """Windows that score each token once, from as much text before as fits.

        Yields up to `context` + 1 ids (inputs and shifted targets), and how many first targets are not to be scored.
        """
        for begin in range(len(self.ids) - len(self.to_spell), len(self.ids), context):
            end = min(begin + context, len(self.ids))
            start = max(0, end - context - 1)
            yield self.ids[start:end], begin - start - 1


def questions(pairs: Sequence[tuple[str, str]], tokenizer: Tokenizer) -> list[Question]:
    """Contexts and their continuations, each pair encoded as the one text that it is.

    A token may span the end of a context, as superwords do. What is scored then begins at the last token boundary
    before it, so that all of the continuation is scored. The continuations of one context begin at the last boundary
    that they have in common, so that each is scored with the same end of the context, and the likeliest is the
    likeliest continuation.
    """
    encoded = tokenizer.encode([context + continuation for context, continuation in pairs])
    sizes = [tokenizer.byte_lengths[ids].astype(np.int64) for ids in encoded]
    of_context = defaultdict(list)
    for place, (context, _) in enumerate(pairs):
        of_context[context].append(place)
    found = {}
    for context, places in of_context.items():
        content = context.encode()
        boundaries = reduce(np.intersect1d, [sizes[place].cumsum() for place in places])
        cut = boundaries[boundaries <= len(content)].max(initial=0)
        for place in places:
            starts = sizes[place].cumsum() - sizes[place]
            to_spell = [content[start:] for start in starts[starts >= cut]]
            found[place] = Question([tokenizer.end_of_text, *encoded[place]], to_spell)
    return [found[place] for place in range(len(pairs))]


class Subject(LM):
    """A model that answers the harness.

    Args:
        context: tokens that the model sees.
        write: continues a prompt.
        console: where the progress is shown, if it is a terminal.
    """

    def __init__(
        self,
        model: Transformer | StockModel,
        tokenizer: Tokenizer,
        context: int,
        write: Write,
        device: torch.device,
        console: Console,
    ):
        super().__init__()
        self._model = model
        self._tokenizer = tokenizer
        self._vocabulary = Vocabulary(tokenizer.token_bytes)
        self._context = context
        self._write = write
        self._device = device
        self._track = partial(track, console=console, transient=True, disable=not console.is_terminal)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each (context, continuation) the log-likelihood in nats, and whether the likeliest tokens say the same.

        See `questions` for what is scored where a token spans the end of a context; the likeliest tokens are there, as
        in `generate`, those of the tokens that spell that end. A context that does not fit is cut from the left.
        """
        asked = questions([each.args for each in requests], self._tokenizer)
        to_spell = (unsaid for each in asked for unsaid in each.to_spell)
        windows = [window for each in asked for window in each.windows(self._context)]
        losses, missed = [], []
        for row in self._track(list(pack(windows, self._context)), "continuations"):
            packed, targets, rows = row.inputs(self._context, self._device, sdpa)
            logits = self._model.next_token_logits(packed, rows)
            losses += F.cross_entropy(logits, targets, reduction="none").tolist()
            missed += (self._likeliest(logits, islice(to_spell, len(rows))) != targets).tolist()
        owners = np.repeat(np.arange(len(asked)), [len(each.to_spell) for each in asked])
        nats, misses = (np.bincount(owners, each, len(asked)).tolist() for each in (losses, missed))
        return [(-loss, miss == 0) for loss, miss in zip(nats, misses, strict=True)]

    def _likeliest(self, logits: Tensor, to_spell: Iterator[bytes]) -> Tensor:
        """(rows,) the likeliest tokens, of those that go on with what is still unsaid of a context."""
        found = logits.argmax(1)
        for row, unsaid in enumerate(to_spell):
            if unsaid:
                allowed = self._vocabulary.spelling(unsaid).to(logits.device)
                found[row] = allowed[logits[row, allowed].argmax()]
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-likelihood in nats of each text, (text,), read as evaluation reads held-out text: each byte once."""
        texts = [text for (text,) in (each.args for each in requests)]
        prepared = held_out(texts, self._tokenizer, self._context)
        nats = token_nats(self._model, prepared, self._device, sdpa)
        return (-np.bincount(prepared.documents, nats, len(texts))).tolist()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What follows each (context, generation_kwargs), up to a stop; a context that leaves no room is cut.

        Raises:
            UserError: the task asks for a way to generate that is not known here.
        """
        numbered = enumerate(self._track(requests, "texts"))
        return [self._written(*each.args, seed=number) for number, each in numbered]

    def _written(self, context: str, given: dict[str, Any], seed: int) -> str:
        limits, sampling = _settings(given)
        room = max(self._context - 1 - limits.new_tokens, self._context // 2)
        return self._write(_cut_left(context, self._tokenizer, room), limits, sampling, seed)


def open_subject(folder: Path, device: torch.device, console: Console) -> Subject:
    """A run, or a Hugging Face folder; raises UserError as `open_run` and `open_stock`."""
    if is_stock(folder):
        with quiet():
            opened = open_stock(folder, device)
        write = partial(_stock_text, opened, device)
        return Subject(opened.model, opened.tokenizer, opened.context, write, device, console)
    run = open_run(folder, device)
    return Subject(run.model, run.tokenizer, run.config.model.max_seq_len, partial(_text, run), device, console)


def _text(run: OpenRun, prompt: str, limits: Limits, sampling: Sampling, seed: int) -> str:
    [found] = generate(run.model, run.config.model, run.tokenizer, prompt, 1, limits, sampling, seed)
    return found.text


def _stock_text(
    opened: OpenFolder, device: torch.device, prompt: str, limits: Limits, sampling: Sampling, seed: int
) -> str:
    """As `transformers` generates."""
    ids = [opened.tokenizer.end_of_text, *opened.tokenizer.encode([prompt])[0]]

    def text_of(tokens: Tensor) -> str:
        return opened.tokenizer.library.decode(tokens[len(ids) :].tolist(), skip_special_tokens=True)

    def stopped(texts: Tensor, scores: Any) -> Tensor:
        found = [any(stop in text_of(tokens) for stop in limits.stop) for tokens in texts]
        return torch.tensor(found, device=texts.device)

    torch.manual_seed(seed)
    drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k or 0, "top_p": sampling.top_p}
    [tokens] = opened.model.model.generate(
        torch.tensor([ids], device=device),
        max_new_tokens=min(limits.new_tokens, opened.context - len(ids)),
        stopping_criteria=[stopped],
        pad_token_id=opened.tokenizer.end_of_text,
        do_sample=sampling.temperature > 0,
        **(drawn if sampling.temperature else {}),
    )
    return reduce(lambda text, stop: text.split(stop)[0], limits.stop, text_of(tokens))


def _settings(given: Mapping[str, Any]) -> tuple[Limits, Sampling]:
    """A task's `generation_kwargs` in our own words."""
    asked = normalize_gen_kwargs(dict(given))
    unknown = asked.keys() - {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}
    if unknown:
        raise UserError(
            f"generation_kwargs of a task: {', '.join(sorted(unknown))} cannot be had here; leave the task out"
        )
    temperature = asked.get("temperature", 1.0) if asked["do_sample"] else 0.0
    limits = Limits(asked["max_gen_toks"], [each for each in asked["until"] if each])
    return limits, Sampling(temperature, asked.get("top_k") or None, asked.get("top_p", 1.0))


def _cut_left(text: str, tokenizer: Tokenizer, room: int) -> str:
    """The end of a text that fits into `room` tokens."""
    while len(ids := tokenizer.encode([text])[0]) > room:  # the end of a text may take more tokens than it did in it
        text = b"".join(tokenizer.token_bytes[token] for token in ids[-room:]).decode(errors="ignore")
    return text


def open_tasks(asked: Sequence[str], folder: Path | None) -> TaskDict:
    """The tasks and groups of these names, which may have wildcards, with their data.

    The harness's own are looked through, which takes ten seconds, only for what is not in `folder`.

    Raises:
        UserError: `folder` is none, there is no such task, its data cannot be read or downloaded, or it takes more
            than reading and writing text.
    """
    if folder is not None and not folder.is_dir():
        raise UserError(f"--task-path {folder}: no such folder; name the one that holds the tasks' YAML files")
    with quiet():
        manager = TaskManager(include_path=folder, include_defaults=False)
        if not all(map(manager.match_tasks, asked)):
            manager = TaskManager(include_path=folder)
        for name in asked:
            if not manager.match_tasks(name):
                near = get_close_matches(name, manager.all_tasks)
                advice = f"did you mean {' or '.join(near)}?" if near else "`python -m lm_eval ls tasks` lists them"
                raise UserError(f"--tasks {name}: no such task; {advice}")
        _seed()
        try:
            tasks = manager.load(manager.match_tasks(asked))
        except Exception as error:  # the harness and what it downloads with raise what they like
            said = next(iter(str(error).strip().splitlines()), "")
            raise UserError(
                f"--tasks {','.join(asked)}: cannot be loaded ({type(error).__name__}: {said}); data that is not here "
                "yet is downloaded, which takes a network"
            ) from error
    for name, task in tasks["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise UserError(f"--tasks {name}: shows pictures or runs the code that a model writes; leave it out")
    return tasks


def measure(subject: Subject, tasks: TaskDict, limit: int | None = None) -> list[Measured]:
    """What the harness finds of a model on the tasks, each time with the same examples in the prompts.

    Args:
        limit: of each task, this many examples from its first.

    Raises:
        UserError: a task asks for what is not known here.
    """
    with quiet():
        _seed()
        for task in tasks["tasks"].values():
            task.set_fewshot_seed(DEFAULT_OTHER_SEED)
        found = lm_eval.evaluate(subject, tasks, limit=limit, bootstrap_iters=RESAMPLES, log_samples=False)
    return [each for task, metrics in found["results"].items() for each in _measured(task, metrics)]


def _seed() -> None:
    """As the harness's own command does: some tasks shuffle."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)


def _measured(task: str, metrics: Mapping[str, Any]) -> Iterator[Measured]:
    """Of the harness's entries "metric,filter" and "metric_stderr,filter", beside which others stand."""
    for key, value in metrics.items():
        metric, comma, chosen = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, numbers.Real):
            stderr = metrics.get(f"{metric}_stderr,{chosen}")
            name = metric if chosen == "none" else f"{metric} ({chosen})"
            yield Measured(task, name, float(value), stderr if isinstance(stderr, float) else None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries print, log and count, which is pages."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
