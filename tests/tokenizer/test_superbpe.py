"""SuperBPE training, against a slow reference and against the rules that it promises to keep."""

import json
import os
import random
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from yxanul.tokenizer.superbpe import (
    END_OF_TEXT,
    MAX_WORDS,
    annotated,
    recipe,
    train_bpe,
    train_superbpe,
    training_record,
)

VOCAB_SIZE, TRANSITION = 4096, 2560

HARD_TEXTS = [
    "",
    " ",
    "\n",
    "\n\n\n    x\n\n",
    "a\r\nb\r\n\r\n\tc\rd",
    "".join(map(chr, range(0x300))),
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 \U0010ffff\ufeff\uffff",
    "e\u0301 a\u0308\u0323 \u0915\u094d\u0937 \u0e01\u0e33",
    "\u00a0\u2003\u3000\u200b\u2028 nbsp\u00a0runs\u00a0\u00a0",
    "日本語のテキスト 한국어 עברית العربية",
    "12345678901234567890 1.5e-10 ١٢٣٤",
    "key:   value:\tx:\n: ::  :",
    "if x:\n        return {'a': 1}  # trailing   \n",
    "A" * 5000 + " " * 5000 + "\n" * 5000,
]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [path.read_text(encoding="utf-8") for path in paths]


@pytest.fixture(scope="module")
def seen(documents) -> list[str]:
    return documents[::4]


@pytest.fixture(scope="module")
def unseen(documents) -> list[str]:
    return documents[2::8]


@pytest.fixture(scope="module")
def superbpe(seen) -> Tokenizer:
    return train_superbpe(seen, VOCAB_SIZE, TRANSITION)


@pytest.fixture(scope="module")
def bpe(seen) -> Tokenizer:
    return train_bpe(seen, VOCAB_SIZE)


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def superwords_of(tokenizer: Tokenizer, transition: int) -> list[str]:
    return [tokenizer.decode([i]) for i in range(transition - 1, tokenizer.get_vocab_size() - 1)]


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    tokens = sum(len(encoding) for encoding in tokenizer.encode_batch_fast(texts))
    return sum(len(text.encode()) for text in texts) / tokens


def is_allowed(tokenizer: Tokenizer, symbol: str) -> bool:
    text = tokenizer.decoder.decode([symbol])
    return ": " not in text and len(text.split()) <= MAX_WORDS


def replace_pair(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    result, i = [], 0
    while i < len(symbols):
        if tuple(symbols[i : i + 2]) == pair:
            result.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            result.append(symbols[i])
            i += 1
    return result


def slow_superwords(stage_one: Tokenizer, texts: list[str], amount: int):
    """Count all pairs anew for every merge: the definition, in O(text x merges)."""
    ids = {**stage_one.get_vocab()}
    del ids[END_OF_TEXT]
    pieces = Counter()
    for text in texts:
        pieces.update(piece for piece, _ in stage_one.pre_tokenizer.pre_tokenize_str(text))
    cut = {piece: [t.value for t in stage_one.model.tokenize(piece)] for piece in pieces}
    merges = []
    for _ in range(amount):
        counts = Counter()
        for piece, symbols in cut.items():
            for pair in pairwise(symbols):
                counts[pair] += pieces[piece]
        candidates = [
            (-count, ids[a], ids[b], (a, b))
            for (a, b), count in counts.items()
            if count >= 2 and is_allowed(stage_one, a + b)
        ]
        best = min(candidates)[-1]
        merges.append(best)
        assert "".join(best) not in ids
        ids["".join(best)] = len(ids)
        cut = {piece: replace_pair(symbols, best) for piece, symbols in cut.items()}
    return merges, cut


def random_lines(seed: int, letters: str, lines: int) -> str:
    draw = random.Random(seed)
    return "\n".join("".join(draw.choices(letters, k=draw.randrange(1, 40))) for _ in range(lines))


@pytest.mark.parametrize(
    "make_text",
    [
        lambda documents: documents[20][:12_000],
        lambda documents: random_lines(1, "a  b", 300),
        lambda documents: random_lines(2, "a: ", 300),
        lambda documents: random_lines(3, " -é\t\n7", 300),
    ],
    ids=["python", "short words", "colons and runs", "bytes and blanks"],
)
def test_superwords_equal_the_slow_definition(documents, make_text):
    texts = [make_text(documents)]
    transition, amount = 270, 120
    stage_one = train_superbpe(texts, transition, transition)
    fast = train_superbpe(texts, transition + amount, transition)

    merges, cut = slow_superwords(stage_one, texts, amount)

    assert merges_of(fast)[: -len(merges)] == merges_of(stage_one)
    assert merges_of(fast)[-len(merges) :] == merges
    encoded = {piece: [t.value for t in fast.model.tokenize(piece)] for piece in cut}
    assert encoded == cut


def test_vocabulary_is_exact_and_holds_every_byte(superbpe, bpe):
    for tokenizer in (superbpe, bpe):
        assert tokenizer.get_vocab_size() == VOCAB_SIZE
        assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB_SIZE))
        assert tokenizer.token_to_id(END_OF_TEXT) == VOCAB_SIZE - 1
        assert sum(len(token) == 1 for token in tokenizer.get_vocab()) == 256


