"""Held-out text: every byte is scored once with at least half a context, and packing changes nothing."""

import itertools
import math
import random
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yxanul.config import Positions
from yxanul.model.attention import sdpa
from yxanul.model.transformer import Packed
from yxanul.training.evaluation import evaluate, held_out

CPU = torch.device("cpu")
END = 256
BYTES = SimpleNamespace(
    end_of_text=END,
    fingerprint="",
    byte_lengths=np.ones(END + 1, np.uint16),
    encode=lambda texts: [list(text.encode()) for text in texts],
)
"""A tokenizer whose tokens are bytes."""


class Numbered:
    """A tokenizer that never gives an id twice, so that a target says which place of which text it is."""

    end_of_text = -1
    fingerprint = ""
    byte_lengths = np.ones(10_000, np.uint16)

    def encode(self, texts):
        count = itertools.count()
        self.ids = [list(itertools.islice(count, len(text))) for text in texts]
        return self.ids


def segments(row):
    """(inputs, targets, scored) of each window in a row, positions checked on the way."""
    ends = [*row.starts[1:], len(row.tokens)]
    for start, end in zip(row.starts, ends, strict=True):
        assert row.positions[start:end].tolist() == list(range(end - start))
        yield tuple(part[start:end].tolist() for part in (row.tokens, row.targets, row.scored))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=6).filter(any), st.integers(1, 40))
def test_every_token_is_scored_once_with_half_a_context_before_it(lengths, context):
    """Of any texts at any context; the inputs of a target are the tokens before it and nothing else."""
    tokenizer = Numbered()
    texts = ["x" * length for length in lengths]
    prepared = held_out(texts, tokenizer, context)
    of_text = {number: ids for ids in tokenizer.ids for number in ids}
    scored = []
    for row in prepared.rows:
        assert 0 < len(row.tokens) <= context
        for inputs, targets, counts in segments(row):
            for place, (target, counted) in enumerate(zip(targets, counts, strict=True)):
                text = of_text[target]
                before = [tokenizer.end_of_text, *text[: text.index(target)]]
                assert inputs[: place + 1] == before[-place - 1 :]
                if counted:
                    scored.append(target)
                    assert place + 1 >= min(len(before), context // 2)
    assert sorted(scored) == list(range(sum(lengths)))
    assert (prepared.tokens, prepared.bytes) == (sum(lengths), sum(lengths))


@settings(max_examples=200)
@example([2, 9, 1], 2, 10)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=80), st.integers(1, 40), st.integers(10, 60))
def test_a_context_in_bytes_is_that_of_any_tokenizer(lengths, context, context_bytes):
    """Every token is scored once, with at most that many bytes before it, and half of them if the tokens allow it."""
    tokenizer = SimpleNamespace(
        end_of_text=0,
        fingerprint="",
        byte_lengths=np.array([0, *lengths], np.uint16),
        encode=lambda texts: [list(range(1, len(lengths) + 1))],
    )
    scored = []
    for row in held_out(["x" * sum(lengths)], tokenizer, context, context_bytes).rows:
        for inputs, targets, counts in segments(row):
            assert len(inputs) <= context
            for place, (target, counted) in enumerate(zip(targets, counts, strict=True)):
                seen = sum(int(tokenizer.byte_lengths[each]) for each in inputs[: place + 1])
                assert seen <= context_bytes
                if counted:
                    scored.append(target)
                    enough = seen > context_bytes / 2 - 9 or place + 1 >= context // 2
                    assert enough or seen == sum(lengths[: target - 1])
    assert sorted(scored) == list(range(1, len(lengths) + 1))


