"""The bulk encoder gives the stock library's ids, on every text; what cannot be cut is left to the stock library."""

import argparse
import json
import random
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from yxanul.config import TokenizerConfig, TokenizerKind
from yxanul.tokenizer import across, encode
from yxanul.tokenizer.encode import AtomEncoder, StockEncoder, build_encoder, stock_encoder
from yxanul.tokenizer.load import open_tokenizer
from yxanul.tokenizer.superbpe import train_bpe, train_superbpe

PUBLISHED = {"t80k": 200_005, "t180k": 200_005, "bpe200k": 200_005, "gpt2": 50_257}
EVERY_CHARACTER = "".join(map(chr, chain(range(0xD800), range(0xE000, 0x3000 + 0xE000), range(0x1F300, 0x1F700))))
SNIPPETS = [
    *(" of the", ": ", "it's", " 'tis", "(the", "http://a.b/c?d=e&f", "def f(x):\n        return x", "a" * 400),
    *("\n", "\n\n    ", " \n", "\r\n", "\t", "  ", "\u00a0 ", "\u3000 x", "\x00", "\x85"),
    *(" 1234", "²", "½ ", "٣٤٥", "a1b2", "3.14,"),
    *("é", "e\u0301 ", "naïve,", "”.", "—", "👩\u200d👩\u200d👧", "你好 世界", "Привет, мир"),
    *("x<|endoftext|>y", " <|padding|>", "|||IP_ADDRESS|||"),
]
HARD = {
    "empty": "",
    "digits": "1" * 1000 + " " + "12345 " * 50 + "٣" * 700,
    "all control characters": "".join(map(chr, [*range(32), *range(127, 160)])) * 3,
    "every character": EVERY_CHARACTER,
    "emoji and combining marks": "👩‍👩‍👧‍👦 🏳️‍🌈 é̀̂ क्ष ก็ ﷽" * 20,
    "mixed scripts": "Привет мир 你好世界 مرحبا שלום हिन्दी ไทย 한국어 " * 20,
    "special tokens": "a<|endoftext|>b |||IP_ADDRESS||| c |||PHONE_NUMBER|||<|padding|>",
    "one superword after the other": "of the " * 2000,
    "a space at the end": "it ends: ",
    "spaces between": "a  b   c \n d\t e\u00a0 f \u00a0g . h , i",
}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request, shared):
    path = shared / "tokenizers" / request.param / "tokenizer.json"
    config = TokenizerConfig(
        kind=TokenizerKind.hub,
        path=None,
        repo=None,
        revision=None,
        vocab_size=PUBLISHED[request.param],
        transition=None,
        train_bytes=None,
        end_of_text="<|endoftext|>",
        bytes_per_token=1.0,
    )
    tokenizer = open_tokenizer(path, config)
    encoder = tokenizer.bulk_encoder()
    assert isinstance(encoder, AtomEncoder)
    return tokenizer, encoder


@pytest.fixture(scope="module", params=[train_bpe, lambda texts, size: train_superbpe(texts, size, 400)])
def trained(request):
    """Small tokenizers of ours, whose superwords reach across punctuation and digits."""
    text = Path(argparse.__file__).read_text(encoding="utf-8") + "".join(SNIPPETS) * 3
    return request.param([text], 600)


def encoder_of(library: Tokenizer) -> encode.Encoder:
    library.encode_special_tokens = True
    description = json.loads(library.to_str())
    lengths = np.zeros(1 + max(library.get_vocab().values()), dtype=np.uint16)
    for token, index in library.get_vocab(with_added_tokens=False).items():
        lengths[index] = len(token)
    return build_encoder(stock_encoder(library, description), description, lengths)


def assert_stock_ids(library: Tokenizer, encoder: encode.Encoder, texts: list[str]) -> None:
    ids, begins = encoder.encode(texts)
    assert begins[0] == 0 and begins[-1] == len(ids) and len(begins) == len(texts) + 1
    for text, begin, end in zip(texts, begins[:-1], begins[1:], strict=True):
        assert ids[begin:end].tolist() == library.encode(text, add_special_tokens=False).ids, text[:100]


@pytest.mark.parametrize("name", HARD)
def test_hard_texts(published, name):
    tokenizer, encoder = published
    assert_stock_ids(tokenizer.library, encoder, [HARD[name]])
    assert tokenizer.end_of_text not in encoder.encode([HARD[name]])[0]


def test_hard_texts_together(published):
    tokenizer, encoder = published
    assert_stock_ids(tokenizer.library, encoder, [*HARD.values(), *reversed(HARD.values())])


@pytest.mark.parametrize("character", ["a", " ", "letters"])
def test_a_megabyte_without_a_space_or_of_spaces(published, character):
    tokenizer, encoder = published
    alphabet = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)
    assert_stock_ids(
        tokenizer.library, encoder, ["".join(alphabet) if character == "letters" else character * 1_000_000]
    )


