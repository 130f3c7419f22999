"""`python -m yxanul.generate RUN "prompt"`: text from a run's model, as it comes."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from yxanul.command import at_least, command_parser, run_command, whole

if TYPE_CHECKING:
    from yxanul.inference.loading import OpenRun

EPILOG = """\
examples:
  python -m yxanul.generate outputs/RUN "The cell is"
  python -m yxanul.generate outputs/RUN "def main(" --temperature 0 --stop "\\n\\n" --max-new-tokens 200
  python -m yxanul.generate outputs/RUN "Once" --samples 4 --top-p 0.9 --seed 7
  python -m yxanul.generate outputs/RUN            # asks for one prompt after another; Ctrl-D ends

A prompt may end in the middle of a word: what a longer token may stand for is written again by the model.
"""


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_command(lambda: answer(given))


def parser() -> argparse.ArgumentParser:
    parser = command_parser("generate", "Text from the newest checkpoint of a run.", EPILOG)
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder, below outputs/ or multirun_outputs/")
    parser.add_argument("prompt", nargs="?", help="what to continue; without it prompts are read from the terminal")
    parser.add_argument("--temperature", type=at_least(0.0), default=0.8, metavar="T", help="0 is greedy (0.8)")
    parser.add_argument(
        "--top-k", type=whole(0), default=50, metavar="K", help="of the K likeliest tokens; 0: all (50)"
    )
    parser.add_argument("--top-p", type=_share, default=1.0, metavar="P", help="of the likeliest with share P (1)")
    parser.add_argument("--max-new-tokens", type=whole(1), default=128, metavar="N", help="at most (128)")
    parser.add_argument(
        "--stop", type=_some_text, action="append", default=[], metavar="TEXT", help="end before this; may be repeated"
    )
    parser.add_argument("--samples", type=whole(1), default=1, metavar="N", help="continuations, drawn together (1)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the sampling (0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return parser


def answer(given: argparse.Namespace) -> int:
    from yxanul import hardware
    from yxanul.config import Device
    from yxanul.inference.loading import open_run

    run = open_run(given.run, hardware.select_device(Device(given.device)))
    if given.prompt is not None:
        _continue(run, given.prompt, given)
        return 0
    while (prompt := _asked()) is not None:
        _continue(run, prompt, given)
    return 0


def _asked() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _continue(run: "OpenRun", prompt: str, given: argparse.Namespace) -> None:
    """Print the continuations of a prompt: one as it comes, several when they are done."""
    from yxanul.inference.generate import Limits, generate
    from yxanul.model.sampling import Sampling

    alone = given.samples == 1
    begun = False

    def show(number: int, piece: str) -> None:
        nonlocal begun
        if alone:
            print(piece if begun else prompt + piece, end="", flush=True)
            begun = True

    stops = [each.replace("\\n", "\n") for each in given.stop]
    began = time.perf_counter()
    found = generate(
        run.model,
        run.config.model,
        run.tokenizer,
        prompt,
        given.samples,
        Limits(given.max_new_tokens, stops),
        Sampling(given.temperature, given.top_k or None, given.top_p),
        given.seed,
        show,
    )
    seconds = time.perf_counter() - began
    if alone:
        print()
    for number, each in enumerate(found, 1) if not alone else ():
        print(f"--- {number}, ended by {each.ended}\n{prompt}{each.text}")
    tokens = sum(each.drawn for each in found)
    ended = f", ended by {found[0].ended}" if alone else ""
    print(f"{tokens} tokens in {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s{ended}", file=sys.stderr)


def _share(text: str) -> float:
    value = at_least(0.0)(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share above 0 and up to 1")
    return value


def _some_text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty; name the text to end before")
    return text


if __name__ == "__main__":
    sys.exit(main())
