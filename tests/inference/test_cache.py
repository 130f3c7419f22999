"""A cache gives what the model gives that reads everything anew."""

import pytest
import torch

from yxanul.config import FeedForward, Norm, Positions
from yxanul.inference.cache import Cache
from yxanul.model.attention import sdpa
from yxanul.model.transformer import Packed

VOCAB = 61
GPT2 = {"norm": Norm.layernorm, "feed_forward": FeedForward.gelu, "positions": Positions.learned, "num_kv_heads": 4}


@pytest.fixture(params=[{}, {"num_kv_heads": 1}, {"num_kv_heads": 4, "qk_norm": False}, GPT2], ids=str)
def config(request, model_config):
    return model_config(**request.param)


def whole(model, text):
    """The logits after a text that is read anew."""
    packed = Packed(torch.tensor(text), torch.arange(len(text)), sdpa([0], len(text), len(text)))
    return model.next_token_logits(packed, torch.tensor([len(text) - 1]))[0]


def some_texts(*lengths):
    ids = torch.randint(VOCAB, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    return [part.tolist() for part in ids.split(lengths)]


@torch.no_grad()
def read(model, packed, rows):
    return model.logits(model.hidden(packed)[rows], None)


@pytest.mark.parametrize("lengths", [(5,), (7, 7, 7), (3, 12, 1)], ids=str)
def test_each_step_is_as_if_all_were_read_anew(config, build_model, lengths):
    model, texts = build_model(config, VOCAB), some_texts(*lengths)
    cache = Cache.empty(config, len(texts), 64, torch.device("cpu"), torch.float32)
    logits = read(model, cache.prefill(texts), torch.tensor(lengths).cumsum(0) - 1)
    for new in torch.randint(VOCAB, (20, len(texts)), generator=torch.Generator().manual_seed(2)):
        assert torch.allclose(logits, torch.stack([whole(model, text) for text in texts]), atol=1e-4)
        texts = [[*text, token] for text, token in zip(texts, new.tolist(), strict=True)]
        logits = read(model, cache.step(new), slice(None))
    assert torch.allclose(logits, torch.stack([whole(model, text) for text in texts]), atol=1e-4)


def test_rows_that_are_finished_are_forgotten(config, build_model):
    model, texts = build_model(config, VOCAB), some_texts(4, 9, 2)
    cache = Cache.empty(config, 3, 64, torch.device("cpu"), torch.float32)
    read(model, cache.prefill(texts), slice(None))
    cache.keep_rows(torch.tensor([0, 2]))
    logits = read(model, cache.step(torch.tensor([8, 9])), slice(None))
    assert torch.allclose(logits, torch.stack([whole(model, [*texts[0], 8]), whole(model, [*texts[2], 9])]), atol=1e-4)
    assert cache.lengths.tolist() == [5, 3]
