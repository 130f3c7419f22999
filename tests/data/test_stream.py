"""The stream against the plainest reading of it: permute the documents of each epoch, lay them end to end."""

import itertools
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yxanul.config import CurriculumConfig, OnSpike, ScheduleConfig, ScheduleKind, Stage, TrainConfig
from yxanul.curriculum import Step, plan
from yxanul.data.shards import Corpus, ShardInfo
from yxanul.data.stream import Stream, prefetch

SEED = 7
LENGTHS = [[3, 1, 17, 5, 8], [], [2], [40, 1, 1, 6, 9, 30, 4]]
"""Tokens of the documents of each shard; 127 in all."""

TOTAL = sum(map(sum, LENGTHS))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    """A corpus whose tokens are all different, so that each can be followed."""
    folder = tmp_path_factory.mktemp("corpus")
    following, shards = 0, []
    for index, lengths in enumerate(LENGTHS):
        offsets = np.cumsum([0, *lengths])
        tokens = np.arange(following, following + offsets[-1], dtype="<u4")
        tokens.tofile(folder / f"{index}.tokens")
        np.save(folder / f"{index}.offsets.npy", offsets)
        shards.append(ShardInfo(f"{index}", "", "", int(offsets[-1]), len(lengths), 0, 0, 0, ""))
        following += len(tokens)
    return Corpus(folder, np.dtype("<u4"), shards, len(shards))


@pytest.fixture(scope="module")
def stream(corpus) -> Stream:
    return Stream(corpus, SEED, np.arange(TOTAL, dtype=np.uint16))


def all_documents() -> list[np.ndarray]:
    lengths = [length for of_shard in LENGTHS for length in of_shard]
    return np.split(np.arange(TOTAL), np.cumsum(lengths)[:-1])


def naive_epoch(corpus: Corpus, epoch: int, seed: int = SEED) -> tuple[np.ndarray, np.ndarray]:
    """An epoch's tokens, and where in it documents begin."""
    documents = all_documents()
    order = np.random.default_rng([seed, int(corpus.fingerprint[:16], 16), epoch]).permutation(len(documents))
    chosen = [documents[index] for index in order]
    return np.concatenate(chosen), np.cumsum([0, *(len(document) for document in chosen[:-1])])


