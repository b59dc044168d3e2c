"""A wrong ``predicts`` is found on the forward marginals, a poor network is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from learned_models import LAW, Exact, Recording, learned_ledger
from torch import nn

from thermodiff import account
from thermodiff.densities import Density, Gaussian, GaussianMixture, PointCloud, Samples, paper_mixture
from thermodiff.learned.adapters import adapt
from thermodiff.learned.field import Field
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.networks import ControlMLP
from thermodiff.learned.predict import PREDICTS
from thermodiff.learned.reading import check_reading
from thermodiff.schedules import VE, VP, CondOT, Cosine, Schedule, StraightLine, SubVP

# Pixels in [0, 1], most of them dark: off centre and narrow, where v and eps are nearly the same thing.
PIXELS = PointCloud(np.random.default_rng(0).random((300, 64)) ** 3 * np.linspace(0.0, 1.0, 64))
LAWS = {"two": LAW, "nine": paper_mixture(9), "pixels": PIXELS, "narrow": Gaussian([0.3] * 8, std=0.05)}
SCHEDULES = [VP(), VP(scale=0.1), StraightLine(scale=0.1), SubVP(), Cosine(scale=2.0), CondOT(scale=0.5)]
NETWORKS = [name for name in PREDICTS if name != "edm"]


def check(law: Density, noise: Schedule, is_: str, read: str, data: Any = None, change: Any = None) -> None:
    field = Field(Exact(law, noise, is_, change=change), read, noise, (law.dim,), 8192)
    check_reading(field, law if data is None else data)


def silent(law: Density, noise: Schedule, is_: str, read: str, change: Any = None) -> bool:
    try:
        check(law, noise, is_, read, change=change)
    except ValueError as error:
        if f"Pass predicts={is_!r}" not in str(error) and change is None:
            raise
        return False
    return True


@pytest.mark.parametrize("noise", SCHEDULES, ids=lambda noise: noise.name)
@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_wrong_reading_is_refused_and_the_right_one_named(law: Density, noise: Schedule) -> None:
    """All pairs but those whose two readings give nearly one score on these data."""
    assert all(silent(law, noise, name, name) for name in PREDICTS)
    missed = {(is_, read) for is_ in NETWORKS for read in NETWORKS if is_ != read and silent(law, noise, is_, read)}
    assert all(_alike(law, noise, *pair) for pair in missed), missed


def _alike(law: Density, noise: Schedule, is_: str, read: str) -> bool:
    """Whether reading ``is_`` as ``read`` costs little: S_NN moves by less than a tenth of the window's length."""
    window = (-4.0, 4.0 - np.log(np.trace(law.covariance()) / law.dim))
    ledgers = []
    for name in (is_, read):
        model = LearnedDiffusion(Exact(law, noise, is_), law, noise, predicts=name)
        model._tried = True
        ledgers.append(account(model, lam=window, samples=256, nodes=12, rng=0))
    return ledgers[1].total("mismatch").value < 0.1 * law.dim * (window[1] - window[0]) / 2


@pytest.mark.parametrize("law", [LAW, paper_mixture(3), paper_mixture(6)], ids=["two", "three", "six"])
@pytest.mark.parametrize("read", NETWORKS)
def test_edm_denoisers(read: str, law: Density) -> None:
    """Asked at t instead of sigma / alpha, some are still nearly right."""
    with pytest.raises((ValueError, UserWarning), match="Pass predicts='edm'|read as 'edm' its denoising loss") as found:
        check(law, VP(), "edm", read)
    assert read == "x0" or found.type is ValueError


def white() -> GaussianMixture:
    """Mean 0 and covariance 1 in every direction, with two peaks along the first."""
    return GaussianMixture(0.9 * np.eye(8)[0] * np.array([[-1.0], [1.0]]), covs=[np.diag([0.19] + [1.0] * 7)] * 2)


@pytest.mark.parametrize("noise", [VP(), StraightLine(), Cosine()], ids=lambda noise: noise.name)
def test_a_small_control_is_told_from_none(noise: Schedule) -> None:
    """On white data it is small, and a network that gives zero is nearly right."""
    for read in ("score", "eps", "x0"):
        with pytest.raises(ValueError, match="Pass predicts='(entropy|flow)'"):
            check(white(), noise, "entropy", read)
        with pytest.warns(UserWarning, match="has not the scale of a score|the network has learned little"):
            check(white(), noise, read, read, change=lambda output: 0.0 * output)
    with pytest.warns(UserWarning, match="the network has learned little"):
        check(white(), noise, "entropy", "eps", change=lambda output: 0.0 * output)


