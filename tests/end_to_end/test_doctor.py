"""`python -m yxanul.doctor` as a user starts it."""

import pytest


@pytest.fixture
def doctor(train, tmp_path):
    """Runs the command in an empty folder of a machine without a GPU: exit status, stdout, stderr."""
    program = ("-m", "yxanul.doctor")
    return lambda *overrides, **environment: train(
        *overrides, program=program, base=(), cwd=tmp_path, CUDA_VISIBLE_DEVICES="", **environment
    )


def test_a_run_that_can_start(doctor, tmp_path):
    status, out, err = doctor("experiment=quickstart", WANDB_API_KEY="a-secret-key")
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "the composed run can start here"
    for words in ("torch's scaled_mm", "standard library", "4 checkpoints take up to", "online; WANDB_API_KEY is set"):
        assert words in out
    assert "a-secret-key" not in out
    assert "outputs/nano-bf16-superbpe8k-ultra-stdlib-seed1-" in out, "where yxanul.train would write"
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_start(doctor, tmp_path):
    status, out, err = doctor("experiment=quickstart", "hardware=h100", "data=parquet", "data.path=not/here")
    assert (status, err) == (1, "")
    title, *problems = out.splitlines()[-3:]
    assert title == "the composed run cannot start here:"
    for problem in ("hardware.device=cuda: there is no CUDA device here", "data.path=not/here: no such file"):
        assert any(line.startswith(f"  {problem}") for line in problems), out
    assert list(tmp_path.iterdir()) == []
