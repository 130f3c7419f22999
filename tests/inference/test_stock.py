"""Exported models in stock `transformers`: the same logits, the same text, and back again."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from yxanul.config import FeedForward, Norm, Positions
from yxanul.errors import UserError
from yxanul.inference.foreign import open_stock
from yxanul.inference.stock import from_stock, to_stock
from yxanul.model.attention import sdpa
from yxanul.model.transformer import Packed

transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'yxanul[export]'")

PLAIN = {"norm": Norm.layernorm, "feed_forward": FeedForward.gelu, "positions": Positions.learned}
SHAPES = {
    "qwen3": {},
    "qwen3, as many key heads": {"num_kv_heads": 4},
    "llama": {"qk_norm": False},
    "llama, factorized": {"qk_norm": False, "embedding_rank": 8},
    "qwen3, factorized": {"embedding_rank": 8, "rope_theta": 500.0},
    "gpt2": {**PLAIN, "qk_norm": False, "num_kv_heads": 4},
    "qwen3, untied": {"tied": False},
    "llama, untied": {"qk_norm": False, "tied": False},
    "gpt2, untied": {**PLAIN, "qk_norm": False, "num_kv_heads": 4, "tied": False},
    "gpt2, relu squared": {**PLAIN, "qk_norm": False, "num_kv_heads": 4, "feed_forward": FeedForward.relu2},
}


@pytest.fixture
def config_of(compose, model_config, small_tokenizer):
    """Configurations whose model is small: `config_of(qk_norm=False)`."""
    base = compose("experiment=quickstart")
    tokenizer = replace(base.tokenizer, vocab_size=small_tokenizer.vocab_size)
    return lambda **changes: replace(base, tokenizer=tokenizer, model=model_config(**changes))


@pytest.fixture
def exported(config_of, build_model, small_tokenizer, tmp_path):
    """Writes a model as a folder, and gives both: `exported(qk_norm=False)`."""

    def write(**changes):
        config = config_of(**changes)
        model = build_model(config.model, config.tokenizer.vocab_size, init_std=0.1)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 1:  # norms that do something
                    weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
                elif not weight.any():  # a head of its own, which begins at zero
                    weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        stock = to_stock(config, model, small_tokenizer.end_of_text)
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(stock.config))
        save_file(stock.tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "tokenizer.json").write_text(small_tokenizer.library.to_str())
        return config, model, folder

    return write


def some_ids(number, vocab_size):
    return torch.randint(vocab_size, (number,), generator=torch.Generator().manual_seed(1))


def logits_of(model, ids):
    packed = Packed(ids, torch.arange(len(ids)), sdpa([0], len(ids), len(ids)))
    return model.next_token_logits(packed, torch.arange(len(ids)))


@pytest.mark.parametrize("shape", SHAPES)
def test_stock_transformers_gives_the_same_logits_and_text(exported, shape):
    config, model, folder = exported(**SHAPES[shape])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(theirs).__name__.lower().startswith(shape.split(",")[0])
    ids = some_ids(40, config.tokenizer.vocab_size)
    ours = logits_of(model, ids)
    with torch.no_grad():
        assert (theirs(ids[None]).logits[0] - ours).abs().max() < 1e-4
    assert ours.std() > 0.05  # there is something to agree on
    text = theirs.generate(ids[None, :10], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)[0]
    greedy = ids[:10]
    for _ in range(20):
        greedy = torch.cat((greedy, logits_of(model, greedy)[-1:].argmax(1)))
    assert text.tolist() == greedy.tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_left_for_transformers_to_make_up(exported, shape):
    _, _, folder = exported(**SHAPES[shape])
    _, said = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(said[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if "factorized" not in shape])
def test_a_folder_is_read_back_to_the_same_weights(exported, build_model, shape):
    config, model, folder = exported(**SHAPES[shape])
    other = build_model(config.model, config.tokenizer.vocab_size, seed=5)
    from_stock(config, other, folder)
    ids = some_ids(40, config.tokenizer.vocab_size)
    assert torch.equal(logits_of(other, ids), logits_of(model, ids))


def test_a_folder_is_judged_as_the_model_that_it_was(exported, small_tokenizer):
    _, model, folder = exported()
    opened = open_stock(folder, torch.device("cpu"))
    assert opened.context == 64 and opened.tokenizer.vocab_size == small_tokenizer.vocab_size
    tokens = some_ids(30, small_tokenizer.vocab_size)
    positions = torch.cat((torch.arange(12), torch.arange(18)))
    packed = Packed(tokens, positions, sdpa([0, 12], 30, 30))
    rows = torch.tensor([0, 5, 11, 12, 29])
    targets = tokens.roll(-1)[rows]
    expected = torch.nn.functional.cross_entropy(model.next_token_logits(packed, rows), targets, reduction="none")
    assert torch.allclose(opened.model.token_losses(packed, targets, rows), expected, atol=1e-4)


REFUSED = {
    "gelu": ({"feed_forward": FeedForward.gelu}, "model.feed_forward=gelu: .* with norm=rmsnorm, positions=rotary"),
    "relu squared": (
        {"feed_forward": FeedForward.relu2},
        "model.feed_forward=relu2: .* with norm=rmsnorm, positions=rotary",
    ),
    "norm": ({"norm": Norm.layernorm}, "model.norm=layernorm: .* with feed_forward=swiglu, positions=rotary"),
    "learned": ({"positions": Positions.learned}, "model.positions=learned: .* with norm=rmsnorm"),
    "normalized": (PLAIN, "model.qk_norm=true: .* with model.positions=learned"),
    "grouped": ({**PLAIN, "qk_norm": False}, "model.num_kv_heads=2: .* with model.positions=learned"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_class_has_is_refused_by_name(config_of, build_model, kind):
    changes, line = REFUSED[kind]
    config = config_of(**changes)
    with pytest.raises(UserError, match=line) as caught:
        to_stock(config, build_model(config.model, config.tokenizer.vocab_size), 0)
    assert "\n" not in str(caught.value)


def test_counted_ngrams_are_refused(config_of, build_model, compose):
    config = replace(config_of(), ngram=compose("ngram=bigram").ngram)
    with pytest.raises(UserError, match=r"ngram.order=2"):
        to_stock(config, build_model(config.model, config.tokenizer.vocab_size), 0)


def test_another_architecture_or_shape_is_refused(exported, config_of, build_model):
    _, _, folder = exported()
    for changes, line in (
        ({"qk_norm": False}, "is a qwen3, and this model a llama"),
        ({"hidden_size": 64}, "hidden_size is 32 there and 64 here"),
        ({"rope_theta": 500.0}, "rope_theta is 10000.0 there and 500.0 here"),
        ({"embedding_rank": 8}, "model.embedding_rank=8"),
    ):
        other = config_of(**changes)
        with pytest.raises(UserError, match=line):
            from_stock(other, build_model(other.model, other.tokenizer.vocab_size), folder)


def test_weights_without_a_place_are_refused(exported, build_model):
    config, model, folder = exported(**SHAPES["gpt2"])
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.h.0.ln_1.bias"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"transformer.h.0.ln_1.bias holds weights that this model has no place for"):
        from_stock(config, model, folder)


def test_a_head_of_its_own_is_refused(exported):
    config, model, folder = exported()
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"its head is not its embedding, .*model.tied=false"):
        from_stock(config, model, folder)


def damaged_config(folder):
    (folder / "config.json").write_text("{")


def unknown_type(folder):
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"model_type": "nobody", "architectures": ["Nobody"]}))


def pickles(folder):
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_context(folder):
    described = json.loads((folder / "config.json").read_text())
    del described["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(described))


def small_model(folder):
    described = json.loads((folder / "config.json").read_text()) | {"vocab_size": 100}
    (folder / "config.json").write_text(json.dumps(described))
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:100].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (damaged_config, "config.json: cannot be read"),
        (unknown_type, "transformers cannot read it"),
        (pickles, r"holds no \*.safetensors; pickled weights"),
        (without_context, "says no length of the context"),
        (small_model, "its tokenizer has 512 entries and its model 100"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: is no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "transformers cannot read it"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line(exported, damage, line):
    _, _, folder = exported()
    damage(folder)
    with pytest.raises(UserError, match=line) as caught:
        open_stock(folder, torch.device("cpu"))
    assert "\n" not in str(caught.value)