def shifted(law: Density, noise: Schedule, predicts: str, constant: float = 0.0, factor: float = 1.0) -> Exact:
    """The exact network with ``factor`` times the score, and ``constant`` more in each coordinate of b."""
    net = Exact(law, noise, predicts)
    score = law.score

    class Wrong:
        def score(self, x: Any, alpha: float, sigma: float) -> Any:
            return factor * score(x, alpha=alpha, sigma=sigma) + constant / sigma

    net.law = Wrong()  # type: ignore[assignment]
    return net


OFFSET = GaussianMixture([[-1.5] + [-0.5] * 4, [0.5] + [-0.5] * 4], covs=[np.diag([v] + [0.6] * 4) for v in (0.01, 0.2)])
MODERATE = [
    ("white", Cosine(), "edm", 0.0, 1.2),
    ("white", Cosine(), "edm", 0.0, 0.8),
    ("offset", Cosine(), "v", 0.2, 1.0),
    ("offset", Cosine(), "v", 0.25, 1.0),
    ("offset", StraightLine(), "v", 0.3, 1.0),
    ("offset", StraightLine(scale=0.1), "flow", 1.0, 1.0),
    ("nine", VP(), "edm", 0.3, 1.0),
]


@pytest.mark.filterwarnings("ignore:.*the network has learned little")
@pytest.mark.parametrize(("law", "noise", "predicts", "constant", "factor"), MODERATE)
def test_a_right_reading_with_a_known_error_is_not_refused(
    law: str, noise: Schedule, predicts: str, constant: float, factor: float
) -> None:
    data = {"white": white(), "offset": OFFSET, "nine": paper_mixture(9)}[law]
    for each in (data, Samples(data.sample(500, 0))):
        net = shifted(data, noise, predicts, constant, factor)
        check_reading(Field(net, predicts, noise, (data.dim,), 8192), each)


def test_a_reading_that_clearly_fails_is_warned_of() -> None:
    """No other reading does better: a score with a constant error of 1."""
    with pytest.warns(
        UserWarning, match=r"read as predicts='score', has not the scale .* or the network has learned little"
    ):
        check_reading(Field(shifted(LAW, VP(), "score", 1.0), "score", VP(), (2,), 8192), LAW)


@pytest.mark.parametrize("read", NETWORKS)
def test_networks_that_are_no_edm_denoisers(read: str) -> None:
    with pytest.raises(ValueError, match=f"read as predicts='edm', .* Pass predicts={read!r}"):
        check(LAW, VP(), read, "edm")


@pytest.mark.parametrize("noise", [VP(), StraightLine(scale=0.1)], ids=lambda noise: noise.name)
def test_samples_of_an_unknown_law(noise: Schedule) -> None:
    data = Samples(LAW.sample(500, 0))
    for name in PREDICTS:
        check(LAW, noise, name, name, data)
    for is_, read in (("eps", "score"), ("eps", "v"), ("score", "eps"), ("x0", "v"), ("v", "x0"), ("entropy", "score")):
        with pytest.raises(ValueError, match=f"Pass predicts={is_!r}"):
            check(LAW, noise, is_, read, data)


def test_without_drift_the_control_is_the_score() -> None:
    assert silent(LAW, VE(), "score", "entropy")
    assert silent(LAW, VE(), "entropy", "score")


POOR: dict[str, Callable[[Any], Any]] = {
    "zero": lambda output: 0.0 * output,
    "half": lambda output: 0.5 * output,
    "a fifth less": lambda output: 0.8 * output,
    "a fifth more": lambda output: 1.2 * output,
    "one": lambda output: 0.0 * output + 1.0,
    "noise": lambda output: output + np.random.default_rng(0).standard_normal(output.shape),
}


def test_a_reading_that_is_probably_wrong_is_warned_of() -> None:
    """A mediocre network: its right reading fails the identities too."""
    mediocre = lambda output: 0.7 * output  # noqa: E731
    for read in ("score", "x0"):
        with pytest.warns(UserWarning, match=r"read as 'eps' its denoising loss would be \d+\.\d times smaller"):
            check(LAW, VP(), "eps", read, change=mediocre)
    check(LAW, VP(), "eps", "eps", change=mediocre)


