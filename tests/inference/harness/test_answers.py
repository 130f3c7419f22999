"""What a model answers lm-evaluation-harness: what is scored, what is greedy, and what is written."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from yxanul.errors import UserError
from yxanul.inference.generate import Limits, generate
from yxanul.inference.prompt import Vocabulary, take_back
from yxanul.model.sampling import Sampling

from .naive import CONTEXT, CPU, TEXT, reference, requests, scored_ids

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install 'yxanul[eval]'")

from yxanul.inference import harness

# what is scored

WORDS = st.lists(st.sampled_from(["the", " the", " default", " in", " value", " of", " an", "s", "\n", " é", "(", " "]))


@given(WORDS.map("".join), st.lists(WORDS.map("".join), min_size=1, max_size=3))
def test_all_of_a_continuation_is_scored_and_the_same_end_of_its_context(tokenizer, context, continuations):
    asked = harness.questions([(context, each) for each in continuations], tokenizer)
    for found, (ids, first), text in zip(
        asked, scored_ids(tokenizer, context, continuations), continuations, strict=True
    ):
        assert found.ids == ids and len(found.to_spell) == len(ids) - first
        scored = b"".join(tokenizer.token_bytes[token] for token in ids[first:])
        assert scored.endswith(text.encode())
        unsaid = scored.removesuffix(text.encode())
        for token, left in zip(ids[first:], found.to_spell, strict=True):
            assert left == unsaid
            unsaid = unsaid[len(tokenizer.token_bytes[token]) :]


def a_spanned_context(tokenizer):
    """A context, two continuations, and the id of a token that begins in the context and ends in the first of them."""
    for index, token in enumerate(tokenizer.token_bytes):
        words = token.decode(errors="replace").split(" ")
        if token.startswith(b" ") and len(words) == 3:
            context, continuation = f"def add {words[1]}", f" {words[2]}"
            if index in tokenizer.encode([context + continuation])[0]:
                return context, [continuation, "(self)"], index
    raise AssertionError("no superword")


def test_a_superword_that_spans_the_end_of_the_context_takes_its_end_with_it(tokenizer):
    context, continuations, superword = a_spanned_context(tokenizer)
    spanned, other = harness.questions([(context, each) for each in continuations], tokenizer)
    assert spanned.ids[-len(spanned.to_spell)] == superword
    end = tokenizer.token_bytes[superword].removesuffix(continuations[0].encode())
    assert spanned.to_spell[0] == other.to_spell[0] == end
    [alone] = harness.questions([(context, "(self)")], tokenizer)
    assert alone.to_spell[0] == b"" and len(alone.to_spell) < len(other.to_spell)


@given(st.integers(1, 60), st.integers(0, 60), st.integers(1, 20))
def test_windows_score_each_token_once(before, number, context):
    ids = list(range(before + number))
    scored = []
    for window, skipped in harness.Question(ids, [b""] * number).windows(context):
        assert 1 < len(window) <= context + 1 and all(later == earlier + 1 for earlier, later in pairwise(window))
        assert window[0] == 0 or len(window) == context + 1  # as much text before as fits
        scored += window[1 + skipped :]
    assert scored == ids[before:]


def test_likelihoods_are_those_of_each_text_read_alone(subject_of, model, tokenizer):
    context, continuations, _ = a_spanned_context(tokenizer)
    cases = [
        (context, continuations),
        ("", ["the default", "x"]),
        ("def parse_args(", ["self", "self, args=None"]),
        (TEXT[:1000], [" the default", "\n"]),  # does not fit
        ("Options: ", ["yes", " no", ""]),
    ]
    pairs = [(text, each) for text, endings in cases for each in endings]
    found = subject_of(model).loglikelihood(requests(*pairs))
    expected = [each for text, endings in cases for each in reference(model, tokenizer, text, endings)]
    assert [likelihood for likelihood, _ in found] == pytest.approx(expected, abs=1e-3)
    backwards = subject_of(model).loglikelihood(requests(*reversed(pairs)))
    assert [likelihood for likelihood, _ in reversed(backwards)] == pytest.approx(expected, abs=1e-3)


class Bigrams:
    """A model whose likeliest tokens are known: `following` says which after which; all others are told by chance."""

    def __init__(self, vocab_size, following):
        self.table = torch.rand(vocab_size, vocab_size, generator=torch.Generator().manual_seed(0))
        for before, after in following.items():
            self.table[before, after] = 2.0

    def next_token_logits(self, packed, rows):
        return self.table[packed.tokens[rows]]


def test_greedy_is_what_the_likeliest_tokens_say(subject_of, tokenizer):
    context, continuation = "def add_argument(", "self, *args)"
    ids = [tokenizer.end_of_text, *tokenizer.encode([context + continuation])[0]]
    assert len(set(ids)) == len(ids)
    likeliest = dict(pairwise(ids))
    known = subject_of(Bigrams(tokenizer.vocab_size, likeliest))
    assert [greedy for _, greedy in known.loglikelihood(requests((context, continuation), (context, "x")))] == [1, 0]
    before_last = subject_of(Bigrams(tokenizer.vocab_size, {**likeliest, ids[-2]: ids[0]}))
    assert not before_last.loglikelihood(requests((context, continuation)))[0][1]


def test_greedy_tokens_go_on_with_the_end_of_the_context(subject_of, tokenizer):
    """The likeliest token of all does not spell the end of the context; of those that do it is the superword."""
    context, [continuation, _], superword = a_spanned_context(tokenizer)
    ids = tokenizer.encode([context + continuation])[0]
    before = ids[ids.index(superword) - 1]
    model = Bigrams(tokenizer.vocab_size, {before: superword})
    [unrelated] = tokenizer.encode(["("])[0]
    model.table[before, unrelated] = 3.0
    assert subject_of(model).loglikelihood(requests((context, continuation)))[0][1]
    shorter = tokenizer.token_bytes.index(b" ")
    model.table[before, shorter] = 3.0
    assert not subject_of(model).loglikelihood(requests((context, continuation)))[0][1]


def test_a_text_is_scored_whole(subject_of, model, tokenizer):
    texts = [TEXT[:60], "é" * 20, "x"]
    found = subject_of(model).loglikelihood_rolling(requests(*[(text,) for text in texts]))
    expected = [next(reference(model, tokenizer, "", [text])) for text in texts]
    assert found == pytest.approx(expected, abs=1e-3)


# what is written


def test_text_is_what_generate_writes(run, config, model, tokenizer):
    subject = harness.open_subject(run, CPU, Console(quiet=True))
    prompts = ["def add_argument(self", "import "]
    found = subject.generate_until(requests(*[(prompt, {"until": [], "max_gen_toks": 12}) for prompt in prompts]))
    for prompt, text in zip(prompts, found, strict=True):
        [alone] = generate(model, config.model, tokenizer, prompt, 1, Limits(12), Sampling(temperature=0))
        assert text == alone.text and text
    stop = found[0][3:5]
    [stopped] = subject.generate_until(requests((prompts[0], {"until": [stop, ""], "max_gen_toks": 12})))
    assert stopped == found[0][: found[0].index(stop)]


def test_a_context_that_leaves_no_room_is_cut_from_the_left(subject_of, model, tokenizer):
    heard = []
    subject = subject_of(model, write=lambda prompt, limits, sampling, seed: heard.append((prompt, limits)) or "")
    subject.generate_until(requests(*[(TEXT[:1000], {"max_gen_toks": number}) for number in (8, 1000)], ("short", {})))
    for (prompt, limits), number, room in zip(heard, (8, 1000), (CONTEXT - 1 - 8, CONTEXT // 2), strict=False):
        assert limits.new_tokens == number and TEXT[:1000].endswith(prompt)
        assert room / 2 < len(tokenizer.encode([prompt])[0]) <= room
    assert heard[2][0] == "short"


def test_sampling_is_what_the_task_asks_for(subject_of, model):
    heard = []
    subject = subject_of(model, write=lambda prompt, limits, sampling, seed: heard.append((sampling, seed)) or "")
    asked = ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, {"do_sample": False, "temperature": 0.7})
    subject.generate_until(requests(*[("a", each) for each in asked]))
    assert heard == [(Sampling(0.7, None, 0.9), 0), (Sampling(0.0, None), 1)]
    with pytest.raises(UserError, match="num_beams"):
        subject.generate_until(requests(("a", {"num_beams": 4})))


def test_a_folder_answers_as_the_run_that_it_was(run, stock, tokenizer):
    ours, theirs = (harness.open_subject(folder, CPU, Console(quiet=True)) for folder in (run, stock))
    vocabulary = Vocabulary(tokenizer.token_bytes)
    kept = [line for line in TEXT.split("\n") if line and not take_back(tokenizer.encode([line])[0], vocabulary)[1]]
    prompts = requests(*[(line, {"max_gen_toks": 8}) for line in kept[:8]], (TEXT[:1000], {"max_gen_toks": 8}))
    texts = [[text.rstrip("\ufffd") for text in subject.generate_until(prompts)] for subject in (ours, theirs)]
    assert texts[0][:-1] == texts[1][:-1] and texts[1][-1]  # the end of a prompt that is cut is read otherwise
    longest = max(texts[0][:-1], key=len)
    stopped = requests((kept[texts[0].index(longest)], {"max_gen_toks": 8, "until": longest[2:4]}))
    assert theirs.generate_until(stopped) == ours.generate_until(stopped) == [longest[: longest.index(longest[2:4])]]

    pairs = requests(("def parse_args(", "self"), (TEXT[:1000], " default"))
    for one, other in zip(ours.loglikelihood(pairs), theirs.loglikelihood(pairs), strict=True):
        assert other == pytest.approx(one, abs=1e-3)
