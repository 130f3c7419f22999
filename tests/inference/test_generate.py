"""Continuations of a prompt: what ends them, what is told while they come, and that prompts may end anywhere."""

from pathlib import Path

import pytest
import torch

from yxanul.data.ngrams import count_ngrams
from yxanul.errors import UserError
from yxanul.inference.generate import Limits, generate
from yxanul.inference.prompt import Vocabulary, take_back
from yxanul.model.attention import sdpa
from yxanul.model.prior import NGramPrior
from yxanul.model.sampling import Sampling
from yxanul.model.transformer import Packed, Transformer

GREEDY = Sampling(temperature=0)
TWELVE = Limits(12)
PROMPT = "def add_argument(self"


@pytest.fixture(scope="module")
def config(model_config):
    return model_config(max_seq_len=48)


@pytest.fixture(scope="module")
def model(config, build_model, small_tokenizer) -> Transformer:
    return build_model(config, small_tokenizer.vocab_size)


@pytest.fixture
def go_on(model, config, small_tokenizer):
    def run(prompt=PROMPT, samples=1, limits=TWELVE, sampling=GREEDY, model=model, **rest):
        return generate(model, config, small_tokenizer, prompt, samples, limits, sampling, **rest)

    return run


def anew(model, tokenizer, prompt, number):
    """The likeliest continuation, the whole text read anew for each token and nothing restricted."""
    ids = [tokenizer.end_of_text, *tokenizer.encode([prompt])[0]]
    for _ in range(number):
        packed = Packed(torch.tensor(ids), torch.arange(len(ids)), sdpa([0], len(ids), len(ids)))
        ids.append(model.next_token_logits(packed, torch.tensor([len(ids) - 1]))[0].argmax().item())
    return ids


def a_prompt_that_is_kept(tokenizer) -> str:
    """Of whose end no longer token can be."""
    vocabulary = Vocabulary(tokenizer.token_bytes)
    texts = [token.decode() for token in tokenizer.token_bytes if len(token) > 3 and token.isascii()]
    return next(text for text in texts if not take_back(tokenizer.encode([text])[0], vocabulary)[1])


def test_the_likeliest_text_is_that_without_a_cache(go_on, model, small_tokenizer):
    prompt = a_prompt_that_is_kept(small_tokenizer)
    (found,) = go_on(prompt)
    assert found.ids == anew(model, small_tokenizer, prompt, 12)
    spelled = b"".join(small_tokenizer.token_bytes[token] for token in found.ids).decode("utf-8", "replace")
    assert spelled.rstrip("\ufffd") == prompt + found.text.rstrip("\ufffd")
    assert (found.drawn, found.ended) == (12, "length")


def test_counted_ngrams_are_added_at_every_step(go_on, model, config, small_tokenizer):
    row = [small_tokenizer.end_of_text, *small_tokenizer.encode([Path(__file__).read_text()])[0]]
    ngrams = count_ngrams(torch.tensor(row).numpy(), small_tokenizer.vocab_size, small_tokenizer.end_of_text, 3)
    linear = lambda rows, columns: torch.nn.Linear(rows, columns, bias=False)  # noqa: E731
    counted = Transformer(config, small_tokenizer.vocab_size, linear, torch.float32, ngrams=NGramPrior(ngrams))
    counted.load_state_dict(model.state_dict())
    prompt = a_prompt_that_is_kept(small_tokenizer)
    (found,) = go_on(prompt, model=counted)
    assert found.ids == anew(counted, small_tokenizer, prompt, 12) != anew(model, small_tokenizer, prompt, 12)


@pytest.mark.parametrize("cut", range(1, len(PROMPT)))
def test_a_prompt_may_end_anywhere(go_on, small_tokenizer, cut):
    """Wherever it is cut, its bytes come first, and in whatever tokens it is read the text goes on."""
    (found,) = go_on(PROMPT[:cut])
    spelled = b"".join(small_tokenizer.token_bytes[token] for token in found.ids)
    assert spelled.startswith(PROMPT[:cut].encode())
    assert spelled.decode("utf-8", "replace")[cut:].startswith(found.text.rstrip("\ufffd"))


def test_a_cut_word_goes_on_as_the_whole_one(config, small_tokenizer):
    """A model that is sure of the token " argument" after " add" writes it, though the prompt ends in its middle."""
    vocabulary = Vocabulary(small_tokenizer.token_bytes)
    word = next(token for token in small_tokenizer.token_bytes if len(token) > 4 and token.isalpha())
    kept, rest = take_back(small_tokenizer.encode([word[:-2].decode()])[0], vocabulary)
    assert (kept, word.startswith(rest) and len(rest) > 0) == ([], True)
    assert small_tokenizer.token_bytes.index(word) in vocabulary.spelling(rest)


def test_the_seed_decides_what_is_drawn(go_on):
    sampling = Sampling(1.0, None, 1.0)
    first, again, other = ([each.text for each in go_on(samples=3, sampling=sampling, seed=seed)] for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) == 3


@pytest.mark.parametrize("hidden", [0, 3])
def test_a_stop_ends_the_text_and_is_never_told(go_on, hidden):
    (free,) = go_on(limits=Limits(20))
    stop = free.text[6:9]
    told = []
    limits = Limits(20, [stop, "never there"[hidden:]])
    (found,) = go_on(limits=limits, on_text=lambda number, piece: told.append(piece))
    assert found.ended == "stop"
    assert found.text == free.text[: free.text.find(stop)]
    assert "".join(told) == found.text


def test_what_is_told_is_the_text(go_on):
    told = {0: "", 1: ""}

    def listen(number, piece):
        told[number] += piece

    found = go_on(samples=2, sampling=Sampling(1.5, None, 1.0), on_text=listen)
    assert [each.text for each in found] == list(told.values())


def test_the_context_ends_a_text(go_on, config):
    (found,) = go_on(limits=Limits(1000))
    assert (len(found.ids), found.ended) == (config.max_seq_len, "context")


def test_the_end_of_a_text_is_its_end(go_on, model, small_tokenizer, monkeypatch):
    sure = torch.eye(small_tokenizer.vocab_size)[small_tokenizer.end_of_text]
    monkeypatch.setattr(model, "logits", lambda hidden, prior: sure.repeat(len(hidden), 1))
    (found,) = go_on(a_prompt_that_is_kept(small_tokenizer))
    assert (found.text, found.ended, found.drawn) == ("", "end of text", 1)


def test_an_empty_prompt_begins_a_text(go_on, small_tokenizer):
    (found,) = go_on("")
    assert found.ids[0] == small_tokenizer.end_of_text and len(found.ids) == 13


def test_a_prompt_longer_than_the_context_is_refused(go_on):
    with pytest.raises(UserError, match=r"the prompt has \d+ tokens.* 48 .*shorten it") as caught:
        go_on(PROMPT * 40)
    assert "\n" not in str(caught.value)
