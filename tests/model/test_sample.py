"""Sampling against the model asked one token at a time."""

import pytest
import torch

from yxanul.config import FeedForward, Norm, Positions
from yxanul.model.attention import sdpa
from yxanul.model.sample import sample
from yxanul.model.sampling import Sampling
from yxanul.model.transformer import Packed

CPU = torch.device("cpu")
VOCAB, NEVER = 61, -1
GPT2 = {"norm": Norm.layernorm, "feed_forward": FeedForward.gelu, "positions": Positions.learned}


@pytest.fixture(params=[{}, GPT2], ids=["llama", "gpt2"])
def model(request, model_config, build_model):
    return build_model(model_config(max_seq_len=200, **request.param), vocab_size=VOCAB)


def prompts_of(*lengths):
    ids = torch.randint(VOCAB, (sum(lengths),), generator=torch.Generator().manual_seed(1))
    return [part.tolist() for part in ids.split(lengths)]


def draw(model, prompts, num_tokens, max_seq_len, end=NEVER, seed=0, **settings):
    return sample(model, prompts, num_tokens, max_seq_len, end, torch.Generator().manual_seed(seed), **settings)


def logits_after(model, text):
    """The logits of the token that follows a text, the text being all that the model sees."""
    where = sdpa([0], len(text), len(text))
    packed = Packed(torch.tensor(text), torch.arange(len(text)), where)
    return model.next_token_logits(packed, torch.tensor([len(text) - 1]))[0]


def greedy(model, prompt, num_tokens, max_seq_len):
    text = list(prompt)
    for _ in range(num_tokens):
        text.append(logits_after(model, text[-max_seq_len:]).argmax().item())
    return text


@pytest.mark.parametrize("max_seq_len", [8, 50, 128, 150])
@pytest.mark.parametrize("lengths", [(1,), (3, 7, 5), (90, 1, 70, 45), (5,) * 40, (200, 3)])
def test_prompts_together_go_on_as_each_alone(model, lengths, max_seq_len):
    """The likeliest token each time, from the last `max_seq_len` ids, however the row of prompts falls into tiles."""
    prompts = prompts_of(*lengths)
    texts = draw(model, prompts, 4, max_seq_len, sampling=Sampling(temperature=0))
    assert texts == [greedy(model, prompt, 4, max_seq_len) for prompt in prompts]


def test_the_generator_decides_the_text(model):
    prompts = prompts_of(4, 9)
    first, again, other = (draw(model, prompts, 20, 64, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert [text[: len(prompt)] for text, prompt in zip(first, prompts, strict=True)] == prompts
    assert [len(text) for text in first] == [24, 29]


def test_prompts_are_left_as_they_were(model):
    prompts = prompts_of(4, 9)
    copies = [list(prompt) for prompt in prompts]
    draw(model, prompts, 3, 64)
    assert prompts == copies


def test_a_text_stops_at_the_end_token_and_the_others_go_on(model):
    """The end token is one that the first text takes and the second does not."""
    prompts = prompts_of(4, 9)
    free = draw(model, prompts, 20, 64, sampling=Sampling(temperature=0))
    continuations = [text[len(prompt) :] for text, prompt in zip(free, prompts, strict=True)]
    end = next(token for token in continuations[0] if token not in continuations[1])
    texts = draw(model, prompts, 20, 64, end=end, sampling=Sampling(temperature=0))
    stop = 4 + continuations[0].index(end) + 1
    assert texts == [free[0][:stop], free[1]]
    assert stop < len(free[0])


def test_everything_may_stop_before_the_last_token(model):
    """An end token inside a prompt is only text; one that is drawn ends it."""
    (prompt,) = prompts_of(4)
    end = greedy(model, prompt, 1, 64)[-1]
    assert draw(model, [prompt, [end, *prompt]], 0, 64, end=end) == [prompt, [end, *prompt]]
    assert draw(model, [prompt], 20, 64, end=end, sampling=Sampling(temperature=0)) == [[*prompt, end]]


def test_frequencies_follow_temperature_and_top_k(model):
    """4000 copies of one prompt draw from the softmax of the three largest logits over the temperature."""
    (prompt,) = prompts_of(2)
    logits, ids = logits_after(model, prompt).topk(3)
    temperature = ((logits[0] - logits[2]) / 2).item()
    texts = draw(model, [prompt] * 4000, 1, 64, sampling=Sampling(temperature, 3))
    frequencies = torch.bincount(torch.tensor([text[-1] for text in texts]), minlength=VOCAB) / 4000
    expected = torch.zeros(VOCAB).index_put((ids,), (logits / temperature).softmax(0))
    torch.testing.assert_close(frequencies, expected, rtol=0, atol=0.04)
