"""What a run reads, made if it is missing: tokenizer, tokens, and the text that it is judged on."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from yxanul.config import Config
from yxanul.data.ngrams import NGrams, load_ngrams, ngrams_path
from yxanul.data.preparation import held_out_texts, whole_text
from yxanul.data.shards import Corpus
from yxanul.files import keep_file
from yxanul.spent import all_seconds, seconds_for
from yxanul.tokenizer.load import Tokenizer
from yxanul.training.evaluation import HeldOut, held_out

PROMPT_TOKENS = 8
TOKENIZER, NGRAMS = "tokenizer.json", "ngrams.safetensors"
"""What a run keeps in its folder of what it read, so that its model can be used without the cache."""


@dataclass(frozen=True)
class Text:
    """What a run reads.

    Attributes:
        ngrams: what was counted in a part of the corpus.
        held_out: the text that it is judged on.
        prompts: ids that its samples begin with.
        preparation_seconds: what making tokenizer, tokens and n-grams took, whoever did it first.
        preparing_seconds: of these, what was spent now.
    """

    tokenizer: Tokenizer
    corpus: Corpus
    ngrams: NGrams | None
    held_out: HeldOut
    prompts: list[list[int]]
    preparation_seconds: float
    preparing_seconds: float


def keep_text(text: Text, config: Config, folder: Path) -> None:
    """Put into the run's folder what its model cannot be used without."""
    keep_file(text.tokenizer.path, folder / TOKENIZER)
    if text.ngrams:
        keep_file(ngrams_path(text.corpus, config.ngram, Path(config.data.cache).expanduser()), folder / NGRAMS)


def read_text(config: Config, console: Console) -> Text:
    """Open the data, load or train the tokenizer, tokenize and count what was not yet."""
    cache = Path(config.data.cache).expanduser()
    before = all_seconds(cache)
    tokenizer, corpus = whole_text(config.data, config.tokenizer, console)
    texts = held_out_texts(config.data, corpus, config.evaluate.bytes)
    console.print(
        f"{corpus.tokens:,} tokens of {corpus.bytes:,} bytes ({corpus.bytes / corpus.tokens:.3f} bytes a token) "
        f"in {corpus.folder}",
        highlight=False,
        soft_wrap=True,
    )
    vocab_size, end_of_text = config.tokenizer.vocab_size, tokenizer.end_of_text
    ngrams = load_ngrams(corpus, config.ngram, vocab_size, end_of_text, cache, console)
    made = (tokenizer.path.parent.name, corpus.folder.name, ngrams_path(corpus, config.ngram, cache).stem)
    spent = {name: seconds_for(cache, name) for name in made}
    prompts = [
        [tokenizer.end_of_text, *ids[:PROMPT_TOKENS]] for ids in tokenizer.encode(texts[: config.evaluate.samples])
    ]
    judged = held_out(texts, tokenizer, config.model.max_seq_len, config.evaluate.context_bytes)
    preparing = sum(seconds - before.get(name, 0.0) for name, seconds in spent.items())
    return Text(tokenizer, corpus, ngrams, judged, prompts, sum(spent.values()), preparing)