@pytest.mark.parametrize("context", [8, 9])
def test_windows_of_a_long_text_overlap_by_half(context):
    tokenizer = Numbered()
    rows = held_out(["x" * 100], tokenizer, context).rows
    windows = [targets for row in rows for _, targets, _ in segments(row)]
    strides = {later[0] - earlier[0] for earlier, later in itertools.pairwise(windows)}
    assert strides == {context // 2}
    assert {len(window) for window in windows[:-1]} == {context}


def test_short_texts_share_rows():
    """A window that fits is never left for the next row: no two neighbours would fit into one."""
    lengths = [3, 4, 1, 9, 2, 2, 2, 16, 5]
    rows = held_out(["x" * length for length in lengths], Numbered(), 16).rows
    sizes = [len(row.tokens) for row in rows]
    assert sum(sizes) == sum(lengths)
    assert sizes == [8, 15, 16, 5]


def naive_nats(model, ids, context):
    """One target at a time, each from the first window that reaches it."""
    stride, total = max(1, context // 2), 0.0
    for place in range(1, len(ids)):
        start = max(0, -(-(place - context) // stride) * stride)
        window = torch.tensor(ids[start:place])
        packed = Packed(window, torch.arange(len(window)), sdpa([0], len(window), len(window)))
        total += model.token_losses(packed, torch.tensor(ids[start + 1 : place + 1]))[-1].item()
    return total


TEXTS = ["", "a", "Only once.", "Wer nur den lieben Gott lässt walten. " * 4, "ok", "0123456789" * 20]


@pytest.mark.parametrize("positions", Positions)
@pytest.mark.parametrize("context", [7, 16, 128, 150])
def test_bits_per_byte_are_those_of_single_windows(model_config, build_model, positions, context):
    """However texts share rows and rows fall into tiles; a text's first byte counts, and an umlaut counts twice."""
    model = build_model(model_config(max_seq_len=context, positions=positions), vocab_size=257)
    score = evaluate(model, held_out(TEXTS, BYTES, context), CPU, sdpa)
    num_bytes = len("".join(TEXTS).encode())
    nats = sum(naive_nats(model, [END, *text.encode()], context) for text in TEXTS)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nats / num_bytes), rel=1e-4)


def test_a_model_that_knows_nothing_needs_the_bits_of_a_uniform_guess(model_config, build_model):
    """log2 of the padded vocabulary for each token, here one of two bytes."""
    pairs = SimpleNamespace(
        end_of_text=0,
        fingerprint="",
        byte_lengths=np.array([0, 2], np.uint16),
        encode=lambda texts: [[1] * (len(text) // 2) for text in texts],
    )
    model = build_model(model_config(max_seq_len=16), vocab_size=512, init_std=0.0)
    score = evaluate(model, held_out(["x" * 400, "y" * 30], pairs, 16), CPU, sdpa)
    assert score.bits_per_byte == pytest.approx(9 / 2, rel=1e-6)
    assert score.perplexity == pytest.approx(512, rel=1e-5)


def test_evaluation_leaves_no_trace_in_training(model_config, build_model):
    """The same score twice, no gradient, and the same weights."""
    model = build_model(model_config(max_seq_len=16), vocab_size=257)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    text = held_out(TEXTS, BYTES, 16)
    assert evaluate(model, text, CPU, sdpa) == evaluate(model, text, CPU, sdpa)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_a_hopeless_model_has_a_score_still(model_config, build_model):
    """A perplexity beyond floating point is cut off instead of ending the run."""
    model = build_model(model_config(max_seq_len=16), vocab_size=257, init_std=300.0)
    score = evaluate(model, held_out(TEXTS, BYTES, 16), CPU, sdpa)
    assert score.bits_per_byte > 1000 and math.isfinite(score.perplexity)


@pytest.mark.parametrize("command", ["gzip", "xz"])
def test_compressors_do_as_well_as_the_programs(command):
    """`gzip -9` and `xz -9` on all the text in one file; zlib's deflate differs from gzip's by about a percent."""
    words = ["byte", "token", "größe", "loss", "\n", "merge ", "stage, ", "0", "1"]
    generator = random.Random(0)
    texts = ["".join(generator.choices(words, k=5000)) for _ in range(3)]
    content = "".join(texts).encode()
    size = len(subprocess.run([command, "-9"], input=content, capture_output=True, check=True).stdout)
    prepared = held_out(texts, BYTES, 64)
    found = {"gzip": prepared.gzip_bits_per_byte, "xz": prepared.xz_bits_per_byte}[command]
    assert prepared.bytes == len(content)
    assert found == pytest.approx(8 * size / len(content), rel={"gzip": 0.02, "xz": 0.002}[command])


def test_texts_with_nothing_to_predict_make_no_row():
    """The end-of-text token that begins a text is given, not predicted."""
    prepared = held_out(["", "x", ""], BYTES, 8)
    (row,) = prepared.rows
    assert (row.tokens.tolist(), row.targets.tolist(), row.scored.tolist()) == ([END], [ord("x")], [True])
    assert row.tokens.dtype == row.targets.dtype == row.positions.dtype == np.int64
    assert prepared.tokens == 1


@pytest.mark.parametrize("context", [7, 64])
def test_parts_add_up_to_the_whole(model_config, build_model, context):
    """By position: bytes, tokens and bits of the parts are those of all; a token's position is what was before it."""
    model = build_model(model_config(max_seq_len=64), vocab_size=END + 1)
    texts = ["some text", "x", "y" * 90]
    prepared = held_out(texts, BYTES, context)
    score = evaluate(model, prepared, CPU, sdpa)
    assert sum(part.bytes for part in score.by_position) == sum(part.tokens for part in score.by_position) == 100
    bits = sum(part.bytes * part.bits_per_byte for part in score.by_position)
    assert bits == pytest.approx(100 * score.bits_per_byte)
    first = score.by_position[0]  # the first byte of each document, and where a window begins anew, none
    assert (first.name, first.tokens) == ("1", 3)
    assert max(int(part.name) for part in score.by_position) <= context
    assert prepared.documents.tolist() == [0] * 9 + [1] + [2] * 90
