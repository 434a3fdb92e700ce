"""The closed forms behind sequential tests, against other people's figures, integrals, and themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from fairlead.statistics import Hypothesis, Moments, mean_effect, sequential_counts, sequential_effect
from fairlead.statistics.mixtures import beta_log_e, dirichlet_log_e, normal_log_e


def wanted(alpha: float) -> float:
    return 2 * math.log(1 / alpha) + math.log(1 + 2 * math.log(1 / alpha))


def test_normal_mixtures_are_those_of_the_authors() -> None:
    # confseq, uniform_boundaries_unittest.cpp: a sum of 10 at an intrinsic time of 100, tuned for 100.
    assert float(normal_log_e(1.0, wanted(0.05), "two_sided")) == pytest.approx(-0.6510052, abs=1e-7)
    assert float(normal_log_e(1.0, wanted(0.1), "greater")) == pytest.approx(-0.06502391, abs=1e-7)
    assert float(normal_log_e(-1.0, wanted(0.1), "less")) == pytest.approx(-0.06502391, abs=1e-7)


def test_beta_mixtures_are_those_of_the_authors() -> None:
    # The same file: g = 0.2, h = 0.8, s = 10, v = 100, which is 135 of 625 beside a chance of 0.2.
    two, one = (100 / wanted(alpha) / 0.16 - 1 for alpha in (0.05, 0.1))
    assert float(beta_log_e(135, 625, 0.2, two, "two_sided")) == pytest.approx(-0.6941012, abs=1e-7)
    assert float(beta_log_e(135, 625, 0.2, one, "greater")) == pytest.approx(-0.07134019, abs=1e-7)


@pytest.mark.parametrize(
    ("control", "treatment", "side"),
    [(6000, 500, "greater"), (5000, 1000, "greater"), (500, 6000, "less"), (10**6, 10, "greater")],
)
def test_a_better_treatment_is_never_evidence_that_it_is_worse(
    control: int, treatment: int, side: str
) -> None:
    watched = sequential_counts(
        control,
        treatment,
        treatment_share=0.5,
        tuned_for=200,
        hypothesis=Hypothesis(alternative=side),  # type: ignore[arg-type]
    )
    assert watched.log_e_value < 0
    assert watched.p_value == 1.0


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("strength", [0.5, 10.0, 1000.0])
def test_a_one_sided_bet_wins_more_with_each_success(p: float, strength: float) -> None:
    n = 5000
    log = beta_log_e(np.arange(n + 1), n, p, strength, "greater")
    assert np.isfinite(log).all()
    assert (np.diff(log) > 0).all()  # also across the border to where tails underflow
    mirrored = beta_log_e(np.arange(n, -1, -1), n, 1 - p, strength, "less")
    assert np.allclose(log, mirrored, rtol=0, atol=1e-8)


@pytest.mark.parametrize("spread", [1e-2, 1e-6, 1e-10, 1e-14, 1e-160])
def test_a_one_sided_watch_is_not_shaken_by_an_effect_of_many_standard_errors(spread: float) -> None:
    def arm(mean: float) -> Moments:
        return Moments(columns=("y",), n=1000, means=(mean,), products=((1000 * spread * spread,),))

    for side, sign in (("greater", 1), ("less", -1)):
        hypothesis = Hypothesis(alternative=side)  # type: ignore[arg-type]
        against, for_it = (
            sequential_effect(mean_effect(arm(0.0), arm(shift), "y", hypothesis=hypothesis), tuned_for=2000)
            for shift in (-sign, sign)
        )
        assert -1000 < against.log_e_value < 0
        assert against.effect.p_value == 1.0
        assert for_it.log_e_value > 100
        assert math.isfinite(for_it.log_e_value)


def test_the_wrong_side_of_a_normal_bet_is_its_integral() -> None:
    # At z the integral over positive drifts falls as 1/(|z|·√information·√(π/2)).
    for z in (-10.0, -1e3, -1e6):
        log = float(normal_log_e(z, 8.0, "greater"))
        assert log == pytest.approx(math.log(2 / (math.sqrt(2 * math.pi) * -z * math.sqrt(8))), abs=2 / -z)


@pytest.mark.parametrize("z", [-20.0, -3.0, 0.0, 2.0, 6.0])
def test_counts_of_a_trillion_are_judged_to_six_digits(z: float) -> None:
    n, p, strength = 10**12, 0.3, 10.0**10
    k = round(n * p + z * math.sqrt(n * p * (1 - p)))
    # At such n, beta weights are normal to 1e-4; what is checked is that no digit is lost before.
    near = float(normal_log_e(z, n / (strength + 1), "two_sided"))
    here, next_one = (float(beta_log_e(each, n, p, strength, "two_sided")) for each in (k, k + 1))
    assert here == pytest.approx(near, abs=2e-4 * (1 + abs(z) ** 3))
    one_more = next_one - here
    a, b = strength * p + k, strength * (1 - p) + n - k
    assert one_more == pytest.approx(math.log(a / (b - 1) * (1 - p) / p), abs=1e-8)


def test_a_dirichlet_mixture_is_its_product_of_predictions() -> None:
    rng = np.random.default_rng(5)
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    counts, log = np.zeros(4), 0.0
    for cell in rng.choice(4, 300, p=[0.4, 0.3, 0.2, 0.1]):
        log += math.log((7.0 * shares[cell] + counts[cell]) / (7.0 + counts.sum()) / shares[cell])
        counts[cell] += 1
    assert float(dirichlet_log_e(counts, shares, 7.0)) == pytest.approx(log, abs=1e-9)


def test_small_counts_agree_with_the_textbook_form() -> None:
    for k, n, p, strength in ((0, 1, 0.5, 2.0), (3, 7, 0.01, 50.0), (40, 40, 0.9, 0.5)):
        a, b = strength * p, strength * (1 - p)
        direct = special.betaln(a + k, b + n - k) - special.betaln(a, b)
        direct -= k * math.log(p) + (n - k) * math.log1p(-p)
        assert float(beta_log_e(k, n, p, strength, "two_sided")) == pytest.approx(float(direct), abs=1e-11)
