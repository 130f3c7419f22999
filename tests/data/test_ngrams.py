"""Counted n-grams against the plainest reading of Chen and Goodman: dictionaries and a recursion, in float64."""

from collections import Counter
from dataclasses import replace
from functools import cache as remembered
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console

from yxanul.config import NGramConfig
from yxanul.data import ngrams
from yxanul.data.ngrams import count_ngrams, counted_documents, load_ngrams, ngrams_path
from yxanul.data.stream import Stream
from yxanul.errors import ConfigError
from yxanul.model.memory import ngram_bytes
from yxanul.spent import seconds_for

VOCAB, END = 13, 12
TRIGRAMS = NGramConfig(order=3, tokens=300)


def some_documents(number: int = 80, seed: int = 0) -> list[list[int]]:
    """Of 1 to 25 tokens, of which some are far more frequent than others; one token never occurs."""
    generator = np.random.default_rng(seed)
    words = generator.dirichlet(np.full(END - 1, 0.5))
    return [[END, *generator.choice(END - 1, size=generator.integers(1, 25), p=words).tolist()] for _ in range(number)]


class Naive:
    """Interpolated modified Kneser-Ney of documents that lie end to end."""

    def __init__(self, documents: list[list[int]], order: int):
        row = [token for document in documents for token in document]
        occurring = {
            k: Counter(
                gram for gram in zip(*(row[place:] for place in range(k)), strict=False) if END not in gram[1:-1]
            )
            for k in range(1, order + 1)
        }
        self.counts = {order: occurring[order]}
        for k in range(1, order):
            self.counts[k] = Counter(gram[1:] for gram in occurring[k + 1])
            if k > 1:
                self.counts[k] += Counter({gram: n for gram, n in occurring[k].items() if gram[0] == END})

    @remembered  # noqa: B019 an instance a test
    def discounts(self, k: int) -> list[float]:
        having = Counter(self.counts[k].values())
        n1, n2, n3, n4 = (max(1, having[count]) for count in (1, 2, 3, 4))
        share = n1 / (n1 + 2 * n2)
        found = [1 - 2 * share * n2 / n1, 2 - 3 * share * n3 / n2, 3 - 4 * share * n4 / n3]
        return [min(max(discount, 0.1), size - 0.1) for size, discount in enumerate(found, 1)]

    @remembered  # noqa: B019
    def probability(self, context: tuple[int, ...], token: int) -> float:
        k = len(context) + 1
        seen = {gram[-1]: count for gram, count in self.counts[k].items() if gram[:-1] == context}
        below = self.probability(context[1:], token) if context else 1 / VOCAB
        if not seen:
            return below
        off = {word: self.discounts(k)[min(count, 3) - 1] for word, count in seen.items()}
        kept = seen[token] - off[token] if token in seen else 0.0
        return (kept + sum(off.values()) * below) / sum(seen.values())


def probabilities(found: ngrams.NGrams, context: tuple[int, ...]) -> torch.Tensor:
    """What the softmax of bias and values makes of a context, found by walking over the tables."""
    logits = found.bias.double().clone()
    bits = ngrams.key_bits(len(found.bias))
    for length, level in enumerate(found.levels, 1):
        newest = context[-length:]
        key = sum(token << bits * (length - 1 - place) for place, token in enumerate(newest))
        for place in (level.contexts == key).nonzero().flatten().tolist() if len(newest) == length else []:
            entries = slice(level.starts[place], level.starts[place + 1])
            logits[level.tokens[entries].long()] += level.values[entries].double()
    return logits.softmax(0)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_logits_are_those_of_kneser_and_ney(order):
    documents = some_documents()
    found = count_ngrams(np.concatenate(documents), VOCAB, END, order)
    naive = Naive(documents, order)
    asked = {tuple(each[begin : begin + order - 1]) for each in some_documents(20, seed=1) for begin in range(20)}
    for context in sorted(asked):
        expected = torch.tensor([naive.probability(context, token) for token in range(VOCAB)], dtype=torch.float64)
        assert expected.sum() == pytest.approx(1)
        assert probabilities(found, context).numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_what_never_occurred_is_still_possible():
    found = count_ngrams(np.concatenate(some_documents()), VOCAB, END, 3)
    never = END - 1
    assert all(0 < probabilities(found, context)[never] < 1 / VOCAB for context in ((), (0,), (1, 2), (END, 3)))


def test_contexts_end_where_documents_begin():
    documents = [[END, 1, 2], [END, 3, 4]] * 10
    found = count_ngrams(np.concatenate(documents), VOCAB, END, 3)
    bits = ngrams.key_bits(VOCAB)
    contexts = {(key >> bits, key & (1 << bits) - 1) for key in found.levels[1].contexts.tolist()}
    assert contexts == {(END, 1), (1, 2), (END, 3), (3, 4)}  # and none that spans two of them, such as (2, END)


@pytest.mark.parametrize("length", [2, 3])
def test_a_text_shorter_than_the_order_counts_what_it_has(length):
    found = count_ngrams(np.array([END, 1, 2][:length]), VOCAB, END, 4)
    assert len(found.levels) == 3
    assert probabilities(found, (5, 6, 7)).sum() == pytest.approx(1)