def naive_row(corpus: Corpus, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    read = [naive_epoch(corpus, epoch) for epoch in range(epochs)]
    starts = [starts + TOTAL * epoch for epoch, (_, starts) in enumerate(read)]
    return np.concatenate([tokens for tokens, _ in read]), np.concatenate(starts)


def step(seq_len: int, micro_batches: tuple[int, ...], first_token: int, world: int = 1) -> Step:
    tokens = seq_len * sum(micro_batches) * world
    return Step(0, 0, seq_len, micro_batches, first_token, tokens, lr=1.0, grad_clip=1.0)


@pytest.fixture(scope="module")
def steps() -> list[Step]:
    """A small curriculum over a bit more than three epochs, several micro-batches a step."""
    stages = (Stage(2, 12, 0.2, 1.0, 1.0), Stage(5, 30, 0.3, 1.0, 1.0), Stage(16, 48, 0.5, 1.0, 1.0))
    schedule = ScheduleConfig(ScheduleKind.cosine, 0.0, 0.0, 0.0)
    made = plan(
        CurriculumConfig(stages, None, None),
        TrainConfig(3 * TOTAL + 40, None, 1, OnSpike.warn),
        schedule,
        1.0,
        lambda n: 20 // n,
    )
    assert len({len(each.micro_batches) for each in made}) > 1 and made[-1].first_token > 2 * TOTAL
    return made


@given(position=st.integers(0, 4 * TOTAL), count=st.integers(1, 2 * TOTAL))
def test_any_stretch_is_that_of_the_naive_row(corpus, stream, position, count):
    tokens, starts = naive_row(corpus, 6)
    row, row_starts = stream.read(position, count)
    assert row.dtype == np.int64
    assert row.tolist() == tokens[position : position + count].tolist()
    inside = starts[(starts >= position) & (starts < position + count)] - position
    assert row_starts.tolist() == inside.tolist()


def test_a_step_far_away_costs_no_more(corpus, stream):
    """Epoch ten thousand million is read at once: nothing before it is walked through."""
    epoch = 10**10
    began = time.perf_counter()
    row, _ = stream.read(TOTAL * epoch + 5, 20)
    assert time.perf_counter() - began < 1
    assert row.tolist() == naive_epoch(corpus, epoch)[0][5:25].tolist()


def test_every_epoch_and_seed_has_its_own_order(corpus):
    orders = {tuple(naive_epoch(corpus, epoch, seed)[0]) for epoch in range(3) for seed in (1, 2)}
    read = {
        tuple(Stream(corpus, seed, np.zeros(TOTAL)).read(TOTAL * epoch, TOTAL)[0])
        for epoch in range(3)
        for seed in (1, 2)
    }
    assert read == orders and len(read) == 6
    other = replace(corpus, shards=[replace(shard, sha256="other") for shard in corpus.shards])
    assert tuple(Stream(other, 1, np.zeros(TOTAL)).read(0, TOTAL)[0]) not in read


@given(
    seq_len=st.integers(1, 40),
    micro_batches=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    first_token=st.integers(0, 3 * TOTAL),
    world=st.integers(1, 3),
)
def test_micro_batches_of_all_ranks_partition_the_step(corpus, stream, seq_len, micro_batches, first_token, world):
    whole = step(seq_len, tuple(micro_batches), first_token, world)
    row, document_starts = naive_row(corpus, -(-(first_token + whole.tokens + 1) // TOTAL))
    begin = first_token
    for rank in range(world):
        for index, sequences in enumerate(micro_batches):
            batch = stream.micro_batch(whole, index, rank)
            end = begin + sequences * seq_len
            assert batch.tokens.tolist() == row[begin:end].tolist()
            assert batch.targets.tolist() == row[begin + 1 : end + 1].tolist()
            assert batch.positions.tolist() == list(range(seq_len)) * sequences
            starts = {*range(begin, end, seq_len), *(place for place in document_starts if begin <= place < end)}
            assert batch.segment_starts.tolist() == sorted(int(place) - begin for place in starts)
            assert batch.seq_len == seq_len
            assert batch.bytes == row[begin + 1 : end + 1].sum()  # byte_lengths[token] is token here
            begin = end
    assert begin == first_token + whole.tokens


def test_a_plan_trains_on_every_token_of_an_epoch_exactly_once(stream, steps):
    batches = [stream.micro_batch(each, index) for each in steps for index in range(len(each.micro_batches))]
    inputs = np.concatenate([batch.tokens for batch in batches])
    targets = np.concatenate([batch.targets for batch in batches])
    assert targets[:-1].tolist() == inputs[1:].tolist()
    for epoch in range(3):
        assert sorted(inputs[epoch * TOTAL : (epoch + 1) * TOTAL]) == list(range(TOTAL))
    # The first token of all is never a target; after it each epoch is one, token by token.
    assert sorted([inputs[0], *targets[: TOTAL - 1]]) == list(range(TOTAL))
    assert sorted(targets[TOTAL - 1 : 2 * TOTAL - 1]) == list(range(TOTAL))


def test_a_late_micro_batch_alone_is_the_one_reached_in_order(corpus, steps):
    places = [(each, index) for each in steps for index in range(len(each.micro_batches))]
    lengths = np.ones(TOTAL, np.uint16)
    walked = Stream(corpus, SEED, lengths)
    in_order = [walked.micro_batch(*place) for place in places]
    for place in (0, 1, len(places) // 2, len(places) - 1):
        alone = Stream(corpus, SEED, lengths).micro_batch(*places[place])
        for name in ("tokens", "targets", "positions", "segment_starts", "seq_len", "bytes"):
            assert np.array_equal(getattr(alone, name), getattr(in_order[place], name))


def test_bytes_are_those_of_the_text_of_the_targets(make_corpus, small_tokenizer, tmp_path):
    """ASCII, so that any stretch of tokens decodes by itself; end-of-text is no text."""
    texts = [f"{n}: {'lorem ipsum ' * (n % 5)}def f(x):\n    return x\n" for n in range(60)]
    corpus = make_corpus(texts, small_tokenizer, 0.1, tmp_path)
    stream = Stream(corpus, SEED, small_tokenizer.byte_lengths)
    for first_token in (0, 13, 500, stream.tokens_per_epoch - 20):
        batch = stream.micro_batch(step(8, (3, 4), first_token), 1)
        text = small_tokenizer.decode(batch.targets.tolist()).replace("<|endoftext|>", "")
        assert batch.bytes == len(text.encode()) > 0


def test_bytes_of_an_epoch_are_those_of_the_corpus(make_corpus, small_tokenizer, tmp_path):
    texts = [f"{n} naïve 🇩🇪👍🏽 日本語 \x00 <|endoftext|>" for n in range(40)]
    corpus = make_corpus(texts, small_tokenizer, 0.1, tmp_path)
    stream = Stream(corpus, SEED, small_tokenizer.byte_lengths)
    whole = stream.micro_batch(step(1, (stream.tokens_per_epoch,), 0), 0)
    assert whole.bytes == corpus.bytes > 1000
    assert len(set(whole.segment_starts.tolist())) == stream.tokens_per_epoch


# Prefetch


@pytest.mark.parametrize("depth", [1, 2, 7, 100])
def test_prefetch_is_map(depth):
    def slowly(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(prefetch(slowly, range(30), depth)) == [item * item for item in range(30)]
    assert list(prefetch(slowly, [], depth)) == []


def test_prefetch_works_ahead_in_one_other_thread_and_not_without_end():
    made, threads, asked = [], set(), []

    def work(item: int) -> int:
        threads.add(threading.get_ident())
        made.append(item)
        return item

    def items():
        for item in itertools.count():
            asked.append(item)
            yield item

    results = prefetch(work, items(), 3)
    assert next(results) == 0
    wait_until(lambda: made == [0, 1, 2, 3])  # three more, while nobody asks
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5]
    wait_until(lambda: made == list(range(9)))
    assert asked == made
    assert len(threads) == 1 and threading.get_ident() not in threads
    results.close()


def test_prefetch_raises_in_the_place_of_the_result():
    def work(item: int) -> float:
        return 6 / (3 - item)

    results = prefetch(work, range(10), 4)
    assert [next(results) for _ in range(3)] == [2.0, 3.0, 6.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_prefetch_raises_the_error_of_its_items():
    def items():
        yield from range(2)
        raise KeyError("items")

    with pytest.raises(KeyError, match="items"):
        list(prefetch(str, items(), 1))


def test_prefetch_stops_early_without_hanging():
    release = threading.Event()
    started = []

    def work(item: int) -> int:
        started.append(item)
        if item:
            release.wait(10)
        return item

    results = prefetch(work, itertools.count(), 3)
    assert next(results) == 0
    wait_until(lambda: started == [0, 1])
    closing = threading.Thread(target=results.close)
    closing.start()
    release.set()
    closing.join(5)
    assert not closing.is_alive()
    calls = len(started)
    time.sleep(0.05)
    assert len(started) == calls <= 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def wait_until(condition, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