@pytest.mark.filterwarnings("ignore:.*the network has learned little")
@pytest.mark.parametrize("change", POOR.values(), ids=POOR)
@pytest.mark.parametrize("noise", [VP(), VP(scale=0.1), SubVP()], ids=lambda noise: noise.name)
def test_poor_networks_are_measured(noise: Schedule, change: Callable[[Any], Any]) -> None:
    for name in NETWORKS:
        for law in (LAW, LAWS["narrow"]):
            assert silent(law, noise, name, name, change), name


@pytest.mark.filterwarnings("ignore:.*the network has learned little")
def test_untrained_networks_are_measured() -> None:
    for rng in range(5):
        net = ControlMLP(2, rng=rng)
        net.precondition(LAW.mean(), LAW.covariance(), VP())
        check_reading(Field(net, "entropy", VP(), (2,), 8192), LAW)
        torch.manual_seed(rng)
        plain = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 2))
        for name in PREDICTS:
            check_reading(Field(_Timeless(plain), name, VP(), (2,), 8192), LAW)


class _Timeless(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def test_an_account_refuses_once_and_tries_once() -> None:
    with pytest.raises(ValueError, match=r"read as predicts='score', has not the scale of a score .* Pass predicts='eps'"):
        learned_ledger(Exact(LAW, VP(), "eps"), VP(), predicts="score")
    counter = Recording()
    model = LearnedDiffusion(counter, LAW, VP())
    model.try_out()
    first = len(counter.seen)
    assert 0 < sum(seen[3] for seen in counter.seen) <= 2 * 5 * 512
    model.try_out()
    assert len(counter.seen) == first


def test_being_asked_for_times_that_do_not_exist_is_not_shown() -> None:
    """As an EDM denoiser a network gets sigma / alpha for its time, beyond 1 at the noise end."""
    net = ControlMLP(2, rng=0)
    net.precondition(LAW.mean(), LAW.covariance(), StraightLine())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LearnedDiffusion(net, LAW, StraightLine()).try_out()
    assert not [one for one in caught if issubclass(one.category, RuntimeWarning)]


def test_few_samples_of_images_are_asked() -> None:
    """16 samples at 5 levels for d = 784."""
    points = np.random.default_rng(0).random((20, 784))
    counter = Recording()
    LearnedDiffusion(counter, points, VP()).try_out()
    assert sum(seen[3] for seen in counter.seen) in (80, 160)


def test_a_score_that_is_not_finite_is_left_to_the_account() -> None:
    assert silent(LAW, VP(), "score", "score", lambda output: output * np.nan)


class Partly(Exact):
    """Gives nan, or fails, below some log-SNR."""

    def __init__(self, *args: Any, below: float, fails: bool = False) -> None:
        super().__init__(*args)
        self.below, self.fails = below, fails

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        bad = float(self.noise.lam(float(t[0]))) < self.below
        if bad and self.fails:
            raise ValueError("there is no such time")
        return super().forward(x, t) * (float("nan") if bad else 1.0)


@pytest.mark.parametrize("fails", [False, True])
def test_levels_that_tell_nothing_do_not_switch_the_check_off(fails: bool) -> None:
    right = Partly(LAW, VP(), "eps", below=-2.5, fails=fails)
    check_reading(Field(right, "eps", VP(), (2,), 8192), LAW)
    with pytest.raises(ValueError, match="Pass predicts='eps'"):
        check_reading(Field(right, "score", VP(), (2,), 8192), LAW)
    # What is left is narrow: a right reading that is off by a factor could look like that.
    with pytest.warns(UserWarning, match="read as 'eps' its denoising loss would be"):
        check_reading(Field(Partly(LAW, VP(), "eps", below=1.0, fails=fails), "score", VP(), (2,), 8192), LAW)


def test_a_network_that_fails_everywhere_says_why() -> None:
    with pytest.raises(ValueError, match="there is no such time"):
        check_reading(Field(Partly(LAW, VP(), "eps", below=50.0, fails=True), "eps", VP(), (2,), 8192), LAW)


@pytest.mark.parametrize(("noise", "is_"), [(VP(), "v"), (SubVP(), "x0"), (VP(), "x0")])
def test_what_overflows_where_it_is_asked_wrongly_is_still_judged(noise: Schedule, is_: str) -> None:
    """As an EDM denoiser it is asked at t = sigma / alpha, beyond 1, and gives infinities there."""
    with pytest.raises(ValueError, match=f"read as predicts='edm', .* Pass predicts={is_!r}"):
        check(Gaussian([0.0] * 3, std=4.0), noise, is_, "edm")


# Where the network can be asked


class Asked(Exact):
    """Knows its window, keeps the log-SNR it was asked at, and has no other."""

    def __init__(self, *args: Any, window: tuple[float, float]) -> None:
        super().__init__(*args)
        self.window, self.seen = window, []

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.seen.append(float(self.noise.lam(float(t[0]))))
        if not self.window[0] <= self.seen[-1] <= self.window[1]:
            raise ValueError("outside of the window")
        return super().forward(x, t)


@pytest.mark.parametrize("window", [(-1.91, 2.94), (3.0, 9.0), (-8.0, -6.0), (-20.0, 1.0), (0.5, 0.6)])
def test_the_levels_lie_inside_the_window_of_the_network(window: tuple[float, float]) -> None:
    net = Asked(LAW, VP(), "eps", window=window)
    check_reading(Field(net, "eps", VP(), (2,), 8192), LAW)
    inside = net.seen[:5]
    assert window[0] < min(inside) < max(inside) < window[1]
    assert len(set(inside)) == 5
    if -8.0 < window[0] and window[1] - window[0] > 4.0:
        with pytest.raises(ValueError, match="Pass predicts='eps'"):
            check_reading(Field(net, "score", VP(), (2,), 8192), LAW)


def test_in_a_narrow_window_a_right_reading_is_not_refused() -> None:
    """At one log-SNR a score that is off by the factor sigma cannot be told from an eps."""
    sigma = float(VP().at(1.0).sigma)
    net = shifted(LAW, VP(), "score", factor=-1.0 / sigma)
    net.window = (0.95, 1.05)  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=r"Either predicts= is wrong, or the network has learned little"):
        check_reading(Field(net, "score", VP(), (2,), 8192), LAW)