@pytest.fixture
def corpus(make_corpus, small_tokenizer, tmp_path):
    """Sixty documents that begin with a number of their own."""
    texts = [f"{number} " + "the cat sat on the mat and looked at the dog " * (number % 4 + 1) for number in range(60)]
    return make_corpus(texts, small_tokenizer, 1e-9, tmp_path)


def loaded(corpus, tokenizer, folder, config=TRIGRAMS) -> tuple[ngrams.NGrams | None, str]:
    console = Console(file=StringIO(), width=200)
    found = load_ngrams(corpus, config, tokenizer.vocab_size, tokenizer.end_of_text, folder, console)
    return found, console.file.getvalue()


def same(one: ngrams.NGrams, other: ngrams.NGrams) -> bool:
    pairs = [(one.bias, other.bias)]
    for mine, theirs in zip(one.levels, other.levels, strict=True):
        pairs += zip(vars(mine).values(), vars(theirs).values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_what_is_counted_is_not_read(corpus, small_tokenizer, tmp_path):
    counted = counted_documents(corpus, TRIGRAMS)
    tokens, offsets = corpus.open()
    documents = [tokens[0][begin:end].tolist() for begin, end in zip(offsets[0][:-1], offsets[0][1:], strict=True)]
    stream = Stream(corpus, 1, small_tokenizer.byte_lengths, counted)
    row, starts = stream.read(0, stream.tokens_per_epoch)
    read = [part.tolist() for part in np.split(row, starts[1:])]
    assert sorted(read) == sorted(each for each, apart in zip(documents, counted, strict=True) if not apart)

    within = [each for each, apart in zip(documents, counted, strict=True) if apart]
    assert 0 < sum(map(len, within)) <= TRIGRAMS.tokens < sum(map(len, documents))
    found, _ = loaded(corpus, small_tokenizer, tmp_path)
    assert same(found, count_ngrams(np.concatenate(within), small_tokenizer.vocab_size, small_tokenizer.end_of_text, 3))


def test_tables_are_no_larger_than_foretold(corpus, small_tokenizer, tmp_path):
    found, _ = loaded(corpus, small_tokenizer, tmp_path)
    held = sum(tensor.nbytes for level in found.levels for tensor in vars(level).values())
    assert 0.05 * ngram_bytes(TRIGRAMS) < held <= ngram_bytes(TRIGRAMS)


def test_counts_are_made_once_and_their_time_is_known(corpus, small_tokenizer, tmp_path):
    first, said = loaded(corpus, small_tokenizer, tmp_path)
    assert "counted" in said and f"{first.entries:,}" in said
    path = ngrams_path(corpus, TRIGRAMS, tmp_path)
    written = path.stat().st_mtime_ns
    seconds = seconds_for(tmp_path, path.stem)
    assert seconds > 0
    again, said = loaded(corpus, small_tokenizer, tmp_path)
    assert said == "" and path.stat().st_mtime_ns == written and seconds_for(tmp_path, path.stem) == seconds
    assert same(first, again)


def test_other_settings_are_other_counts(corpus, small_tokenizer, tmp_path):
    asked = [TRIGRAMS, replace(TRIGRAMS, order=2), replace(TRIGRAMS, tokens=400)]
    assert len({ngrams_path(corpus, config, tmp_path) for config in asked}) == 3
    assert len({loaded(corpus, small_tokenizer, tmp_path, config)[0].entries for config in asked}) == 3


@pytest.mark.parametrize("damage", [lambda content: content[:-10], lambda content: content[:-1] + b"?"])
def test_a_damaged_file_is_counted_again(corpus, small_tokenizer, tmp_path, caplog, damage):
    first, _ = loaded(corpus, small_tokenizer, tmp_path)
    path = ngrams_path(corpus, TRIGRAMS, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    again, said = loaded(corpus, small_tokenizer, tmp_path)
    assert same(first, again) and "counted" in said and f"{path}: is not as it was made" in caplog.text


def test_order_zero_counts_nothing_and_reads_all(corpus, small_tokenizer, tmp_path):
    nothing = replace(TRIGRAMS, order=0)
    assert loaded(corpus, small_tokenizer, tmp_path, nothing) == (None, "")
    assert counted_documents(corpus, nothing) is None
    assert not (tmp_path / "ngrams").exists()


def test_something_must_be_left_to_read(corpus):
    with pytest.raises(ConfigError) as caught:
        counted_documents(corpus, replace(TRIGRAMS, tokens=corpus.tokens))
    assert "ngram.tokens" in str(caught.value) and "\n" not in str(caught.value)
    counted = counted_documents(corpus, replace(TRIGRAMS, tokens=corpus.tokens * 3 // 4))  # its advice
    assert 0 < counted.sum() < len(counted)


def test_something_must_be_there_to_count(corpus):
    with pytest.raises(ConfigError, match=r"ngram.tokens=1: .*raise"):
        counted_documents(corpus, replace(TRIGRAMS, tokens=1))