def test_the_smallest_vocabulary_is_the_bytes():
    tokenizer = train_superbpe(["text"], 257, 257)
    assert len(tokenizer.encode("tokéns")) == 7


@pytest.mark.parametrize("text", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_hard_texts_survive(superbpe, bpe, text):
    for tokenizer in (superbpe, bpe):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_unseen_documents_survive(superbpe, unseen):
    encodings = superbpe.encode_batch_fast(unseen)
    assert superbpe.decode_batch([encoding.ids for encoding in encodings]) == unseen


def test_no_token_breaks_the_rules(superbpe):
    tokens = [superbpe.decode([i]) for i in range(VOCAB_SIZE - 1)]
    assert not [token for token in tokens if ": " in token]
    assert max(len(token.split()) for token in tokens) == MAX_WORDS


def test_superwords_cross_spaces_but_not_lines_or_numbers(superbpe):
    superwords = superwords_of(superbpe, TRANSITION)
    assert sum(len(word.split()) > 1 for word in superwords) > 300
    assert not [word for word in superwords if "\n" in word.lstrip("\n")]
    numbers = [word for word in superwords if any(c.isnumeric() for c in word)]
    assert all(word.isnumeric() and len(word) <= 3 for word in numbers)


def test_without_superwords_the_merges_are_those_of_plain_bpe(seen, bpe):
    assert merges_of(train_superbpe(seen, VOCAB_SIZE, VOCAB_SIZE)) == merges_of(bpe)


def test_same_texts_give_the_same_tokenizer(seen, superbpe):
    assert train_superbpe(seen, VOCAB_SIZE, TRANSITION).to_str() == superbpe.to_str()


def test_stock_loader_reads_the_file(superbpe, unseen, tmp_path):
    path = tmp_path / "tokenizer.json"
    superbpe.save(str(path))
    loaded = Tokenizer.from_file(str(path))
    for text in [*unseen[:5], *HARD_TEXTS]:
        assert loaded.encode(text).ids == superbpe.encode(text).ids


def test_superwords_pack_more_than_words_of_the_same_number(superbpe, bpe, unseen):
    assert bytes_per_token(superbpe, unseen) > 1.08 * bytes_per_token(bpe, unseen)


def test_too_little_text_says_what_it_reached():
    with pytest.raises(ValueError, match=r"only \d+ merges.*smaller vocab_size"):
        train_bpe(["too short a text"], 300)
    with pytest.raises(ValueError, match=r"only \d+ merges.*more text"):
        train_superbpe(["so short, so short, so short"], 1000, 260)
    with pytest.raises(ValueError, match="only 0 merges"):
        train_superbpe([], 258, 257)


def test_a_pair_seen_once_is_not_merged():
    for train in (
        lambda texts: train_bpe(texts, 258),
        lambda texts: train_superbpe(texts, 258, 257),
    ):
        assert train(["a-b a-b"]).get_vocab_size() == 258
        with pytest.raises(ValueError, match="only 0 merges"):
            train(["a-b c-d"])


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="256 bytes"):
        train_bpe(["text"], 256)
    with pytest.raises(ValueError, match="transition 400 exceeds vocab_size 300"):
        train_superbpe(["text"], 300, 400)


def test_words_are_those_of_the_stock_trainer(seen, bpe):
    stock = Tokenizer(models.BPE())
    stock.pre_tokenizer = bpe.pre_tokenizer
    alphabet = ByteLevel.alphabet()
    stock.train_from_iterator(
        seen,
        trainers.BpeTrainer(vocab_size=VOCAB_SIZE - 1, min_frequency=2, initial_alphabet=alphabet, show_progress=False),
    )
    assert merges_of(bpe) == merges_of(stock)


