"""What optuna is asked for an override."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from yxanul.errors import ConfigError
from yxanul.sweep.search import distribution

distributions = pytest.importorskip("optuna.distributions", reason="needs optuna: pip install 'yxanul[optuna]'")


def of(override: str):
    return distribution(OverridesParser.create().parse_override(override))


def test_an_interval_is_searched_as_it_is_written():
    assert of("a=interval(1, 5)") == distributions.FloatDistribution(1, 5)
    assert of("a=int(interval(1, 5))") == distributions.IntDistribution(1, 5)
    assert of("a=tag(log, interval(1e-4, 1e-2))") == distributions.FloatDistribution(1e-4, 1e-2, log=True)


@pytest.mark.parametrize("written", ["2,4,6", "choice(2,4,6)", "range(2,7,2)"])
def test_all_else_is_a_choice(written):
    assert of(f"a={written}") == distributions.CategoricalDistribution(["2", "4", "6"])


def test_a_choice_is_handed_on_as_it_was_written():
    for choice in of("a=choice('x y',[1,2],true)").choices:
        assert OverridesParser.create().parse_override(f"a={choice}").value() in ("x y", [1, 2], True)


@pytest.mark.parametrize("written", ["interval(5, 1)", "tag(log, interval(0, 1))"])
def test_an_interval_of_nothing_is_one_line(written):
    with pytest.raises(ConfigError) as caught:
        of(f"a.b={written}")
    assert str(caught.value).startswith(f"a.b={written}: ") and "\n" not in str(caught.value)
