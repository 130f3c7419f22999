"""What a run reads, made if it is missing: tokenizer, tokens, and the text that it is judged on."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from yxanul.config import Config
from yxanul.data.preparation import held_out_texts, whole_text
from yxanul.data.shards import Corpus
from yxanul.spent import all_seconds, seconds_for
from yxanul.tokenizer.load import Tokenizer
from yxanul.training.evaluation import HeldOut, held_out

PROMPT_TOKENS = 8


@dataclass(frozen=True)
class Text:
    """What a run reads.

    Attributes:
        held_out: the text that it is judged on.
        prompts: ids that its samples begin with.
        preparation_seconds: what making tokenizer and tokens took, whoever did it first.
        preparing_seconds: of these, what was spent now.
    """

    tokenizer: Tokenizer
    corpus: Corpus
    held_out: HeldOut
    prompts: list[list[int]]
    preparation_seconds: float
    preparing_seconds: float


def read_text(config: Config, console: Console) -> Text:
    """Open the data, load or train the tokenizer, tokenize what is not tokenized yet."""
    cache = Path(config.data.cache).expanduser()
    before = all_seconds(cache)
    tokenizer, corpus = whole_text(config.data, config.tokenizer, console)
    spent = {made.name: seconds_for(cache, made.name) for made in (tokenizer.path.parent, corpus.folder)}
    texts = held_out_texts(config.data, corpus, config.evaluate.bytes)
    console.print(
        f"{corpus.tokens:,} tokens of {corpus.bytes:,} bytes ({corpus.bytes / corpus.tokens:.3f} bytes a token) "
        f"in {corpus.folder}",
        highlight=False,
        soft_wrap=True,
    )
    prompts = [
        [tokenizer.end_of_text, *ids[:PROMPT_TOKENS]] for ids in tokenizer.encode(texts[: config.evaluate.samples])
    ]
    judged = held_out(texts, tokenizer, config.model.max_seq_len, config.evaluate.context_bytes)
    preparing = sum(seconds - before.get(name, 0.0) for name, seconds in spent.items())
    return Text(tokenizer, corpus, judged, prompts, sum(spent.values()), preparing)
