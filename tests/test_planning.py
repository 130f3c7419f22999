"""The plan of a run: what it says adds up, and a device that is not here can be planned for."""

import json
from collections import defaultdict
from itertools import pairwise

import pytest
import torch

from yxanul import hardware
from yxanul.config import Dtype
from yxanul.errors import UserError
from yxanul.hardware import planned_device
from yxanul.model import count
from yxanul.model.memory import training_bytes
from yxanul.planning import RunPlan, make_plan
from yxanul.precision.linear import build_precision
from yxanul.reporting.plan_table import plan_warnings

RUN = (
    "model=nano",
    "precision=fp32",
    "tokenizer=bpe8k",
    "curriculum=ultra",
    "data=stdlib",
    "hardware=cpu",
    "hardware.memory_gb=16",
    "hardware.peak_tflops.fp32=0.1",
    "hardware.utilization=0.5",
    "train.tokens=40_000_000",
)


@pytest.fixture
def planned(compose):
    """Plans the run of these tests, or another: `planned("hardware.micro_batch.2048=2")`."""

    def plan(*overrides: str, run: tuple[str, ...] = RUN, processes: int = 1) -> RunPlan:
        config = compose(*run, *overrides)
        device = planned_device(config.hardware.device)
        return make_plan(config, device, build_precision(config.precision, device), processes)

    return plan


def by_length(plan: RunPlan) -> dict:
    return {stage.seq_len: stage for stage in plan.stages}


def test_stages_add_up_to_the_steps(planned):
    plan = planned()
    tokens, counts = defaultdict(int), defaultdict(int)
    for step in plan.steps:
        tokens[step.stage + 1] += step.tokens
        counts[step.stage + 1] += 1
    assert {stage.stage: stage.tokens for stage in plan.stages} == tokens
    assert {stage.stage: stage.steps for stage in plan.stages} == counts
    for stage in plan.stages:
        of_stage = [step for step in plan.steps if step.stage == stage.stage - 1]
        assert stage.steps * stage.step_tokens == stage.tokens
        assert stage.sequences * stage.seq_len == stage.step_tokens
        assert {len(step.micro_batches) for step in of_stage} == {stage.micro_batches}
        assert stage.peak_lr == max(step.lr for step in of_stage)
        assert {step.grad_clip for step in of_stage} == {stage.grad_clip}


def test_bytes_are_the_tokenizers(planned):
    plan = planned("tokenizer.bytes_per_token=3.5")
    assert [stage.bytes for stage in plan.stages] == [round(3.5 * stage.tokens) for stage in plan.stages]


def test_seconds_are_work_over_the_speed_that_is_expected(planned, compose):
    plan = planned()
    model, vocabulary = compose(*RUN).model, compose(*RUN).tokenizer.vocab_size
    for stage in plan.stages:
        work = stage.tokens * count.training_flops_per_token(model, vocabulary, stage.seq_len)
        assert stage.flops == pytest.approx(work)
        assert stage.seconds == pytest.approx(work / (0.1e12 * 0.5))
    faster = planned("hardware.peak_tflops.fp32=0.2", "hardware.utilization=0.25")
    assert [stage.seconds for stage in faster.stages] == [stage.seconds for stage in plan.stages]


def test_only_the_hardware_decides_the_micro_batches(planned):
    small, large = planned("hardware.micro_batch.8=64"), planned("hardware.micro_batch.8=128")
    assert by_length(small)[8].micro_batches == 2 * by_length(large)[8].micro_batches
    assert [(s.steps, s.tokens, s.peak_lr) for s in small.stages] == [
        (s.steps, s.tokens, s.peak_lr) for s in large.stages
    ]


def test_memory_grows_with_the_micro_batch_of_its_stage(planned):
    plans = [by_length(planned(f"hardware.micro_batch.2048={sequences}")) for sequences in (1, 2, 4, 8)]
    memory = [plan[2048].memory_bytes for plan in plans]
    growth = memory[1] - memory[0]
    assert growth > 0
    grown = [later - earlier for earlier, later in pairwise(memory)]
    assert grown == pytest.approx([growth, 2 * growth, 4 * growth], rel=0.05)  # another phase may hold the peak
    assert len({plan[8].memory_bytes for plan in plans}) == 1


