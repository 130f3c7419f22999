"""What a model makes of a text, one token after another, by trying every place where it may be cut."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import torch

from yxanul.model.attention import sdpa
from yxanul.model.transformer import Packed

CPU = torch.device("cpu")
TEXT = Path(argparse.__file__).read_text(encoding="utf-8")
CONTEXT = 48


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def ends(tokenizer, text):
    """The bytes after which a token of a text ends."""
    found = [0]
    for token in tokenizer.encode([text])[0]:
        found.append(found[-1] + len(tokenizer.token_bytes[token]))
    return found


def scored_ids(tokenizer, context, continuations):
    """Of each continuation all ids and where those begin that are to be scored, found by trying every place."""
    ending = [ends(tokenizer, context + each) for each in continuations]
    places = range(len(context.encode()) + 1)
    cut = max(place for place in places if all(place in each for each in ending))
    for each, boundaries in zip(continuations, ending, strict=True):
        yield [tokenizer.end_of_text, *tokenizer.encode([context + each])[0]], 1 + boundaries.index(cut)


def reference(model, tokenizer, context, continuations):
    """The log-likelihood of each continuation, each token predicted from the text before it alone."""
    for ids, first in scored_ids(tokenizer, context, continuations):
        ids, first = ids[-CONTEXT - 1 :], first - max(0, len(ids) - CONTEXT - 1)
        whole = torch.tensor(ids[:-1])
        packed = Packed(whole, torch.arange(len(whole)), sdpa([0], len(whole), len(whole)))
        chances = model.next_token_logits(packed, torch.arange(len(whole))).log_softmax(1)
        yield sum(chances[place - 1, ids[place]].item() for place in range(first, len(ids)))
