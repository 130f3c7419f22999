"""Loading and training tokenizers: lossless, its bytes counted exactly, trained once, bad files refused."""

import hashlib
import json
import random
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import errors
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from yxanul import cli
from yxanul.config import TokenizerConfig, TokenizerKind
from yxanul.errors import ConfigError, UserError
from yxanul.tokenizer import load
from yxanul.tokenizer.load import load_tokenizer
from yxanul.tokenizer.superbpe import training_record

PUBLISHED = ["t80k", "t180k", "bpe200k", "gpt2"]
HARD_TEXTS = [
    "",
    " ",
    "\n\n\n    x\n\n",
    "plain English text, and then some.",
    "a\r\nb\r\n\r\n\tc\rd",
    "".join(map(chr, range(0x300))),
    "👩‍👩‍👧‍👦 🇩🇪 👍🏽 \U0010ffff\ufeff\uffff",
    "e\u0301 a\u0308\u0323 \u0915\u094d\u0937",
    "日本語のテキスト 한국어 עברית العربية",
    "12345678901234567890 1.5e-10 ١٢٣٤",
    "key:   value:\tx:\n: ::  :",
    "A" * 500 + " " * 500 + "\n" * 500,
    "<|endoftext|>",
    "a<|endoftext|><|endoftext|> b",
    "<|padding|> |||IP_ADDRESS||| x|||EMAIL_ADDRESS|||y |||PHONE_NUMBER|||",
]


def trained_config(**changes) -> TokenizerConfig:
    values = {
        "kind": TokenizerKind.superbpe,
        "path": None,
        "repo": None,
        "revision": None,
        "vocab_size": 600,
        "transition": 500,
        "train_bytes": 60_000,
        "end_of_text": "<|endoftext|>",
        "bytes_per_token": 4.0,
    }
    return TokenizerConfig(**(values | changes))


def from_conf(name: str, **changes) -> TokenizerConfig:
    values = yaml.safe_load((cli.config_dir() / "tokenizer" / f"{name}.yaml").read_text())
    return TokenizerConfig(**(values | {"kind": TokenizerKind(values["kind"])} | changes))


def never():
    raise AssertionError("the documents were asked for")


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    """Short documents, so that a sample of them is a choice."""
    text = (Path(sysconfig.get_path("stdlib")) / "typing.py").read_text(encoding="utf-8")
    return [text[start : start + 1500] for start in range(0, len(text), 1500)]


# Published tokenizers


@pytest.fixture(scope="session", params=PUBLISHED)
def published(request, shared):
    config = from_conf(request.param, path=str(shared / "tokenizers" / request.param / "tokenizer.json"))
    return config, load_tokenizer(config, Path("unused"), never, "")


def check_exact(tokenizer, texts: list[str]) -> None:
    """Every text comes back, its bytes are counted, and nothing in it is taken for an end of text."""
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
        assert tokenizer.end_of_text not in ids


def test_published_tokenizers_are_what_conf_says(published):
    config, tokenizer = published
    assert tokenizer.vocab_size == config.vocab_size == len(tokenizer.byte_lengths)
    assert tokenizer.library.id_to_token(tokenizer.end_of_text) == config.end_of_text
    assert tokenizer.byte_lengths[tokenizer.end_of_text] == 0
    assert tokenizer.path == Path(config.path)


@pytest.mark.parametrize("text", HARD_TEXTS, ids=range(len(HARD_TEXTS)))
def test_published_tokenizers_are_exact(published, text):
    check_exact(published[1], [text])


def test_published_tokenizers_are_exact_on_real_text(published, shared, real_texts):
    check_exact(published[1], real_texts)


@pytest.fixture(scope="module")
def real_texts(shared) -> list[str]:
    import pyarrow.parquet as parquet

    file = shared / "openstax" / "openstax-ccby-val-00000-of-00001.parquet"
    return parquet.read_table(file, columns=["text"])["text"].to_pylist()[::10]


# Trained tokenizers