def test_an_automatic_micro_batch_is_the_largest_power_of_two_that_fits(planned, compose):
    config = compose(*RUN)

    def gigabytes(tokens: int) -> float:
        return training_bytes(config, Dtype.fp32, "cpu", False, tokens) / 2**30

    memory = gigabytes(300) / hardware.MEMORY_SHARE  # 256 tokens fit, 512 do not
    run = (*RUN, "hardware=auto", "hardware.device=cpu")
    assert gigabytes(256) < hardware.MEMORY_SHARE * memory < gigabytes(512)
    short = (f"hardware.memory_gb={memory}", "curriculum.max_seq_len=256")
    tight, roomy = planned(*short, run=run), planned("hardware.memory_gb=1000", run=run)
    assert tight.steps[0].seq_len == 8 and tight.steps[0].micro_batches[0] == 256 // 8
    assert roomy.steps[0].micro_batches[0] == hardware.AUTO_TOKENS["cpu"] // 8
    assert tight.steps[-1].micro_batches[0] == 1
    assert plan_warnings(planned(*short, "hardware.micro_batch.256=4", run=run)) != [] == plan_warnings(roomy)
    with pytest.raises(UserError, match=r"one sequence of 512 tokens takes about .*; set hardware.recompute=1, "):
        planned(f"hardware.memory_gb={memory}", run=run)


# --- devices


@pytest.mark.parametrize(
    ("name", "gigabytes", "precision", "teraflops"),
    [
        ("h100", 80, "bf16", 989.4),
        ("h100", 80, "fp32", 66.9),
        ("rtx4090", 24, "bf16", 165.2),
        ("a100", 80, "bf16", 312),
    ],
)
def test_a_device_that_is_not_here_is_planned_by_its_own_figures(
    planned, monkeypatch, name, gigabytes, precision, teraflops
):
    monkeypatch.setattr(hardware, "measure_peak", lambda *_: pytest.fail("measured here"))
    run = ("model=yxanul_197m", "tokenizer=t80k", "curriculum=ultra", f"hardware={name}", f"precision={precision}")
    plan = planned(run=run)
    assert plan.peak_flops == pytest.approx(teraflops * 1e12)
    assert plan.memory_limit == gigabytes * 2**30
    assert plan.computes == precision
    assert [stage.seq_len for stage in plan.stages] == [8, 16, 32, 64, 128, 256, 512, 768, 1536, 2048]
    if precision == "bf16":
        assert plan_warnings(plan) == [], "the device's own micro-batches fit it"


def test_the_same_run_on_another_device_has_the_same_steps(planned):
    run = ("model=yxanul_197m", "tokenizer=t80k", "curriculum=ultra", "precision=bf16", "train.tokens=50_000_000")
    h100, rtx4090 = (planned(run=(*run, f"hardware={name}")) for name in ("h100", "rtx4090"))
    figures = [[(s.stage, s.steps, s.tokens, s.peak_lr, s.flops) for s in plan.stages] for plan in (h100, rtx4090)]
    assert figures[0] == figures[1]
    assert sum(s.seconds for s in h100.stages) < sum(s.seconds for s in rtx4090.stages)


def test_a_peak_that_is_not_given_is_measured(planned, monkeypatch):
    monkeypatch.setattr(hardware, "measure_peak", lambda device, dtype: 123e9)
    assert planned("hardware.peak_tflops.fp32=null").peak_flops == 123e9


# --- several processes


