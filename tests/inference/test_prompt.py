"""What is taken back of a prompt, and what may then come, against a walk over all tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yxanul.inference.prompt import Vocabulary, take_back

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = [b" by", b" by the", b" by the way", b" the", b" wa", b" way", b"way", b" c", b" cat", b"cat", "é".encode()]
TOKENS = [*BYTES, *WORDS, b""]  # the last is special
ID = {token: index for index, token in enumerate(TOKENS)}
VOCABULARY = Vocabulary(TOKENS)


@pytest.mark.parametrize(
    ("prompt", "kept", "rest"),
    [
        ([b" by the", b" wa"], [], b" by the wa"),
        ([b" cat", b" by"], [b" cat"], b" by"),
        ([b"cat"], [b"cat"], b""),  # nothing is longer
        ([b" by the way"], [b" by the way"], b""),
        ([b"x", b" "], [b"x"], b" "),
        ([b"", b" by"], [b""], b" by"),  # never a special token
        ([b"", b"\xc3"], [b""], b"\xc3"),  # half a character
        ([], [], b""),
    ],
)
def test_the_longest_ending_that_a_token_goes_beyond_is_taken_back(prompt, kept, rest):
    assert take_back([ID[token] for token in prompt], VOCABULARY) == ([ID[token] for token in kept], rest)


@given(st.lists(st.sampled_from(range(len(TOKENS) - 1)), max_size=8))
def test_nothing_is_lost(ids):
    kept, rest = take_back(ids, VOCABULARY)
    assert b"".join(TOKENS[token] for token in kept) + rest == b"".join(TOKENS[token] for token in ids)
    assert not rest or any(token.startswith(rest) and token != rest for token in TOKENS)


@given(st.text(" bythewacé", min_size=1, max_size=8))
def test_what_may_come_spells_the_rest_or_begins_with_it(text):
    rest = text.encode()
    may = [token for token in TOKENS if token and (token.startswith(rest) or rest.startswith(token))]
    expected = {ID[token] for token in may}
    assert set(VOCABULARY.spelling(rest).tolist()) == expected


def test_any_prompt_can_be_spelled_again():
    rest = b" by the wa"
    while rest:
        allowed = VOCABULARY.spelling(rest).tolist()
        assert allowed
        shortest = min(allowed, key=lambda index: len(TOKENS[index]))
        rest = rest[len(TOKENS[shortest]) :]