@pytest.mark.parametrize("kind", [TokenizerKind.superbpe, TokenizerKind.bpe])
def test_a_tokenizer_is_trained_at_first_use_and_kept(corpus, tmp_path, kind):
    config = trained_config(kind=kind)
    first = load_tokenizer(config, tmp_path, lambda: corpus, "print")
    stat = first.path.stat()
    second = load_tokenizer(config, tmp_path, never, "print")
    assert (second.path, second.fingerprint) == (first.path, first.fingerprint)
    assert first.path.stat().st_mtime_ns == stat.st_mtime_ns
    assert first.path.is_relative_to(tmp_path)
    assert first.vocab_size == config.vocab_size
    check_exact(second, [*HARD_TEXTS, *corpus])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.seal.json"])
def test_a_tokenizer_with_a_bit_turned_is_trained_again(corpus, tmp_path, name):
    config = trained_config(kind=TokenizerKind.bpe)
    first = load_tokenizer(config, tmp_path, lambda: corpus, "print")
    whole = first.path.read_bytes()
    damaged = first.path.with_name(name)
    content = damaged.read_bytes()
    damaged.write_bytes(content.replace(b"a", b"b", 1))
    again = load_tokenizer(config, tmp_path, lambda: corpus, "print")
    assert again.fingerprint == first.fingerprint
    assert again.path.read_bytes() == whole


@given(text=st.text())
def test_any_text_is_exact(small_tokenizer, text):
    check_exact(small_tokenizer, [text])


@pytest.mark.parametrize(
    ("changes", "print_"),
    [
        ({"vocab_size": 601}, "print"),
        ({"transition": 510}, "print"),
        ({"train_bytes": 50_000}, "print"),
        ({"kind": TokenizerKind.bpe}, "print"),
        ({}, "other print"),
    ],
)
def test_whatever_goes_into_a_tokenizer_is_in_its_name(corpus, tmp_path, changes, print_):
    path = load_tokenizer(trained_config(), tmp_path, lambda: corpus, "print").path
    other = load_tokenizer(trained_config(**changes), tmp_path, lambda: corpus, print_).path
    assert other != path and other.parent.parent == path.parent.parent


@pytest.mark.parametrize("at_most", [1, 10_000, 60_000, 10**9])
def test_the_training_sample_is_the_same_in_any_order(corpus, at_most):
    sample = load.sample(corpus, at_most)
    for seed in range(3):
        assert load.sample(random.Random(seed).sample(corpus, len(corpus)), at_most) == sample
    size = sum(len(text.encode()) for text in sample)
    smallest = min(len(text.encode()) for text in sample)
    assert set(sample) <= set(corpus)
    assert size >= at_most > size - max(len(text.encode()) for text in sample) or len(sample) == len(corpus)
    assert smallest > 0


def test_the_same_documents_in_another_order_give_the_same_tokenizer(corpus, tmp_path):
    config = trained_config(train_bytes=30_000)
    one = load_tokenizer(config, tmp_path / "one", lambda: corpus, "print")
    other = load_tokenizer(config, tmp_path / "other", lambda: corpus[::-1], "print")
    assert one.path.read_bytes() == other.path.read_bytes()


