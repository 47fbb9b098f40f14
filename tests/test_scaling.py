"""Scaling laws against what their papers and the runs planned with them report."""

import numpy as np
import pytest

from qianyi.plan.scaling import (
    BESIROGLU,
    DEEPSEEK,
    HOFFMANN,
    KAPLAN,
    LLAMA3,
    PF_DAY,
    AdditiveLaw,
    critical_batch_tokens,
    expected_losses,
    loss_by_compute,
    optima,
    tuned_batch_tokens,
    tuned_learning_rate,
)

GOPHER_FLOPS = 5.76e23
"""The budget of Gopher, for which Chinchilla was planned."""
CHINCHILLA_FLOPS = 6 * 70e9 * 1.4e12


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
@pytest.mark.parametrize("flops", [1e20, GOPHER_FLOPS, 1e26])
def test_the_optimum_is_the_least_loss_of_the_budget(law: AdditiveLaw, flops: float) -> None:
    found = law.optimum(flops)
    assert 6 * found.params * found.tokens == pytest.approx(flops)
    params = found.params * np.geomspace(0.1, 10, 20_001)
    losses = law.floor + law.params_scale / params**law.params_power
    losses += law.tokens_scale / (flops / (6 * params)) ** law.tokens_power
    assert params[np.argmin(losses)] == pytest.approx(found.params, rel=1e-3)
    assert losses.min() == pytest.approx(law.loss(found.params, found.tokens), rel=1e-9)


def test_chinchilla() -> None:
    """Hoffmann et al. 2022: approach 3 gives 40B parameters for Gopher's budget; the re-fit agrees with 70B on 1.4T tokens."""
    assert HOFFMANN.optimum(GOPHER_FLOPS).params == pytest.approx(40e9, rel=0.05)
    refit = BESIROGLU.optimum(CHINCHILLA_FLOPS)
    assert refit.params == pytest.approx(70e9, rel=0.05)
    assert refit.tokens == pytest.approx(1.4e12, rel=0.05)
    assert BESIROGLU.tokens_power / (BESIROGLU.tokens_power + BESIROGLU.params_power) == pytest.approx(
        0.5126, abs=2e-4
    )  # as published


def test_kaplan_foretold_gpt3() -> None:
    """Brown et al. 2020, figure 3.1: GPT-3 ended on the curve 2.57 x PF-days ** -0.048."""
    flops = 3.14e23
    measured = 2.57 * (flops / PF_DAY) ** -0.048
    assert KAPLAN.loss(174e9, 300e9) == pytest.approx(measured, rel=0.05)


def test_kaplan_agrees_with_itself() -> None:
    """Table 6 follows from equations 1.3 and 1.4: batches of 2.0e6 x PF-days ** 0.24 tokens, 2e10 x PF-days ** 0.27 tokens in all."""
    for days in (1, 100, 10_000):
        assert critical_batch_tokens(loss_by_compute(days * PF_DAY)) == pytest.approx(2.0e6 * days**0.24, rel=0.07)
        # At the critical batch a run needs twice the tokens.
        assert 2 * KAPLAN.optimum(days * PF_DAY).tokens == pytest.approx(2e10 * days**0.27, rel=0.12)
    assert KAPLAN.loss(1e9, 1e20) == pytest.approx((6.4e13 / 1e9) ** 0.076, rel=1e-4)
    assert KAPLAN.loss(1e20, 1e9) == pytest.approx((1.8e13 / 1e9) ** 0.103, rel=1e-4)


def test_llama3() -> None:
    """The paper's own reading of its curve at 3.8e25 FLOPs; its constants are rounded to three figures."""
    found = LLAMA3.optimum(3.8e25)
    assert found.tokens == pytest.approx(16.55e12, rel=0.02)
    assert found.params == pytest.approx(402e9, rel=0.04)
    assert found.extrapolation == pytest.approx(3800)


def test_deepseek() -> None:
    """Equation 4 gives both sides of the budget, and equation 1 the batches and learning rates of both released models (table 2)."""
    for flops in (1e18, 1e24):
        assert 6 * DEEPSEEK.optimum(flops).params == pytest.approx(0.1715 * flops**0.5243, rel=1e-3)
    runs = {7e9: (2304 * 4096, 4.2e-4), 67e9: (4608 * 4096, 3.2e-4)}
    for params, (batch, rate) in runs.items():
        assert tuned_batch_tokens(6 * params * 2e12) == pytest.approx(batch, rel=0.03)
        assert tuned_learning_rate(6 * params * 2e12) == pytest.approx(rate, rel=0.03)


def test_forecasts_say_how_far_they_reach() -> None:
    inside = {forecast.law: forecast.extrapolation for forecast in expected_losses(1e9, 2e10)}
    assert set(inside.values()) == {1.0}
    outside = {forecast.law: forecast for forecast in expected_losses(160e9, 2e12, embedding_params=10e9)}
    assert outside[HOFFMANN.name].extrapolation == pytest.approx(10)
    assert outside[KAPLAN.name].extrapolation == pytest.approx(150e9 / 1.5e9)
    assert outside[KAPLAN.name].loss == KAPLAN.loss(150e9, 2e12)
    assert all(1.5 < forecast.loss < 2.5 and forecast.source for forecast in outside.values())


def test_laws_disagree_on_the_division_as_is_known() -> None:
    """Kaplan et al. give most to parameters; Llama 3 and the re-fit of Chinchilla lie near each other."""
    params = {found.law: found.params for found in optima(1e24)}
    assert max(params, key=lambda law: params[law]) == KAPLAN.name
    assert params[LLAMA3.name] == pytest.approx(params[BESIROGLU.name], rel=0.35)
