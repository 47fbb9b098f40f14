"""Whole runs: sums over a ramp, inverse questions, and what published runs took, cost and burned."""

from itertools import accumulate

import pytest
from models import GPT

from qianyi.config.counts import flops_per_token
from qianyi.config.load import load
from qianyi.config.ramp import batch_size_of, tokens_before
from qianyi.config.schema import BatchStage, Config, TrainConfig
from qianyi.errors import ConfigError
from qianyi.plan.campaign import Site, by_budget, by_deadline, campaign, stage_times, steps_within
from qianyi.plan.money import GRIDS, Grid, Power, PriceRange, bill, grid, parse_price
from qianyi.plan.reliability import DAY, RECORDS, Reliability
from qianyi.plan.scaling import BESIROGLU, HOFFMANN, KAPLAN

RAMP = (BatchStage(batch_size=8, sequences=80), BatchStage(batch_size=16, sequences=330))
TRAIN = TrainConfig(batch_size=32, seq_len=128, steps=100, batch_ramp=RAMP)
RECIPE = Config(model=GPT, train=TRAIN)
SITE = Site(
    n_chips=1000,
    reliability=Reliability(write_seconds=20, restart_seconds=300),
    price=PriceRange(2, 5),
    power=Power(tdp_watts=500, pue=1.2, grid=Grid(0.4, "test")),
)


def step_seconds(batch_size: int) -> float:
    """With a bubble that smaller batches feel more."""
    return 10 + 3.0 * batch_size


def of_steps(steps: int) -> Config:
    return RECIPE.model_copy(update={"train": TRAIN.model_copy(update={"steps": steps})})


@pytest.mark.parametrize("steps", [1, 10, 11, 25, 31, 32, 100])
def test_time_is_summed_over_the_ramp(steps: int) -> None:
    """Also of runs that end within it."""
    train = of_steps(steps).train
    stages = stage_times(train, step_seconds)
    assert sum(stage.steps for stage in stages) == steps
    assert sum(stage.tokens for stage in stages) == tokens_before(train, steps)
    assert sum(stage.seconds for stage in stages) == pytest.approx(
        sum(step_seconds(batch_size_of(train, s)) for s in range(steps))
    )


def test_steps_that_fit_into_a_time() -> None:
    needed = list(accumulate(step_seconds(batch_size_of(TRAIN, s)) for s in range(60)))
    for seconds in (1, 34, *needed, *(n - 1 for n in needed), *(n + 1 for n in needed)):
        expected = sum(n <= seconds for n in needed)
        if expected < 60:
            assert steps_within(TRAIN, step_seconds, seconds) == expected


def test_a_run_that_hardly_fails() -> None:
    """Then time, money and energy are plain products."""
    site = Site(
        n_chips=10, reliability=Reliability(chip_hours_between=1e12, write_seconds=1e-9), price=SITE.price, power=SITE.power
    )
    config = RECIPE.model_copy(update={"train": TrainConfig(batch_size=32, seq_len=128, steps=1000)})
    found = campaign(config, lambda _: 3.6, site)
    assert found.wall_days * 24 == pytest.approx(1.0, rel=1e-4)
    assert found.bill.chip_hours == pytest.approx(10, rel=1e-4)
    assert found.bill.dollars is not None
    assert (found.bill.dollars.low, found.bill.dollars.high) == pytest.approx((20, 50), rel=1e-4)
    assert found.bill.energy_kwh == pytest.approx(10 * 0.5 * 1.2, rel=1e-4)
    assert found.bill.carbon_tonnes == pytest.approx(10 * 0.5 * 1.2 * 0.4 / 1000, rel=1e-4)
    assert found.tokens == 1000 * 32 * 128
    assert found.flops == pytest.approx(found.tokens * flops_per_token(GPT, 128))


def test_checkpoints_come_after_whole_steps() -> None:
    found = campaign(of_steps(2000), step_seconds, SITE)
    assert found.checkpoint_seconds == found.checkpoint_steps * step_seconds(32)
    best = (2 * 20 * SITE.reliability.seconds_between(1000)) ** 0.5
    assert found.checkpoint_seconds == pytest.approx(best, rel=0.06)
    slow = Site(n_chips=1000, reliability=Reliability(write_seconds=0.01, lag_seconds=5000))
    assert campaign(of_steps(2000), step_seconds, slow).checkpoint_seconds >= 5000 - 0.01


@pytest.mark.parametrize("days", [0.01, 0.02, 1, 30])
def test_what_a_deadline_leaves(days: float) -> None:
    found = by_deadline(RECIPE, step_seconds, SITE, wall_days=days)
    assert found.wall_days <= days < campaign(of_steps(found.steps + 1), step_seconds, SITE).wall_days
    assert found == campaign(of_steps(found.steps), step_seconds, SITE)


def test_what_a_budget_leaves() -> None:
    dear, cheap = by_budget(RECIPE, step_seconds, SITE, dollars=100_000)
    assert dear.bill.dollars is not None
    assert cheap.bill.dollars is not None
    assert dear.bill.dollars.high == pytest.approx(100_000, rel=0.01)
    assert cheap.bill.dollars.low == pytest.approx(100_000, rel=0.01)
    assert dear.bill.dollars.high <= 100_000 >= cheap.bill.dollars.low
    assert dear.tokens < cheap.tokens


