"""Every file of conf/: it composes, it means what it says, and every experiment plans."""

from itertools import pairwise

import pytest
import torch
import yaml

from yxanul.composition import config_dir, to_plain
from yxanul.hardware import planned_device
from yxanul.planning import make_plan
from yxanul.precision.linear import build_precision
from yxanul.validation import validate

CONF = config_dir()
CHOICES = sorted(
    (path.parent.name, path.stem)
    for path in CONF.glob("*/*.yaml")
    if path.parent.name not in ("hydra", "experiment", "sweep")
)
EXPERIMENTS = sorted(
    str(path.relative_to(CONF / "experiment").with_suffix("")) for path in (CONF / "experiment").rglob("*.yaml")
)
PEAKS = ("hardware.peak_tflops.fp32=1", "hardware.peak_tflops.bf16=1")  # nothing to measure


def choices_of(group: str) -> list[str]:
    return [choice for of, choice in CHOICES if of == group]


def assert_agrees(written, composed, where: str) -> None:
    """Every value that a file writes is the composed one."""
    if isinstance(written, dict):
        for key, value in written.items():
            assert_agrees(value, composed[key], f"{where}.{key}")
    elif isinstance(written, list):
        assert len(composed) == len(written), where
        for index, value in enumerate(written):
            assert_agrees(value, composed[index], f"{where}.{index}")
    elif isinstance(composed, float):
        assert float(written) == composed, where  # YAML 1.1 reads 1e-6 as a string
    elif "${" not in str(written):
        assert written == composed, where


def test_conf_is_walked():
    """The tests below are about something."""
    assert {"model", "precision", "tokenizer", "curriculum", "hardware", "data"} <= {group for group, _ in CHOICES}
    assert {"quickstart", "research", "production", "baseline"} <= set(EXPERIMENTS)


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids="=".join)
def test_every_choice_composes_to_what_its_file_says(compose, group, choice):
    written = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text())
    written.pop("defaults", None)
    assert_agrees(written, to_plain(compose(f"{group}={choice}"))[group], f"{group}={choice}")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_to_what_its_file_says(compose, experiment):
    written = yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text())
    for default in written.pop("defaults"):
        if isinstance(default, dict):
            ((override, choice),) = default.items()
            group = override.removeprefix("override /")
            assert getattr(compose(f"experiment={experiment}"), group) is not None
            assert (group, choice) in CHOICES
    assert_agrees(written, to_plain(compose(f"experiment={experiment}")), experiment)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_plans(compose, experiment):
    config = compose(f"experiment={experiment}", *PEAKS)
    validate(config)
    device = planned_device(config.hardware.device)
    plan = make_plan(config, device, build_precision(config.precision, device))
    assert len(plan.steps) > 0
    planned = sum(step.tokens for step in plan.steps)
    assert planned == pytest.approx(config.train.tokens, rel=0.05)


@pytest.mark.parametrize("hardware", choices_of("hardware"))
@pytest.mark.parametrize("curriculum", choices_of("curriculum"))
def test_every_curriculum_plans_on_every_hardware(compose, curriculum, hardware):
    config = compose(f"curriculum={curriculum}", f"hardware={hardware}", "train.tokens=50_000_000", *PEAKS)
    validate(config)
    plan = make_plan(config, torch.device("cpu"), build_precision(config.precision, torch.device("cpu")))
    assert [stage.seq_len for stage in plan.stages] == [stage.seq_len for stage in config.curriculum.stages]


@pytest.mark.parametrize("model", choices_of("model"))
def test_the_plain_curriculum_fits_every_model(compose, model):
    config = compose(f"model={model}", "curriculum=none")
    validate(config)
    assert [stage.seq_len for stage in config.curriculum.stages] == [config.model.max_seq_len]


@pytest.mark.parametrize("hardware", choices_of("hardware"))
def test_micro_batches_hold_about_the_same_tokens_at_every_length(compose, hardware):
    """One static shape (DESIGN 4.4): for N tokens an entry is N // length."""
    entries = {int(length): count for length, count in compose(f"hardware={hardware}").hardware.micro_batch.items()}
    assert all(shorter < longer for shorter, longer in pairwise(entries)), "in order of length"
    if set(entries.values()) == {"auto"}:
        return
    tokens = max(length * count for length, count in entries.items())
    assert entries == {length: tokens // length for length in entries}


@pytest.mark.parametrize("hardware", choices_of("hardware"))
def test_hardware_has_an_entry_for_every_length_that_a_curriculum_uses(compose, hardware):
    """`hardware.micro_batch.<length>=N` overrides it without a plus."""
    lengths = {
        str(stage.seq_len)
        for curriculum in choices_of("curriculum")
        for stage in compose(f"curriculum={curriculum}").curriculum.stages
    }
    assert lengths <= compose(f"hardware={hardware}").hardware.micro_batch.keys()


def test_quickstart_needs_no_network_and_no_files(compose):
    config = compose("experiment=quickstart")
    assert config.data.kind.value == "stdlib"
    assert config.data.path is None and config.tokenizer.path is None
    assert config.tokenizer.kind.value in ("superbpe", "bpe"), "trained on the run's own data"
    assert [stage.seq_len for stage in config.curriculum.stages] == [
        stage.seq_len for stage in compose("curriculum=ultra").curriculum.stages
    ]


def test_production_is_research_with_t180k(compose):
    research, production = (to_plain(compose(f"experiment={name}")) for name in ("research", "production"))
    assert production.pop("tokenizer") == to_plain(compose("tokenizer=t180k").tokenizer)
    assert research.pop("tokenizer") == to_plain(compose("tokenizer=t80k").tokenizer)
    assert production == research
