"""What is typed wrong is one line on stderr that names it, and nothing is written.

Single keys and their limits are in tests/test_validation.py, misspelt keys and choices in tests/test_cli.py, and files
that hold what they should not in test_bad_files.py.
"""

import shlex

import pytest

QUICK = "experiment=quickstart"

TYPED = {
    # Hydra's grammar
    "plan model.hidden_size=[1": "model.hidden_size=[1: is not key=value",
    "plan 'data.path=\"abc'": 'data.path="abc: is not key=value',
    "plan 'seed=${'": "seed=${: is not key=value",
    "plan seed==5": "seed==5: is not key=value",
    "plan =5": "=5: names no choice",
    "plan 'seed=foo(1)'": "seed=foo(1): is not key=value",
    "plan 'seed=choice(1,2)'": "'seed=choice(1,2)' requires --multirun",
    "plan 'seed=${nowhere:1}'": "seed: Unsupported interpolation type nowhere",
    "plan 'seed=${model.nowhere}'": "seed: Interpolation key 'model.nowhere' not found",
    "plan 'seed=${seed}'": "seed: Recursive interpolation",
    "plan ~zzz": "'zzz' does not exist",
    "plan ~model.hidden_size": "model.hidden_size: ModelConfig",
    "plan ++model=nano": "'++model=nano'",
    "plan model@foo=nano": "Could not override 'model@foo'",
    "plan model=5": "model=5: names no choice",
    "plan model=": "model=: no such choice; there are gpt2_124m, nano",
    "plan model=/etc/passwd": "no such choice; name one of the group's, not a path",
    "plan seed.foo=1": "seed.foo: Value",
    "plan curriculum.stages.x.share=1": "curriculum.stages.x.share=1",
    "plan hydra/launcher=foo": "hydra/launcher=foo: no such choice; there are slurm, submitit_local",
    "plan hydra.mode=FOO": "hydra.mode: Invalid value 'FOO'",
    "plan --config-name=": "config=: no such choice; there are benchmark, compare_tokenizers",
    "plan --config-dir=nowhere": "nowhere' not found",
    "plan --cfg everything": "argument --cfg/-c: invalid choice: 'everything'",
    "plan seed=1 --foo": "unrecognized arguments: --foo",
    "train hydra.run.dir=": "hydra.run.dir=: is empty; name a folder",
    "train --multirun 'hydra.sweep.dir=\"\"' seed=1": "hydra.sweep.dir=: is empty; name a folder",
    # every group
    f"train {QUICK} model.embedding_rank=0": "model.embedding_rank=0: must be greater than 0",
    f"train {QUICK} model.num_layers=10001": "model.num_layers=10001: must be at most 10,000",
    f"train {QUICK} precision.high_precision=[null]": "precision.high_precision.0: Invalid type",
    f"train {QUICK} precision.select={{}}": "precision.select={}: must be all, timed, or a list of patterns",
    f"train {QUICK} precision=fp8 precision.compute_dtype=fp32": "precision.fp8=True: needs precision.compute",
    f"train {QUICK} tokenizer.end_of_text=": "tokenizer.end_of_text=: is empty",
    f"train {QUICK} tokenizer=superbpe tokenizer.transition=40000": "tokenizer.transition=40000: must lie between",
    f"train {QUICK} ngram.order=9": "ngram.order=9: must lie between 0 and",
    f"train {QUICK} ngram=bigram cross_entropy=plain": "cross_entropy=plain: adds no n-grams",
    f"train {QUICK} curriculum.stages=[]": "curriculum.stages=[]: needs at least one stage",
    f"train {QUICK} curriculum=ultra curriculum.stages.0.lr_scale=nan": "curriculum.stages.0.lr_scale=nan",
    f"train {QUICK} hardware.micro_batch=null": "hardware.micro_batch=None: must be auto, or sequences",
    f"train {QUICK} hardware.peak_tflops=5": "hardware.peak_tflops: Invalid type",
    f"train {QUICK} hardware.device=tpu": "hardware.device: Invalid value 'tpu', expected one of [auto, cpu, cuda]",
    f"train {QUICK} data.path=": "data.path=: is empty",
    f"train {QUICK} 'data.path=\"~nobodyatall/x\"'": "data.path=~nobodyatall/x: there is no such user",
    f"train {QUICK} data.part=2 data.parts=2": "data.part=2: must lie between 0 and data.parts-1=1",
    f"train {QUICK} optimizer=adamw optimizer.muon={{lr:1}}": "optimizer=muon",
    f"train {QUICK} optimizer.betas=0.9": "optimizer.betas: is a list; write optimizer.betas=[...]",
    f"train {QUICK} schedule=wsd schedule.warmup=0.9 schedule.decay=0.2": "schedule.decay=0.2: with schedule.warm",
    f"train {QUICK} tracking.wandb=null": "tracking.wandb: field 'tracking.wandb' is not Optional",
    f"train {QUICK} tracking.stall_seconds=-1": "tracking.stall_seconds=-1.0: must be greater than 0",
    f"train {QUICK} train.on_spike=explode": "train.on_spike: Invalid value 'explode'",
    f"train {QUICK} train.steps=100_000_000": "train.steps=100000000: takes 100,000,000 optimizer steps",
    f"train {QUICK} evaluate.context_bytes=0": "evaluate.context_bytes=0: must be greater than 0",
    f"train {QUICK} evaluate.samples=1.5": "evaluate.samples: Value '1.5' of type 'float'",
    f"train {QUICK} checkpoint.keep=0": "checkpoint.keep=0: must be greater than 0",
    f"train {QUICK} seed={2**64}": f"seed={2**64}: must not be negative, and below",
    f"train {QUICK} init_from=": "init_from=: is empty",
    f"train {QUICK} init_from=a resume_from_checkpoint=b": "init_from=a: and resume_from_checkpoint exclude",
    f"train {QUICK} resume_from_checkpoint=": "resume_from_checkpoint=: is empty",
    # commands that compose
    f"prepare {QUICK} data=parquet data.path=nowhere": "data.path=nowhere: no such file or folder",
    f"prepare {QUICK} data.workers=0": "data.workers=0: must be greater than 0",
    f"doctor {QUICK} seed=-1": "seed=-1: must not be negative",
    f"benchmark {QUICK} rounds=0": "rounds=0: must be at least 1",
    f"benchmark {QUICK} \"compare=['model=nanoo']\"": "compare=model=nanoo: model=nanoo: no such choice",
    f"benchmark {QUICK} round=1": "round: no such key; did you mean rounds?",
    f"inspect_data {QUICK} stage=99": "stage=99",
    f"inspect_data {QUICK} sequences=-1": "sequences=-1",
    f"compare_tokenizers {QUICK} tokenizers=[]": "tokenizers=[]: name at least one",
    f"compare_tokenizers {QUICK} tokenizers=[t81k]": "tokenizers=t81k: no such choice",
    f"compare_tokenizers {QUICK} compare_bytes=0": "compare_bytes=0: must be greater than 0",
    # commands of folders
    "generate": "the following arguments are required: RUN",
    "generate nowhere text": "nowhere: is no run (it has no config.yaml)",
    "generate nowhere text --device tpu": "argument --device: invalid choice: 'tpu'",
    "generate nowhere text --temperature hot": "argument --temperature: hot is no number of at least 0",
    "generate nowhere text --top-p 2": "argument --top-p: 2 is no share",
    "generate nowhere text --samples 0": "argument --samples: 0 is no whole number from 1",
    f"generate nowhere text --seed {2**70}": f"argument --seed: {2**70} is no whole number from 0",
    "generate nowhere text --stop ''": "argument --stop: is empty",
    "evaluate nowhere": "nowhere: is no run",
    "evaluate nowhere --bytes some": "argument --bytes: invalid int value: 'some'",
    "evaluate nowhere --context-bytes 0": "--context-bytes 0: must be at least 1",
    "evaluate nowhere --task-path tasks": "--task-path tasks: is of tasks; --tasks must name some",
    "export nowhere": "the following arguments are required: --to",
    "export nowhere --to new": "nowhere: is no run",
    "report nowhere": "nowhere: no such folder",
    "report nowhere --target nan": "argument --target: nan is no number of at least 0",
    "report nowhere --axis steps": "argument --axis: invalid choice: 'steps'",
    "checkpoint": "the following arguments are required: COMMAND",
    "checkpoint lst nowhere": "argument COMMAND: invalid choice: 'lst'",
    "checkpoint list nowhere": "nowhere: is no run",
    "checkpoint prune nowhere --keep all": "argument --keep: invalid int value: 'all'",
    "checkpoint average nowhere": "the following arguments are required: --to",
    "sweep status nowhere": "nowhere: holds no sweep",
    "sweep wait nowhere --poll -1": "argument --poll: -1 is no number of at least 0",
    "sweep stop nowhere": "argument COMMAND: invalid choice: 'stop'",
}
"""A command line: what the line must say."""


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed_wrong(refused, tmp_path, typed):
    assert TYPED[typed] in refused(*shlex.split(typed))
    assert list(tmp_path.iterdir()) == []


