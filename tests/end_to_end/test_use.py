"""What a run's model is used with, as commands on a real run: generate, evaluate, export, checkpoint, init_from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from yxanul import checkpoint, evaluate, export, generate
from yxanul.training.checkpoint import checkpoints

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def used(undisturbed, capfd, monkeypatch):
    """Runs a command on the finished run in this process: `used(generate, "prompt")`."""

    monkeypatch.setenv("COLUMNS", "200")

    def run(command, *arguments: str, folder: Path = undisturbed[1], before: tuple[str, ...] = ()):
        capfd.readouterr()  # what libraries say when they are imported is not the command's
        status = command.main([*before, str(folder), *map(str, arguments)])
        return status, *capfd.readouterr()

    return run


def the_line(outcome: tuple[int, str, str]) -> str:
    status, out, err = outcome
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


# generate


def test_text_comes_as_a_command(undisturbed):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "yxanul.generate", str(undisturbed[1]), "def add", "--max-new-tokens", "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("def add") and len(done.stdout) > len("def add\n")
    assert "20 tokens in" in done.stderr and "tokens/s" in done.stderr


def test_prompts_are_read_one_after_another(used, monkeypatch, undisturbed):
    prompts = iter(["import ", "class "])

    def asked(_):
        try:
            return next(prompts)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", asked)
    status, out, err = used(generate, "--max-new-tokens", "3")
    assert status == 0 and "import " in out and "class " in out and err.count("tokens/s") == 2


def test_several_samples_differ_and_the_seed_repeats_them(used):
    arguments = ("def ", "--samples", "3", "--max-new-tokens", "12", "--temperature", "1.5", "--top-k", "0")
    _, first, _ = used(generate, *arguments, "--seed", "1")
    _, again, _ = used(generate, *arguments, "--seed", "1")
    _, other, _ = used(generate, *arguments, "--seed", "2")
    assert first == again != other
    assert first.count("def ") >= 3


def test_greedy_text_ends_before_a_stop(used):
    _, free, _ = used(generate, "def ", "--temperature", "0", "--max-new-tokens", "30")
    stop = free[len("def ") + 5 : len("def ") + 8]
    _, stopped, _ = used(generate, "def ", "--temperature", "0", "--max-new-tokens", "30", "--stop", stop)
    assert stopped == "def " + free[len("def ") :].split(stop)[0] + "\n"


# evaluate


def test_a_run_is_judged_as_it_judged_itself(used, undisturbed):
    status, out, err = used(evaluate, "--bytes", "10000", "--format", "json")
    assert (status, err) == (0, "")
    [found] = json.loads(out)
    result = json.loads((undisturbed[1] / "result.json").read_text())
    assert found["bits_per_byte"] == pytest.approx(result["bits_per_byte"], abs=1e-4)
    assert found["bytes"] == result["eval_bytes"]
    for parts in found["by"].values():
        assert sum(part["bytes"] for part in parts) == found["bytes"]
        bits = sum(part["bytes"] * part["bits_per_byte"] for part in parts)
        assert bits / found["bytes"] == pytest.approx(found["bits_per_byte"])
    positions = {part["name"]: part["bits_per_byte"] for part in found["by"]["position"]}
    assert positions == {part["name"]: pytest.approx(part["bits_per_byte"], abs=1e-3) for part in result["by_position"]}


def test_several_models_stand_in_one_table(used, undisturbed, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "one.txt").write_text("def one():\n    return 1\n" * 50)
    (texts / "two.txt").write_text("Prose is another matter. " * 50)
    other = shutil.copytree(undisturbed[1], tmp_path / "other" / "second")
    status, out, err = used(evaluate, other, "--data", texts, "--by", "source", "--by", "length")
    assert (status, err) == (0, "")
    assert undisturbed[1].name[:20] in out and "second" in out
    assert "one.txt" in out and "two.txt" in out and "under 4,000 bytes" in out


# export


def test_an_export_is_loaded_by_stock_transformers(used, undisturbed, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'yxanul[export]'")
    target = tmp_path / "exported"
    status, out, err = used(export, "--to", target)
    assert (status, err) == (0, "") and "Qwen3ForCausalLM" in out
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    model = transformers.AutoModelForCausalLM.from_pretrained(target)
    prompt = tokenizer("<|endoftext|>" + "def add_argument(", return_tensors="pt", add_special_tokens=False)
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=20, do_sample=False)[0])
    _, ours, _ = used(generate, "def add_argument(", "--temperature", "0", "--max-new-tokens", "20")
    assert text.removeprefix("<|endoftext|>")[:25] == ours[:25]  # the end of the prompt is read otherwise
    card = (target / "README.md").read_text()
    result = json.loads((undisturbed[1] / "result.json").read_text())
    assert f"{result['bits_per_byte']:.4f}" in card and "{" not in card.replace("{'", "")
    status, out, err = used(evaluate, target, "--bytes", "5000", "--format", "json")
    mine, theirs = json.loads(out)
    assert theirs["bits_per_byte"] == pytest.approx(mine["bits_per_byte"], abs=1e-4)


def test_an_export_never_writes_over_what_is_there(used, tmp_path):
    assert "is there already" in the_line(used(export, "--to", tmp_path))


# checkpoint


def test_checkpoints_are_listed_and_shown(used, undisturbed):
    names = [path.name for path in checkpoints(undisturbed[1] / "checkpoints")]
    status, out, _ = used(checkpoint, before=("list",))
    assert status == 0 and all(name in out for name in names)
    status, out, _ = used(checkpoint, before=("inspect",))
    assert status == 0 and "embedding.table" in out and names[-1] in out and "float32" in out


def test_damage_is_found(used, unfinished):
    status, out, err = used(checkpoint, folder=unfinished, before=("verify",))
    assert (status, err) == (0, "") and out.count("whole") == len(checkpoints(unfinished / "checkpoints"))
    file = next((checkpoints(unfinished / "checkpoints")[0]).glob("model*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    status, out, err = used(checkpoint, folder=unfinished, before=("verify",))
    assert status == 1 and "is damaged" in err and err.count("\n") == 1


def test_old_checkpoints_are_removed(used, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed[1], tmp_path / "run")
    before = checkpoints(folder / "checkpoints")
    assert len(before) == 2
    used(checkpoint, "--keep", "1", folder=folder, before=("prune",))
    assert checkpoints(folder / "checkpoints") == before[-1:]


def test_the_mean_of_checkpoints_is_a_run(used, undisturbed, tmp_path):
    from safetensors.torch import load_file

    target = tmp_path / "averaged"
    status, _, err = used(checkpoint, "--last", "2", "--to", target, before=("average",))
    assert (status, err) == (0, "")
    files = [path / "model.safetensors" for path in checkpoints(undisturbed[1] / "checkpoints")]
    one, other = map(load_file, files)
    [mean] = [load_file(path / "model.safetensors") for path in checkpoints(target / "checkpoints")]
    for name, tensor in mean.items():
        assert ((one[name] + other[name]) / 2 - tensor).abs().max() < 1e-6
    status, out, _ = used(evaluate, "--bytes", "5000", "--format", "json", folder=target)
    assert status == 0 and 0.5 < json.loads(out)[0]["bits_per_byte"] < 8


# init_from


def first_loss(folder: Path) -> float:
    return json.loads(next(line for line in (folder / "metrics.jsonl").open() if '"train"' in line))["loss"]


def test_training_goes_on_from_a_run_and_from_its_export(used, undisturbed, command, tmp_path):
    target = tmp_path / "exported"
    used(export, "--to", target)
    losses = []
    for name, begins in (("run", undisturbed[1]), ("folder", target)):
        more = ("train.steps=4", f"hydra.run.dir={tmp_path / name}")
        status, _, err = command(f"init_from={begins}", *more)
        assert (status, err) == (0, "")
        losses.append(first_loss(tmp_path / name))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert losses[0] < first_loss(undisturbed[1]) - 0.2


# bad input


def no_run(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def no_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def another_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))


def smaller_vocabulary(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["tokenizer"]["vocab_size"] = 1024
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def a_key_too_many(folder: Path) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write("surprise: 1\n")


BAD = {
    "no run": (no_run, "is no run (it has no config.yaml)"),
    "no checkpoint": (no_checkpoint, "has no checkpoint yet"),
    "no tokenizer": (no_tokenizer, "tokenizer.json: is missing"),
    "another tokenizer": (another_tokenizer, "is another tokenizer than the run was trained with"),
    "smaller vocabulary": (smaller_vocabulary, "tokenizer.vocab_size=1024"),
    "a key too many": (a_key_too_many, "config.yaml: cannot be read"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("command", [generate, evaluate, export])
def test_a_folder_that_cannot_be_used_is_one_line(used, undisturbed, tmp_path, kind, command):
    damage, line = BAD[kind]
    folder = shutil.copytree(undisturbed[1], tmp_path / "run")
    damage(folder)
    arguments = {generate: ["text"], evaluate: ["--bytes", "1000"], export: ["--to", tmp_path / "new"]}[command]
    assert line in the_line(used(command, *arguments, folder=folder))
    assert not (tmp_path / "new").exists()


def test_other_bad_input_is_one_line(used, tmp_path):
    assert "the prompt has" in the_line(used(generate, "word " * 500))
    assert "--bytes 0" in the_line(used(evaluate, "--bytes", "0"))
    assert "no such file" in the_line(used(evaluate, "--data", tmp_path / "nothing"))
    assert "--last 9" in the_line(used(checkpoint, "--last", "9", "--to", tmp_path / "new", before=("average",)))
    assert "--keep 0" in the_line(used(checkpoint, "--keep", "0", before=("prune",)))