def test_too_little_text_names_the_key(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=600: ") as error:
        load_tokenizer(trained_config(), tmp_path, lambda: ["hardly", "anything"], "print")
    one_line(error)
    assert not list(tmp_path.rglob("*.json*"))


def test_a_folder_with_a_tokenizer_is_named_as_well_as_its_file(small_tokenizer, tmp_path):
    config = trained_config(path=str(small_tokenizer.path.parent), vocab_size=512)
    assert load_tokenizer(config, tmp_path, never, "").path == small_tokenizer.path


def test_a_trained_tokenizer_says_how_it_was_made(corpus, tmp_path):
    config = trained_config(train_bytes=30_000)
    made = load_tokenizer(config, tmp_path, lambda: corpus, "print")
    copied = load_tokenizer(config, tmp_path, lambda: corpus, "print of a copy")
    assert copied.path != made.path and copied.fingerprint == made.fingerprint
    record = training_record(made.path.read_text())
    assert (record["kind"], record["vocab_size"]) == ("superbpe", 600)
    texts = load.sample(corpus, 30_000)
    assert record["documents"] == len(texts)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()
    assert record["corpus"] == {"sha256": digest, "train_bytes": 30_000}


def test_truncation_and_padding_of_a_file_are_not_for_training_text(small_tokenizer, tmp_path):
    library = Tokenizer.from_file(str(small_tokenizer.path))
    library.enable_truncation(8)
    library.enable_padding(length=16)
    library.save(str(tmp_path / "tokenizer.json"))
    config = trained_config(path=str(tmp_path), vocab_size=512)
    tokenizer = load_tokenizer(config, tmp_path, never, "")
    texts = ["short", "a long text, " * 20]
    assert tokenizer.encode(texts) == small_tokenizer.encode(texts)


# Files that will not do


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ConfigError) as error:
            load_tokenizer(trained_config(path=str(path)), tmp_path, never, "")
        assert one_line(error).startswith(f"tokenizer.path={path}: ")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"{}",
        b"[1, 2]",
        b'{"version": "1.0"}',
        b"\xff\xfe\x00",
        b'{"model": {"type": "None"}}',
        b"\x1f\x8b",
    ],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_tokenizer(trained_config(path=str(file)), tmp_path, never, "")
    assert one_line(error).startswith(f"{file}: is no tokenizer.json")


def test_a_truncated_tokenizer_is_refused(small_tokenizer, tmp_path):
    file = tmp_path / "tokenizer.json"
    content = small_tokenizer.path.read_bytes()
    for keep in (1, len(content) // 2, len(content) - 3):
        file.write_bytes(content[:keep])
        with pytest.raises(UserError, match=r"is no tokenizer\.json"):
            load_tokenizer(trained_config(path=str(file)), tmp_path, never, "")


@pytest.mark.parametrize(
    ("configured", "fits"), [(511, False), (512, True), (575, True), (576, False), (200_005, False)]
)
def test_a_tokenizer_of_another_size_is_refused(small_tokenizer, tmp_path, configured, fits):
    """Some ids may be spare, as in published models; more is another tokenizer."""
    config = trained_config(path=str(small_tokenizer.path), vocab_size=configured)
    if fits:
        assert load_tokenizer(config, tmp_path, never, "").vocab_size == 512
        return
    with pytest.raises(ConfigError) as error:
        load_tokenizer(config, tmp_path, never, "")
    message = one_line(error)
    assert message.startswith(f"tokenizer.vocab_size={configured}: ")
    assert str(small_tokenizer.path) in message and "512 entries" in message


def test_a_tokenizer_without_bytes_is_refused(tmp_path):
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "word": 1}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    config = trained_config(path=str(tmp_path / "tokenizer.json"), vocab_size=3)
    with pytest.raises(UserError, match="no byte-level BPE"):
        load_tokenizer(config, tmp_path, never, "")


@pytest.mark.parametrize("text", ["<|endoftext|>", "x<|endoftext|>y", " <|im_start|> ", "<user>"])
def test_special_tokens_and_added_ones_in_a_text_are_text(small_tokenizer, tmp_path, text):
    """Special ones are taken apart; what a file adds without calling it special has its bytes counted."""
    library = Tokenizer.from_file(str(small_tokenizer.path))
    library.add_special_tokens(["<|im_start|>"])
    library.add_tokens([AddedToken("<user>", normalized=True)])
    library.save(str(tmp_path / "tokenizer.json"))
    config = trained_config(path=str(tmp_path / "tokenizer.json"), vocab_size=514)
    tokenizer = load_tokenizer(config, tmp_path, never, "")
    check_exact(tokenizer, [text])
    [ids] = tokenizer.encode([text])
    assert library.token_to_id("<|im_start|>") not in ids