# What works on its own, and not here or not together: the run's folder holds no run


TOGETHER = {
    ("curriculum.max_seq_len=null",): "curriculum.stages.5.seq_len=256: is longer than the model's positions",
    ("hardware.micro_batch.128=0",): "hardware.micro_batch.128=0",
    ("train.tokens=10",): "train.tokens=10: is less than one optimizer step",
    ("hardware=h100",): "hardware.device=cuda: there is no CUDA device here",
    ("hardware.nodes=3",): "hardware.gpus_per_node=1: with hardware.nodes=3 asks for 3 processes",
    ("hardware.memory_gb=0.000001",): "one sequence of 32 tokens takes about",
    ("attention=flash",): "attention=flash: cannot run on this device",
    ("cross_entropy=liger",): "cross_entropy=liger: cannot run on this device",
    ("precision=fp8", "precision.fallback=error", "hardware=cpu"): "FP8 cannot run: a CPU has no FP8 units",
    ("tokenizer.path=nowhere",): "tokenizer.path=nowhere: no such file",
    ("data.held_out_path=nowhere",): "data.held_out_path=nowhere: no such file",
    ("ngram=bigram", "ngram.tokens=1"): "ngram.tokens=1: does not reach for a whole document",
    ("init_from=nowhere",): "init_from=nowhere: is no run, no checkpoint and no Hugging Face folder",
    ("resume_from_checkpoint=nowhere",): "nowhere: is no whole checkpoint",
}


@pytest.mark.parametrize("overrides", TOGETHER, ids=" ".join)
def test_what_cannot_work_here(refused, tiny_run, tmp_path, overrides):
    assert TOGETHER[overrides] in refused("train", *tiny_run, *overrides, "hydra.run.dir=run")
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert not written & {"config.yaml", "metrics.jsonl", "checkpoints", "result.json"}