@pytest.mark.parametrize(
    "run",
    [
        lambda n: "A" * n,
        lambda n: " " * n + "x",
        lambda n: "\n" * n + "x",
        lambda n: "=-" * (n // 2),
        lambda n: "".join(random.Random(1).choices("0123456789", k=n)),
        lambda n: "".join(random.Random(2).choices("abcdefghijklmnopqrstuvwxyz", k=n)),
        lambda n: " ".join(random.Random(3).choices(["ab", "cd", "ef"], k=n // 3)),
    ],
    ids=["letter", "spaces", "line breaks", "ruler", "digits", "letters", "one line"],
)
def test_endless_runs_take_no_quadratic_time(documents, run):
    start = time.perf_counter()
    tokenizer = train_superbpe([documents[20], run(400_000)], 700, 600)
    assert time.perf_counter() - start < 20, "under a second; a minute if it were quadratic"
    text = run(5000)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_threads_and_hash_seeds_do_not_matter(tmp_path):
    script = """
import argparse, sys
from pathlib import Path
from yxanul.tokenizer.superbpe import train_superbpe
lines = Path(argparse.__file__).read_text(encoding="utf-8").splitlines(keepends=True)
train_superbpe(lines, 1200, 800).save(sys.argv[1])
"""
    files = []
    for seed, threads in (("1", "1"), ("2", "4")):
        files.append(tmp_path / f"{seed}.json")
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", script, files[-1]], check=True, env=environment, cwd=root)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_stock_loads_an_annotated_file_as_the_same_tokenizer(superbpe, seen, unseen):
    content = annotated(superbpe, {**recipe(seen, VOCAB_SIZE, TRANSITION), "corpus": {"name": "ö \n {}", "rows": [1]}})
    loaded = Tokenizer.from_str(content)
    assert loaded.to_str() == superbpe.to_str()
    for text in [*unseen[:5], *HARD_TEXTS]:
        assert loaded.encode(text).ids == superbpe.encode(text).ids


def test_the_record_is_read_back(superbpe):
    record = {"kind": "superbpe", "corpus": {"name": 'ö "quoted"', "shards": ["a", None, 1.5, True]}}
    assert training_record(annotated(superbpe, record)) == record
    assert training_record(superbpe.to_str()) is None
    with pytest.raises(TypeError):
        annotated(superbpe, {"corpus": Path()})
    with pytest.raises(json.JSONDecodeError):
        training_record("no JSON")


def test_the_recipe_counts_and_names_the_rules():
    made = recipe(["é", "ab"], VOCAB_SIZE, TRANSITION)
    assert (made["kind"], made["vocab_size"], made["transition"]) == ("superbpe", VOCAB_SIZE, TRANSITION)
    assert (made["documents"], made["bytes"]) == (2, 4)
    assert (made["rules"]["superword_max_words"], made["rules"]["superword_never_holds"]) == (MAX_WORDS, ": ")
    plain = recipe(["é", "ab"], VOCAB_SIZE, None)
    assert (plain["kind"], plain["transition"]) == ("bpe", None)
    assert not [rule for rule in plain["rules"] if "superword" in rule]


def test_the_recipe_holds_the_regexes_that_cut(superbpe, bpe):
    def regexes(tokenizer: Tokenizer) -> list[str]:
        steps = json.loads(tokenizer.to_str())["pre_tokenizer"]["pretokenizers"]
        return [step["pattern"]["Regex"] for step in steps if step["type"] == "Split"]

    rules = recipe([], VOCAB_SIZE, TRANSITION)["rules"]
    assert [rules["line_breaks"], rules["numbers"]] == regexes(superbpe)
    assert [rules["words"]] == regexes(bpe)


def test_progress_runs_from_0_to_1_in_each_stage(seen, superbpe):
    calls = []
    watched = train_superbpe(seen, VOCAB_SIZE, TRANSITION, lambda stage, done: calls.append((stage, done)))
    stages = {stage: [done for _, done in group] for stage, group in groupby(calls, key=lambda call: call[0])}
    assert list(stages) == ["words", "word merges", "cutting", "encoding", "superwords"]
    for done in stages.values():
        assert done[0] == 0 and done[-1] == 1 and done == sorted(done)
    assert len(stages["superwords"]) > 50
    assert watched.to_str() == superbpe.to_str()

    calls.clear()
    train_bpe(seen, 300, lambda stage, done: calls.append((stage, done)))
    assert {stage for stage, _ in calls} == {"words", "word merges"}
