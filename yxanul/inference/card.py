"""The model card of an exported run, filled from what the run says of itself."""

from yxanul.errors import UserError
from yxanul.files import read_record
from yxanul.inference.loading import OpenRun

AGAIN = "remove it and start the run's command again, which makes it"

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [yxanul]
---

# {name}

A {architecture} of {parameters:,} parameters, pretrained from nothing by Yxanul. It continues text; it was not taught
to follow instructions, and it repeats what is in its data, right or wrong.

| | |
|---|---|
{rows}

Every text begins with `{end}`: give it to the model before a prompt.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIR")
model = AutoModelForCausalLM.from_pretrained("DIR")
prompt = tokenizer("{end}" + "The", return_tensors="pt", add_special_tokens=False)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50)[0]))
```

The licence of the weights follows from that of the data, which the run does not know: add it here before publishing.
"""


def model_card(run: OpenRun, architecture: str) -> str:
    """Markdown, as the Hugging Face hub shows it.

    Raises:
        UserError: what the run says of itself is damaged, or its plan is missing.
    """
    config, state = run.config, run.state
    try:
        result = read_record(run.folder / "result.json", AGAIN, ["bits_per_byte", "eval_bytes", "held_out"])
    except FileNotFoundError:
        result = None
    path = run.folder / "plan.json"
    if not path.is_file():
        raise UserError(f"{path}: is missing; start the run's command again, which makes it")
    plan = read_record(path, AGAIN, ["computes", "stages", "device", "parameters"])
    rows = {
        "data": config.data.repo or config.data.path or config.data.kind.value,
        "trained on": f"{state.tokens:,} tokens, {state.bytes:,} bytes, {state.step:,} steps",
        "held out": _quality(result),
        "context": f"{config.model.max_seq_len:,} tokens",
        "tokenizer": f"{config.tokenizer.kind.value}, {config.tokenizer.vocab_size:,} entries",
        "precision": plan["computes"],
        "curriculum": " → ".join(f"{stage['seq_len']}" for stage in plan["stages"]) + " tokens",
        "device": plan["device"],
        "seed": str(config.seed),
    }
    return TEMPLATE.format(
        name=run.folder.name,
        architecture=architecture,
        parameters=plan["parameters"],
        end=config.tokenizer.end_of_text,
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
    )


def _quality(result: dict | None) -> str:
    if result is None:
        return "the run is not finished"
    return f"{result['bits_per_byte']:.4f} bits per byte of {result['eval_bytes']:,} bytes ({result['held_out']})"
