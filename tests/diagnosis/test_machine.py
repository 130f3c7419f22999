"""What the doctor finds on a machine: every finding turns with what it looks at."""

import os

import torch

from yxanul.diagnosis import composed, machine
from yxanul.diagnosis.findings import Finding, State, problems
from yxanul.precision import support

from .pretence import NO_DRIVER, installed, of, programs, said, the_problem


def test_a_bare_machine_has_no_problem(look, tmp_path):
    before = set(tmp_path.rglob("*"))
    findings = look()
    assert problems(findings) == []
    assert set(tmp_path.rglob("*")) == before, "nothing is left behind"
    assert {finding.topic for finding in findings} == {topic for topic, _ in (*machine.PROBES, *composed.PROBES)}
    assert all(finding.words and "\n" not in finding.words for finding in findings)


def test_software(look, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert said(look(), "software", "torch") == ("ok", f"{torch.__version__}, built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert said(look(), "software", "torch") == ("ok", f"{torch.__version__}, built for CUDA 13.0")
    assert "Python 3" in of(look(), "software", "yxanul").words


def test_gpus(look, gpu, monkeypatch, tmp_path):
    assert said(look(), "GPU", "CUDA") == ("info", f"no GPU that torch can use ({NO_DRIVER})")
    programs(monkeypatch, tmp_path, nvidia_smi="echo NVIDIA Something")
    words = of(look(), "GPU", "CUDA").words
    assert "nvidia-smi sees NVIDIA Something" in words and "driver" in words
    gpu(9.0)
    programs(monkeypatch, tmp_path, nvidia_smi='[ "$1" = --query-gpu=driver_version ] && echo 570.1')
    findings = look()
    assert said(findings, "GPU", "cuda:0") == ("ok", "NVIDIA Something, compute capability 9.0, 80.0 GiB")
    assert said(findings, "GPU", "driver") == ("ok", "570.1")
    assert said(findings, "run", "device") == ("ok", "NVIDIA Something")
    assert problems(findings) == []
    programs(monkeypatch, tmp_path, nvidia_smi="echo it failed; exit 9")
    assert of(look(), "GPU", "driver").state is State.info


def test_processor(look, monkeypatch):
    for units, words in (({"avx512_bf16": True}, ("ok", "avx512_bf16")), ({}, ("info", "none"))):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda units=units: units)
        assert said(look(), "CPU", "bf16 units") == words
        computes = "bf16" if units else "fp32 (this CPU has no bf16 units)"
        assert said(look("precision=bf16"), "run", "computes in") == ("ok", computes)
    assert f"{os.cpu_count()} cores" in of(look(), "CPU", "processor").words


def test_compilers(look, monkeypatch, tmp_path):
    assert said(look(), "compilation", "C++ compiler") == ("info", "none")
    assert the_problem(look("hardware.compile=true")).startswith("hardware.compile=True: ")
    assert said(look(), "compilation", "torch.compile")[1] == "the layers would be left as they are"
    programs(monkeypatch, tmp_path, **{"g++": ""})
    assert said(look(), "compilation", "C++ compiler") == ("ok", str(tmp_path / "bin" / "g++"))
    compiled = look("hardware.compile=true")
    assert said(compiled, "compilation", "torch.compile") == ("ok", "the layers would be compiled")
    assert problems(compiled) == []


def test_libraries(look, monkeypatch):
    assert {said(look(), "libraries", name) for name in machine.LIBRARIES} == {("info", "not installed")}
    installed(monkeypatch, flash_attn="2.8", liger_kernel="0.8", torchao="0.14", triton="3.7", transformer_engine="2.9")
    monkeypatch.setattr(support, "transformer_engine_missing", lambda: None)
    versions = [said(look(), "libraries", name) for name in machine.LIBRARIES]
    assert versions == [("ok", version) for version in ("3.7", "2.9", "2.8", "0.14", "0.8")]
    monkeypatch.setattr(support, "transformer_engine_missing", lambda: "it does not load")
    assert said(look(), "libraries", "Transformer Engine") == ("info", "2.9; it does not load")


# FP8


def fp8_rows(findings: list[Finding]) -> set[tuple[str, str, str]]:
    return {
        (finding.subject, *finding.words.split(": ", 1))
        for finding in findings
        if finding.topic == "FP8" and finding.subject != "precision=fp8"
    }


def test_every_backend_and_recipe_is_told(look, gpu, monkeypatch):
    def told(findings):
        return {(subject, name) for subject, names, _ in fp8_rows(findings) for name in names.split(", ")}

    every = {(support.NAMES[by], recipe.value) for by, recipes in support.RECIPES.items() for recipe in recipes}
    assert told(look()) == every
    monkeypatch.setattr(support, "transformer_engine_missing", lambda: "it does not load")
    gpu(9.0)
    assert told(look()) == every


def test_fp8_by_machine(look, gpu, monkeypatch):
    emulated = ("emulation", "tensorwise, rowwise, blockwise, mxfp8", "can run")
    rows = fp8_rows(look())
    assert emulated in rows and {words for subject, _, words in rows if subject != "emulation"} == {
        f"a CPU has no FP8 units (they come with a GPU of compute capability {support.FP8_UNITS})"
    }
    monkeypatch.setattr(support, "transformer_engine_missing", lambda: "it does not load")
    gpu(9.0)
    assert fp8_rows(look()) >= {
        emulated,
        ("torch's scaled_mm", "tensorwise, rowwise, blockwise", "can run"),
        ("Transformer Engine", "delayed, tensorwise, blockwise", "it does not load"),
    }
    monkeypatch.setattr(support, "transformer_engine_missing", lambda: None)
    assert ("Transformer Engine", "delayed, tensorwise, blockwise", "can run") in fp8_rows(look())
    gpu(8.0)
    lacking = {names for _, names, words in fp8_rows(look()) if "8.0 has no FP8 units" in words}
    assert lacking == {"delayed, tensorwise, blockwise, mxfp8", "tensorwise, rowwise, blockwise"}


def test_fp8_of_a_gpu_that_is_not_here(look):
    assert ("torch's scaled_mm", "tensorwise, rowwise, blockwise", "could run") in fp8_rows(look("hardware=h100"))
    assert any("not known" in words for _, _, words in fp8_rows(look("hardware.device=cuda")))


def test_what_fp8_would_use(look, gpu, monkeypatch):
    monkeypatch.setattr(support, "transformer_engine_missing", lambda: "it does not load")
    assert said(look(), "FP8", "precision=fp8") == ("ok", "would compute in emulated fp8 (tensorwise)")
    state, words = said(look("precision.fallback=error"), "FP8", "precision=fp8")
    assert state == "info" and words.startswith("would not start: precision.fallback=error: ")
    gpu(8.0)
    state, words = said(look(), "FP8", "precision=fp8")
    assert state == "info" and words.startswith("would compute without FP8: compute capability 8.0")
    gpu(9.0)
    assert said(look(), "FP8", "precision=fp8")[1] == "would compute in fp8 (tensorwise) by torch's scaled_mm"