@pytest.mark.parametrize("noise", [VP(), None], ids=["window", "no window"])
def test_narrow_data_and_few_steps(noise: Schedule | None) -> None:
    """The finest structures lie beyond the first step; the account does not go there."""

    class Eps(nn.Module):
        def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
            return x * ((step + 1) / 1000)[:, None]

    data = np.random.default_rng(0).normal(0.0, 0.02, (200, 2))
    net = adapt(Eps(), time="steps", steps=1000, noise=noise)
    ledger = account(LearnedDiffusion(net, data, VP(), predicts="eps"), lam=(-8.0, 9.0), samples=64, nodes=4, rng=0)
    assert np.isfinite(ledger.total("neural").value)


NEAR = GaussianMixture(
    [[0.35, 0.82, 0.33, -1.3], [0.9, 0.45, -0.54, 0.58], [0.36, 0.29, 0.03, 0.55]],
    weights=[0.2, 0.5, 0.3],
    stds=[0.4, 0.7, 0.5],
)
"""Nearly of unit variance, so that the control is small: most of each score is the drift, whatever the reading."""
POINTS = Samples(NEAR.sample(300, rng=0))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("noise", [VP(), StraightLine(), SubVP(), Cosine(), CondOT()], ids=lambda noise: noise.name)
@pytest.mark.parametrize("data", [NEAR, POINTS], ids=["law", "points"])
def test_no_wrong_reading_of_a_small_control_passes(data: Density | Samples, noise: Schedule) -> None:
    """The points are those of a law that the network knows better than they do."""
    factor = {("v", "flow"), ("flow", "v")} if noise.name == "Cosine" else set()  # pi / 2 at every time
    for is_ in NETWORKS:
        check(NEAR, noise, is_, is_, data)
        for read in NETWORKS:
            if (is_, read) in factor:
                with pytest.raises((ValueError, UserWarning), match=f"read as {is_!r} it"):
                    check(NEAR, noise, is_, read, data)
            elif read != is_:
                with pytest.raises(ValueError, match=f"Pass predicts={is_!r}"):
                    check(NEAR, noise, is_, read, data)


@pytest.mark.filterwarnings("ignore:.*the network has learned little")
@pytest.mark.parametrize("noise", [VP(), StraightLine(), SubVP(), Cosine(), CondOT()], ids=lambda noise: noise.name)
def test_a_control_that_is_off_by_a_factor_is_measured(noise: Schedule) -> None:
    """But where another reading is the same up to just this factor, under Cosine."""
    same = (2.0 / np.pi, np.pi / 2.0) if noise.name != "Cosine" else ()
    same += (2.57,) if noise.name == "CondOT" else ()  # where "flow" has slopes near 1, and those of "v" are all 0.39
    for control in (0.3, 0.8, 1.25, 3.0, *same):
        for name in NETWORKS:
            for data in (NEAR, POINTS):
                check_reading(Field(Exact(NEAR, noise, name, control=control), name, noise, (4,), 8192), data)
