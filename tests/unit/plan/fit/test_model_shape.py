"""The size of models that everybody knows."""

from __future__ import annotations

import pytest

from nexa_dist.errors import UsageError
from nexa_dist.plan.fit.model_shape import read
from tests.unit.plan.fit.known_models import KNOWN


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_model_has_the_parameters_that_it_is_known_for(name: str) -> None:
    config, parameters = KNOWN[name]
    assert read(config, name).parameters == pytest.approx(parameters, rel=1e-3)


def test_of_a_mixture_of_experts_a_token_goes_through_the_chosen_ones() -> None:
    assert read(KNOWN["Mixtral-8x7B"][0], "").active == pytest.approx(12.9e9, rel=0.01)
    assert read(KNOWN["Qwen3-30B-A3B"][0], "").active == pytest.approx(3.3e9, rel=0.02)


def test_a_model_that_nobody_can_count_is_refused() -> None:
    config = KNOWN["Llama-3-8B"][0]
    with pytest.raises(UsageError, match="model_type 'mamba' is none whose size is known"):
        read({**config, "model_type": "mamba"}, "config.json")
    for bad in (0, -1, 1.5, "8", True, None):
        with pytest.raises(UsageError, match="hidden_size must be a whole number above 0"):
            read({**config, "hidden_size": bad}, "config.json")