def test_waiting_for_other_processes_comes_on_top_of_computing(planned):
    one, two = planned(), planned("hardware.gpu_bandwidth=0.1", processes=2)
    assert [stage.communication_seconds for stage in one.stages] == [0] * len(one.stages) and one.communication == 0
    for alone, shared in zip(one.stages, two.stages, strict=True):
        assert shared.compute_seconds == pytest.approx(alone.seconds / 2)
        assert shared.seconds > shared.communication_seconds > 0
    waiting, seconds = (sum(getattr(s, name) for s in two.stages) for name in ("communication_seconds", "seconds"))
    assert two.communication == pytest.approx(waiting / seconds)
    assert two.processes == 2 and two.uncounted is None


def test_a_bandwidth_that_is_unknown_leaves_communication_uncounted(planned):
    plan = planned(processes=2)
    assert plan.uncounted == "hardware.gpu_bandwidth is unknown"
    assert plan.communication == 0
    assert planned().uncounted is None, "nothing to count"


def test_fsdp_waits_more_the_more_micro_batches_there_are(planned):
    slow = ("hardware.gpu_bandwidth=0.001", "hardware.node_bandwidth=0.001")
    small, large = (
        by_length(planned("hardware.parallel=fsdp", f"hardware.micro_batch.2048={size}", *slow, processes=2))[2048]
        for size in (1, 2)
    )
    assert small.micro_batches == 2 * large.micro_batches
    assert small.communication_seconds > 1.5 * large.communication_seconds


# --- warnings


def test_too_large_a_micro_batch_is_warned_of(planned):
    run = ("model=yxanul_197m", "tokenizer=t80k", "curriculum=ultra", "hardware=rtx4090", "precision=bf16")
    (warning,) = plan_warnings(planned("hardware.micro_batch.2048=64", run=run))
    assert "24.0 GiB" in warning and "hardware.micro_batch" in warning


def test_skipped_stages_are_named(planned):
    plan = planned("train.tokens=300_000", "curriculum.max_step_tokens=8192")
    left_out = set(range(1, 11)) - {stage.stage for stage in plan.stages}
    assert left_out and plan.skipped == sorted(left_out)
    (warning,) = plan_warnings(plan)
    assert f"left out: {', '.join(map(str, plan.skipped))};" in warning
    assert "train.tokens" in warning


def test_no_stage_is_skipped_at_a_full_budget(planned):
    assert planned().skipped == [] and plan_warnings(planned()) == []


def test_a_budget_below_a_step_is_the_users_error(planned):
    with pytest.raises(UserError, match=r"train\.tokens=7: "):
        planned("train.tokens=7")


# --- record


def test_the_record_is_json_with_figures_by_stage(planned):
    plan = planned()
    record = json.loads(json.dumps(plan.record()))
    assert record["steps"] == len(plan.steps)
    assert record["tokens"] == sum(stage["tokens"] for stage in record["stages"]) == sum(s.tokens for s in plan.steps)
    assert [stage["seq_len"] for stage in record["stages"]] == [stage.seq_len for stage in plan.stages]
    assert [stage["communication_seconds"] for stage in record["stages"]] == [0] * len(plan.stages)
    assert (record["processes"], record["uncounted"]) == (1, None)
    assert record["parameters"] == plan.parameters > plan.layer_parameters == record["layer_parameters"]


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=1.25e-4",
        "curriculum.stages.9.grad_clip=0.25",
        "train.tokens=41_000_000",
        "hardware.micro_batch.8=16",
    ],
)
def test_the_fingerprint_is_that_of_the_steps(planned, override):
    assert planned().record()["fingerprint"] == planned().record()["fingerprint"]
    assert planned(override).record()["fingerprint"] != planned().record()["fingerprint"]


def test_the_fingerprint_does_not_depend_on_predictions(planned):
    other = planned("hardware.peak_tflops.fp32=3", "tokenizer.bytes_per_token=1", "model.num_layers=1")
    assert other.record()["fingerprint"] == planned().record()["fingerprint"]


def test_bf16_on_a_cpu_without_bf16_units_is_planned_as_what_it_is(planned, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    plan = planned("precision=bf16", "hardware.peak_tflops.bf16=0.7")
    assert plan.computes.startswith("fp32") and plan.peak_flops == pytest.approx(0.1e12)