def test_what_cannot_be_afforded_is_said() -> None:
    with pytest.raises(ConfigError, match="too short for one step of 34 s"):
        by_deadline(RECIPE, step_seconds, SITE, wall_days=30 / DAY)
    with pytest.raises(ConfigError, match="no price of this chip is known"):
        by_budget(RECIPE, step_seconds, Site(n_chips=8, reliability=SITE.reliability), dollars=1000)


def test_llama3_405b() -> None:
    """At 400 TFLOP/s per GPU (table 4: 380 to 430) and with the failures of its own record.

    The model card says 30.84 million GPU-hours and 8,930 t at 700 W.
    """
    config = load("llama3-405b").config
    per_sequence = flops_per_token(config.model, config.train.seq_len) * config.train.seq_len
    reliability = Reliability(write_seconds=5, lag_seconds=60, restart_seconds=600)
    site = Site(
        n_chips=16_384, reliability=reliability, power=Power(tdp_watts=700, grid=grid("us")), price=PriceRange(2.49, 12.29)
    )
    found = campaign(config, lambda batch: batch * per_sequence / (16_384 * 400e12), site)
    assert found.tokens == pytest.approx(15.6e12, rel=1e-3)
    assert found.flops == pytest.approx(3.8e25, rel=0.04)
    assert found.bill.chip_hours == pytest.approx(30.84e6, rel=0.05)
    assert found.bill.carbon_tonnes == pytest.approx(8930, rel=0.05)
    assert found.time.effective_ratio > 0.90
    assert [stage.batch_size for stage in found.stages] == [512, 1024, 2048]
    assert found.loss_range == pytest.approx((HOFFMANN.loss(405.85e9, 15.6e12), BESIROGLU.loss(405.85e9, 15.6e12)), rel=1e-4)


def test_bloom() -> None:
    """Steps of 105.2 s (chronicles) and a failure a week: 1,082,990 GPU-hours for 366 billion tokens (Luccioni et al. 2022)."""
    record = next(r for r in RECORDS if r.name == "BLOOM")
    config = load("bloom-176b", [f"train.steps={round(366e9 / 2048**2)}"]).config
    reliability = Reliability(chip_hours_between=record.chip_hours_between, write_seconds=40, restart_seconds=1800)
    found = campaign(config, lambda _: 105.2, Site(n_chips=384, reliability=reliability, power=Power(tdp_watts=400, pue=1)))
    assert found.bill.chip_hours == pytest.approx(1_082_990, rel=0.10)
    assert found.interruptions == pytest.approx(found.wall_days / 7)
    assert found.bill.dollars is None


@pytest.mark.parametrize(
    ("hours", "mwh", "tonnes"),
    [(82_432, 36, 14), (135_168, 59, 23), (530_432, 233, 90), (1_022_362, 449, 173), (809_472, 356, 137), (1_082_880, 475, 183)],
)
def test_energy_and_carbon_of_llama(hours: int, mwh: int, tonnes: int) -> None:
    """Touvron et al. 2023, table 15: 400 W, PUE 1.1 and the average of the United States."""
    found = bill(hours, None, Power(tdp_watts=400, grid=grid("us")))
    assert found.energy_kwh == pytest.approx(mwh * 1e3, rel=0.02)
    assert found.carbon_tonnes == pytest.approx(tonnes, rel=0.03)


def test_energy_and_carbon_of_bloom() -> None:
    """Luccioni et al. 2022, table 1: 433,196 kWh and 24.7 t of dynamic consumption at 57 g per kWh; Ember gives France 56."""
    found = bill(1_082_990, None, Power(tdp_watts=400, pue=1, grid=grid("France")))
    assert found.energy_kwh == pytest.approx(433_196)
    assert found.carbon_tonnes == pytest.approx(24.7, rel=0.03)


def test_losses_are_forecast_where_a_law_applies() -> None:
    decoder = campaign(of_steps(100), step_seconds, SITE)
    assert decoder.loss_range is not None
    assert decoder.critical_batch_tokens is not None
    kaplan = next(forecast for forecast in decoder.losses if forecast.law == KAPLAN.name)
    assert decoder.critical_batch_tokens == pytest.approx(2e8 / kaplan.loss ** (1 / 0.21))
    bert = campaign(load("bert-base").config, step_seconds, SITE)
    assert (bert.losses, bert.optima, bert.loss_range, bert.critical_batch_tokens) == ((), (), None, None)
    mixture = campaign(load("mixtral-8x7b").config, step_seconds, SITE)
    assert any("experts" in line for line in mixture.assumptions)


def test_assumptions_are_stated() -> None:
    text = "\n".join(campaign(RECIPE, step_seconds, SITE).assumptions)
    for words in (
        "chip-hours between interruptions",
        "2 to 5 dollars",
        "500 W per chip x 1 x PUE 1.2 = 600 W",
        "0.4 kg CO2e per kWh",
    ):
        assert words in text
    assert bill(1, None, None).assumptions == ("price: unknown", "power: unknown")


def test_prices() -> None:
    assert parse_price("2.49-12.29") == PriceRange(2.49, 12.29)
    assert parse_price(" 4.2 ") == PriceRange(4.2, 4.2)
    assert parse_price("") is None
    for wrong in ("cheap", "3-2", "-1", "0", "1-x"):
        with pytest.raises(ConfigError):
            parse_price(wrong)


def test_regions() -> None:
    assert all(0 < known.kg_per_kwh < 1 and known.source for known in GRIDS.values())
    with pytest.raises(ConfigError, match="did you mean `germany`"):
        grid("germny")
