"""`python -m yxanul.benchmark` as a user starts it, on a tiny model, without data and without network."""

import json

import pytest

from yxanul import cli
from yxanul.benchmark import benchmark
from yxanul.config import BenchmarkConfig

TINY = (
    "model=nano",
    "precision=fp32",
    "tokenizer=superbpe8k",
    "tokenizer.vocab_size=512",
    "tokenizer.transition=300",
    "model.hidden_size=64",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.intermediate_size=128",
    "curriculum=ultra",
    "curriculum.max_seq_len=64",
    "curriculum.max_step_tokens=128",
    "hardware.micro_batch.64=1",
    "hardware=cpu",
    "train.tokens=100_000",
    "rounds=2",
)


@pytest.fixture(scope="module")
def outcome(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    compare = "compare=['optimizer=muon','curriculum=none curriculum.max_seq_len=64']"
    overrides = (*TINY, compare, f"output={folder}")
    status, out, err = train(*overrides, program=("-m", "yxanul.benchmark"), base=())
    assert status == 0, err
    (file,) = folder.glob("*.json")
    return json.loads(file.read_text()), out, file


def test_every_stage_of_every_composition_is_measured(outcome):
    record, _, _ = outcome
    base, muon, flat = record["results"]
    assert [result["name"] for result in record["results"]][1:] == [
        "optimizer=muon",
        "curriculum=none curriculum.max_seq_len=64",
    ]
    lengths = [8, 16, 32, 64, 64, 64, 64, 64, 64, 64]
    assert [stage["seq_len"] for stage in base["stages"]] == [stage["seq_len"] for stage in muon["stages"]] == lengths
    assert [stage["seq_len"] for stage in flat["stages"]] == [64]
    for result in record["results"]:
        for stage in result["stages"]:
            assert sum(stage["phases"].values()) == pytest.approx(1)
            assert all(share > 0 for share in stage["phases"].values())
            assert 0 < stage["attention_share"] < 1 and 0 < stage["head_and_loss_share"] < 1
            assert stage["tokens_per_second"] == pytest.approx(stage["step_tokens"] / stage["step_seconds"])
            assert 0 < stage["mfu"] < 1 and stage["peak_bytes"] > 10**6
        assert result["recompiles"] == 0 and result["warm_up_seconds"] > 0


def test_compositions_are_held_against_the_first(outcome):
    base, muon, flat = outcome[0]["results"]
    assert base["ratio"] is None and muon["ratio"] > 0 and flat["ratio"] > 0
    assert all(ratio > 0 for ratio in muon["stage_ratios"]) and flat["stage_ratios"][0] > 0


def test_the_record_says_what_was_measured_and_on_what(outcome):
    record, _, _ = outcome
    assert record["command"].startswith("python -m yxanul.benchmark model=nano")
    assert record["versions"]["torch"] and record["machine"]["processor"] and record["date"]
    assert all(flops > 1e8 for flops in record["ceilings"]["matmul_flops"].values())
    assert [config["model"]["hidden_size"] for config in record["configs"]] == [64, 64, 64]
    assert record["configs"][1]["optimizer"]["muon"] is not None


def test_the_table_is_printed_and_the_page_written(outcome):
    record, out, file = outcome
    assert "optimizer=muon" in out and str(file) in out.replace("\n", "")
    page = file.with_suffix(".html").read_text()
    assert "optimizer=muon" in page and 'src="http' not in page
    for stage in record["results"][0]["stages"]:
        assert f" {stage['seq_len']} " in out


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("compare=['precision=fp23']", "compare=precision=fp23: precision=fp23: no such choice"),
        ("compare=['model.hiden_size=3']", "did you mean model.hidden_size?"),
        ("compare=['model.num_heads=5']", "compare=model.num_heads=5: model.num_heads=5: must divide"),
        ("compare=['attention=flex']", "attention=flex: cannot run on this device"),
        ("compare=['ngram=bigram']", "ngram=bigram: counted n-grams need text, and here tokens are random"),
        ("compare=['precision=fp8']", "precision=fp8: FP8 would be emulated here, which says nothing about speed"),
        ("rounds=0", "rounds=0: must be at least 1"),
        ("output=/dev/null/x", "output=/dev/null/x: "),
    ],
)
def test_a_wrong_comparison_is_one_line(override, line, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr("sys.argv", ["yxanul.benchmark", *TINY, f"output={tmp_path}", override])
    status = cli.run(benchmark, "benchmark", BenchmarkConfig)
    err = capfd.readouterr().err
    assert status == 1 and err.startswith("error: ") and err.count("\n") == 1, err
    assert line in err
    assert list(tmp_path.iterdir()) == []