@pytest.mark.parametrize("length", [200_000, 200_001, 200_002])
def test_a_run_of_200_000_digits(published, length):
    """The stock library would not end; by the rule, a run is divided by threes from its end."""
    tokenizer, encoder = published
    digits = "".join(random.Random(length).choices("0123456789", k=length))
    whole = tokenizer.path.parent.name == "gpt2"  # which has no such rule, and takes a run as one word
    first = length % 3
    pieces = [digits] if whole else [digits[:first], *(digits[i : i + 3] for i in range(first, length, 3))]
    expected = [id_ for piece in ["x ", *pieces, " y"] for id_ in tokenizer.library.encode(piece).ids]
    if whole:
        expected = tokenizer.library.encode(f"x {digits} y").ids
    elif tokenizer.path.parent.name == "bpe200k":
        expected = [*tokenizer.library.encode("x ").ids, *expected[len(tokenizer.library.encode("x ").ids) :]]
    for each in (encoder, tokenizer.stock):
        assert each.encode([f"x {digits} y"])[0].tolist() == expected


@settings(max_examples=150)
@given(texts=st.lists(st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=4))).map("".join), max_size=4))
def test_any_texts(published, texts):
    assert_stock_ids(published[0].library, published[1], texts)


@settings(max_examples=150)
@given(texts=st.lists(st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=4))).map("".join), max_size=4))
def test_any_texts_with_tokenizers_of_ours(trained, texts):
    encoder = encoder_of(trained)
    assert isinstance(encoder, AtomEncoder)
    assert_stock_ids(trained, encoder, texts)


@pytest.mark.parametrize("corpus", ["openstax/openstax-ccby-val*", "fineweb_edu_sample/*", "docs/docs-00000*"])
def test_real_documents(published, shared, corpus):
    tokenizer, encoder = published
    for file in shared.glob(f"{corpus}.parquet"):
        assert_stock_ids(tokenizer.library, encoder, parquet.read_table(file)["text"].to_pylist()[:400])


@pytest.mark.slow
def test_every_real_document(published, shared):
    tokenizer, encoder = published
    for file in sorted(shared.rglob("*.parquet")):
        texts = parquet.read_table(file)["text"].to_pylist()
        encodings = tokenizer.library.encode_batch_fast(texts, add_special_tokens=False)
        ids, begins = encoder.encode(texts)
        assert ids.tolist() == [id_ for encoding in encodings for id_ in encoding.ids]
        assert np.diff(begins).tolist() == [len(encoding) for encoding in encodings]


def test_a_full_table_is_begun_anew(trained, monkeypatch):
    monkeypatch.setattr(encode, "MAX_TABLE_BYTES", 50)
    encoder = encoder_of(trained)
    for seed in range(5):
        assert_stock_ids(trained, encoder, ["".join(random.Random(seed).choices(SNIPPETS, k=30))] * 2)


def test_stretches_too_long_go_to_the_stock_library(trained, monkeypatch):
    monkeypatch.setattr(across, "MAX_STRETCH", 2)
    encoder = encoder_of(trained)
    texts = ["".join(random.Random(seed).choices(SNIPPETS, k=30)) for seed in range(5)]
    assert_stock_ids(trained, encoder, ["", *texts, "the end of the text"])


def changed(library: Tokenizer, **parts) -> Tokenizer:
    copy = Tokenizer.from_str(library.to_str())
    for name, value in parts.items():
        setattr(copy, name, value)
    return copy


def byte_level(*steps):
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


OTHERS = {
    "a normalizer": {"normalizer": normalizers.NFKC()},
    "an unknown split": {"pre_tokenizer": byte_level(pre_tokenizers.Split(Regex(r"\w+ \w+"), "isolated"))},
    "a split that drops text": {"pre_tokenizer": byte_level(pre_tokenizers.Split(Regex(r"\n+"), "removed"))},
    "another kind of split": {"pre_tokenizer": byte_level(pre_tokenizers.Punctuation())},
    "a space put before": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
}


@pytest.mark.parametrize("parts", OTHERS.values(), ids=OTHERS)
def test_a_tokenizer_of_another_make_is_left_to_the_stock_library(trained, parts):
    library = changed(trained, **parts)
    encoder = encoder_of(library)
    assert isinstance(encoder, StockEncoder)
    assert_stock_ids(library, encoder, [*SNIPPETS, "".join(SNIPPETS)])


@pytest.mark.parametrize("options", [{"dropout": 0.5}, {"ignore_merges": True}, {"byte_fallback": True}])
def test_a_model_of_another_make_is_left_to_the_stock_library(trained, options):
    model = json.loads(trained.to_str())["model"]
    library = changed(trained, model=models.BPE(model["vocab"], [tuple(pair) for pair in model["merges"]], **options))
    assert isinstance(encoder_of(library), StockEncoder)


def test_merges_out_of_order_are_left_to_the_stock_library():
    vocabulary = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for token in ("ab", "abc", "bc"):
        vocabulary[token] = len(vocabulary)
    for merges in ([("ab", "c"), ("a", "b")], [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]):
        library = Tokenizer(models.BPE(vocabulary, merges))
        library.pre_tokenizer, library.decoder = byte_level(), decoders.ByteLevel()
        encoder = encoder_of(library)
        assert isinstance(encoder, StockEncoder)
        assert_stock_ids(library, encoder, ["abcabc bcab"])


def test_added_tokens_that_are_not_special_are_found(trained):
    library = changed(trained)
    library.add_tokens([AddedToken("<user name>", normalized=False), AddedToken("x.y", normalized=True)])
    encoder = encoder_of(library)
    assert isinstance(encoder, AtomEncoder)
    assert_stock_ids(library, encoder, ["a <user name> b", "ax.yb x.", "<user name><user name>", "no such thing", ""])
