"""Text from a model: several continuations of one prompt as a batch, token by token, as they come."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from yxanul.config import ModelConfig
from yxanul.errors import UserError
from yxanul.inference.cache import Cache
from yxanul.inference.prompt import Vocabulary, take_back
from yxanul.model.sampling import Sampling
from yxanul.model.transformer import Packed, Transformer
from yxanul.tokenizer.load import Tokenizer

OnText = Callable[[int, str], None]
"""Told the number of a continuation, and the text that it has grown by."""


@dataclass(frozen=True)
class Limits:
    """Where a continuation ends.

    Attributes:
        new_tokens: at most so many.
        stop: texts that end it, and are no part of it.
    """

    new_tokens: int
    stop: Sequence[str] = ()

    @property
    def unsure(self) -> int:
        """Characters at the end of a text that may yet turn out to begin a stop."""
        return max(map(len, self.stop), default=1) - 1


@dataclass
class Continuation:
    """A text on its way.

    Attributes:
        ids: of the whole text, the end-of-text token that begins it included.
        rest: of the prompt, what is still to be spelled.
        text: what follows the prompt.
        drawn: how many tokens were.
        ended: why it is finished: "end of text", "stop", "length" or "context"; None while it is not.
    """

    ids: list[int]
    rest: bytes
    text: str = ""
    drawn: int = 0
    ended: str | None = None
    _told: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"), repr=False
    )

    def take(self, token: int, spelled: bytes, limits: Limits) -> None:
        """Grow by a token, and end where the text does."""
        self.ids.append(token)
        new, self.rest = spelled[len(self.rest) :], self.rest[len(spelled) :]
        self.text += self._decoder.decode(new)
        found = [place for place in map(self.text.find, limits.stop) if place >= 0]
        if found:
            self.text, self.ended = self.text[: min(found)], "stop"

    def news(self, limits: Limits) -> str:
        """The text that was not told yet, but for what may begin a stop."""
        sure = len(self.text) if self.ended else max(self._told, len(self.text) - limits.unsure)
        piece, self._told = self.text[self._told : sure], sure
        return piece


class Decoding:
    """A model reading texts as they grow; `logits`, (texts, vocabulary) float32 on the host, are of what comes next."""

    def __init__(self, model: Transformer, config: ModelConfig, texts: Sequence[Sequence[int]], room: int):
        self._model = model
        self._device = next(model.parameters()).device
        self._cache = Cache.empty(config, len(texts), room, self._device, model.embedding.dtype)
        ends = torch.tensor([len(text) for text in texts], device=self._device).cumsum(0) - 1
        self.logits = self._read(self._cache.prefill(texts), ends, texts)

    def step(self, going: Sequence[int], texts: Sequence[Sequence[int]]) -> None:
        """Read the last token of those texts that go on, by their places among the last ones."""
        if len(going) < len(self.logits):
            self._cache.keep_rows(torch.tensor(going, device=self._device))
        tokens = torch.tensor([text[-1] for text in texts], device=self._device)
        self.logits = self._read(self._cache.step(tokens), slice(None), texts)

    @torch.no_grad()
    def _read(self, packed: Packed, rows: Tensor | slice, texts: Sequence[Sequence[int]]) -> Tensor:
        hidden = self._model.hidden(packed)[rows]
        prior = self._model.ngrams and self._model.ngrams.after(texts)
        return self._model.logits(hidden, prior).cpu()


def generate(
    model: Transformer,
    config: ModelConfig,
    tokenizer: Tokenizer,
    prompt: str,
    samples: int,
    limits: Limits,
    sampling: Sampling,
    seed: int = 0,
    on_text: OnText = lambda number, piece: None,
) -> list[Continuation]:
    """Continue `prompt` in several ways, drawn together.

    Raises:
        UserError: the prompt does not fit into the model's context.
    """
    vocabulary = Vocabulary(tokenizer.token_bytes)
    ids, rest = take_back(tokenizer.encode([prompt])[0], vocabulary)
    start = [tokenizer.end_of_text, *ids]
    if len(start) >= config.max_seq_len:
        raise UserError(
            f"the prompt has {len(start)} tokens, and the model's context of {config.max_seq_len} must hold at least "
            "one more; shorten it"
        )
    continuations = [Continuation(list(start), rest) for _ in range(samples)]
    generator = torch.Generator().manual_seed(seed)
    room = min(len(start) + limits.new_tokens, config.max_seq_len)
    decoding = Decoding(model, config, [each.ids for each in continuations], room)
    going = list(range(samples))
    while going:
        growing = [continuations[number] for number in going]
        chosen = sampling.choose(_possible(decoding.logits, growing, vocabulary), generator).tolist()
        for number, each, token in zip(going, growing, chosen, strict=True):
            each.drawn += 1
            if token == tokenizer.end_of_text:
                each.ended = "end of text"
            else:
                each.take(token, vocabulary.tokens[token], limits)
            if each.ended is None and len(each.ids) == room:
                each.ended = "length" if room == len(start) + limits.new_tokens else "context"
            on_text(number, each.news(limits))
        places = [place for place, each in enumerate(growing) if each.ended is None]
        going = [going[place] for place in places]
        if going:
            decoding.step(places, [continuations[number].ids for number in going])
    return continuations


def _possible(logits: Tensor, growing: Sequence[Continuation], vocabulary: Vocabulary) -> Tensor:
    """The logits, without the tokens that do not go on with a prompt that is not spelled yet."""
    logits = logits.clone()
    for row, each in zip(logits, growing, strict=True):
        if each.rest:
            allowed = vocabulary.spelling(each.rest)
            kept = row[allowed]
            row.fill_(-torch.inf)[allowed] = kept
    return logits
