"""`python -m yxanul.export RUN --to DIR`: a run's model as a folder that stock `transformers` loads."""

import json
import shutil
import sys
from pathlib import Path

from yxanul.command import command_parser, run_command
from yxanul.errors import UserError

EPILOG = """\
examples:
  python -m yxanul.export outputs/RUN --to nano-stdlib
  python -c "from transformers import pipeline; print(pipeline('text-generation', 'nano-stdlib')('import '))"

The folder holds config.json, model.safetensors, generation_config.json, the tokenizer and a model card. It needs no
code of ours: the model is written as Llama, as Qwen3 where queries and keys are normalized, or as GPT-2.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = command_parser("export", "A run's newest checkpoint as a folder that stock transformers loads.", EPILOG)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, below outputs/ or multirun_outputs/")
    parser.add_argument(
        "--to", type=Path, required=True, metavar="DIR", help="the folder to make; it must not be there"
    )
    given = parser.parse_args(arguments)
    return run_command(lambda: export(given.run, given.to))


def export(folder: Path, target: Path) -> int:
    """Write the folder, whole or not at all.

    Raises:
        UserError: `folder` is no run that can be exported, or `target` is there or cannot be made.
    """
    import torch
    from safetensors.torch import save_file

    from yxanul.config import Dtype
    from yxanul.files import atomic_folder
    from yxanul.inference.card import model_card
    from yxanul.inference.loading import open_run
    from yxanul.inference.stock import to_stock

    if target.exists():
        raise UserError(f"{target}: is there already; name another folder with --to, or remove it")
    run = open_run(folder, torch.device("cpu"), Dtype.fp32)
    stock = to_stock(run.config, run.model, run.tokenizer.end_of_text)
    end = run.config.tokenizer.end_of_text
    described = {
        "config.json": stock.config,
        "generation_config.json": {
            "bos_token_id": run.tokenizer.end_of_text,
            "eos_token_id": run.tokenizer.end_of_text,
            "do_sample": True,
            "temperature": 0.8,
            "top_k": 50,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
            "model_max_length": run.config.model.max_seq_len,
            "clean_up_tokenization_spaces": False,
        },
    }
    try:
        with atomic_folder(target) as temporary:
            save_file(stock.tensors, temporary / "model.safetensors", metadata={"format": "pt"})
            shutil.copyfile(run.tokenizer.path, temporary / "tokenizer.json")
            for name, content in described.items():
                (temporary / name).write_text(json.dumps(content, indent=2) + "\n")
            (temporary / "README.md").write_text(model_card(run, stock.config["architectures"][0]), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); name another folder with --to") from error
    size = (target / "model.safetensors").stat().st_size
    print(f"{target}: {stock.config['architectures'][0]}, {size / 2**20:,.1f} MiB, step {run.state.step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