def test_a_file_without_end_of_text_gets_one(small_tokenizer, tmp_path):
    content = json.loads(small_tokenizer.path.read_text())
    content["added_tokens"] = []
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    tokenizer = load_tokenizer(trained_config(path=str(file), vocab_size=512), tmp_path, never, "")
    assert tokenizer.end_of_text == 511 and tokenizer.vocab_size == 512
    assert tokenizer.byte_lengths[511] == 0
    check_exact(tokenizer, HARD_TEXTS)


def test_ids_with_gaps_are_ids(small_tokenizer, tmp_path):
    """Published files leave ids out; whatever id occurs must have its length."""
    content = json.loads(small_tokenizer.path.read_text())
    vocabulary = content["model"]["vocab"]
    [last] = [token for token, index in vocabulary.items() if index == 510]
    vocabulary[last] = 525
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    tokenizer = load_tokenizer(trained_config(path=str(file), vocab_size=530), tmp_path, never, "")
    assert tokenizer.vocab_size == len(tokenizer.byte_lengths) == 526
    assert tokenizer.encode([small_tokenizer.decode([510])]) == [[525]]
    check_exact(tokenizer, [small_tokenizer.decode([510]), *HARD_TEXTS])


def test_the_fingerprint_is_of_the_content(small_tokenizer, tmp_path):
    copy, other = tmp_path / "copy.json", tmp_path / "other.json"
    shutil.copy(small_tokenizer.path, copy)
    other.write_text(copy.read_text() + "\n")
    config = trained_config(vocab_size=512)
    prints = [
        load_tokenizer(replace(config, path=str(file)), tmp_path, never, "").fingerprint for file in (copy, other)
    ]
    assert prints[0] == small_tokenizer.fingerprint != prints[1]


# The hub


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("no network\nat all"),
        errors.OfflineModeIsEnabled("offline"),
        errors.HFValidationError("bad name"),
        ConnectionError("reset"),
        TimeoutError("slow"),
        PermissionError("read-only home"),
        type("ReadTimeout", (Exception,), {})("of an HTTP library of its own"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failing_hub_is_one_line_with_ways_out(tmp_path, monkeypatch, error):
    asked = []

    def fail(*arguments, **keywords):
        asked.append((arguments, keywords))
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    config = trained_config(kind=TokenizerKind.hub, repo="UW/some", revision="abc")
    with pytest.raises(UserError) as raised:
        load_tokenizer(config, tmp_path, never, "")
    for piece in ("UW/some", type(error).__name__, "tokenizer.path=FILE", "tokenizer=superbpe8k"):
        assert piece in one_line(raised)
    wanted = {"repo_id": "UW/some", "filename": "tokenizer.json", "revision": "abc"}
    assert all(keywords | wanted == keywords for _, keywords in asked) and asked


def test_a_downloaded_tokenizer_is_read(small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(small_tokenizer.path))
    config = trained_config(kind=TokenizerKind.hub, repo="UW/some", vocab_size=512)
    assert load_tokenizer(config, tmp_path, never, "").fingerprint == small_tokenizer.fingerprint


def test_a_hub_that_is_not_there_is_known_at_once(tmp_path, monkeypatch):
    """Its own client would try a download for half a minute."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = []
    real = huggingface_hub.hf_hub_download
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **wanted: asked.append(wanted) or real(**wanted))
    config = trained_config(kind=TokenizerKind.hub, repo="UW/some")
    with pytest.raises(UserError, match="cannot be downloaded"):
        load_tokenizer(config, tmp_path, never, "")
    assert [wanted.get("local_files_only") for wanted in asked] == [True]


def test_a_local_file_goes_before_the_hub(small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: never())
    config = trained_config(kind=TokenizerKind.hub, repo="UW/some", vocab_size=512, path=str(small_tokenizer.path))
    assert load_tokenizer(config, tmp_path, never, "").fingerprint == small_tokenizer.fingerprint
