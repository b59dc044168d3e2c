"""The storage experiment in small."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import thermodiff as td
from thermodiff.accounting import Estimate
from thermodiff.diffusion import oracle
from thermodiff.experiments import storage
from thermodiff.experiments.storage import Budget, Experiment, Run
from thermodiff.learned import Images, LearnedDiffusion
from thermodiff.learned.report import Report

WINDOW = Budget().window
SMALL = Budget(nodes=4, images=40, paper_images=10, sheet=3, sheet_steps=2)


@pytest.fixture
def few_times(monkeypatch):
    monkeypatch.setattr(storage, "TIMES", storage.TIMES[::100])


def test_runs_are_all_combinations_with_short_ones_first() -> None:
    todo = storage.runs((1000, 100), (400, 50), 2)
    assert [(run.n, run.steps) for run in todo[::2]] == [(100, 50), (1000, 50), (100, 400), (1000, 400)]
    assert len({run.name for run in todo}) == 8
    assert storage.runs((1000, 100, 100), (400, 50, 400), 2) == todo


def test_the_window_begins_at_the_first_published_time() -> None:
    assert storage.TIMES.size == 499
    assert td.VP().time(WINDOW[1]) == pytest.approx(storage.TIMES[0])
    assert td.VP().time(WINDOW[0]) == pytest.approx(1.0)
    assert WINDOW[1] == pytest.approx(8.36, abs=0.005)


def test_digits_are_split_and_lie_in_the_published_range() -> None:
    train, held_out = storage.read("digits")
    assert (len(train), len(held_out)) == (1500, 297)
    assert (np.asarray(train).min(), np.asarray(train).max()) == (0.0, 1.0)


def test_a_training_set_holds_the_first_of_each_class() -> None:
    labels = np.array([0, 0, 1, 0, 1, 1, 0, 2, 2, 2])
    values = np.arange(10, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    images = Images(values, labels)
    assert storage.chosen(images, 6).values[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 7, 8]
    assert len(storage.chosen(images, 10)) == 10
    assert storage.chosen(Images(values), 7).values[:, 0, 0, 0].tolist() == list(range(7))
    with pytest.raises(ValueError, match="--n 12: there are 10 images to train on"):
        storage.chosen(images, 12)
    with pytest.raises(ValueError, match="--n 7 cannot be shared equally by 3 classes"):
        storage.chosen(images, 7)
    with pytest.raises(ValueError, match="choose a multiple of 3 up to 9, or all 10"):
        storage.chosen(Images(values, labels), 8)


class Control:
    """The exact control of N(0, v)."""

    def __init__(self, variance: float) -> None:
        self.variance = variance

    def __call__(self, x, t):
        row = td.VP().at(td.VP().lam(t.double().numpy()))
        spread = x.new_tensor(row.alpha**2 * self.variance + row.sigma**2)
        return x * (1.0 - 1.0 / spread)[:, None]


@pytest.fixture
def known():
    """A network with the exact control, and E|e|^2 as a function of time."""
    points = 0.5 * np.random.default_rng(0).standard_normal((300, 4))
    noise = td.VP()

    def square(t):
        signal, noisy = noise.alpha(t) ** 2, noise.sigma(t) ** 2
        moment = signal * np.sum(points**2, axis=1).mean() + 4 * noisy
        return (1.0 - 1.0 / (0.25 * signal + noisy)) ** 2 * moment

    return SimpleNamespace(model=LearnedDiffusion(Control(0.25), points, noise), square=square)


def test_both_grids_give_the_integral_of_a_known_control(known) -> None:
    def rate(t):
        return td.VP().diffusivity(t) * known.square(t)

    published = np.trapezoid(rate(storage.TIMES), storage.TIMES)
    found = storage.by_times(known.model, storage.TIMES, 600, 0, progress=False)
    assert abs(found.value - published) < 4.0 * found.error
    assert found.error < 0.1 * published

    fine = np.geomspace(storage.TIMES[0], 1.0, 20_001)
    exact = np.trapezoid(rate(fine), fine)
    nodes = storage.by_nodes(known.model, WINDOW, 32, 600, 0, progress=False)
    neural = Estimate(**nodes["neural"])
    assert abs(neural.value - exact) < 4.0 * neural.error
    assert neural.error < 0.1 * exact
    assert abs(nodes["convergence"]["value"]) < 4.0 * nodes["convergence"]["error"]
    # From the data end down to the last node nearly all is there.
    assert nodes["up to the data"][-1] == pytest.approx(neural.value, rel=0.02)


def test_the_gaussian_part_is_the_entropy_of_the_gaussian_that_points_come_from() -> None:
    factor, centre = np.array([[0.3, 0, 0], [0.1, 0.2, 0], [0, 0, 0.01]]), np.array([0.5, 0.0, 0.2])
    points = np.random.default_rng(1).standard_normal((4000, 3)) @ factor + centre
    truth = oracle(td.Diffusion(td.Gaussian(centre, cov=factor.T @ factor), td.VP()), lam=WINDOW)
    found = storage.gaussian_part(points, td.VP(), WINDOW)
    assert abs(found.value - truth.value) < 4.0 * np.hypot(found.error, truth.error)
    halves = [storage.gaussian_part(points[k::20], td.VP(), WINDOW).value for k in range(20)]
    assert found.error == pytest.approx(np.std(halves, ddof=1) / np.sqrt(20), rel=0.6)


def test_the_memorising_law_is_that_of_well_separated_points() -> None:
    points = np.random.default_rng(2).random((30, 20))
    truth = oracle(td.Diffusion(td.PointCloud(points), td.VP()), lam=WINDOW)
    found = storage.memorising_total(points, td.VP(), WINDOW)
    assert abs(found - truth.value) < 4.0 * truth.error + 2e-3


def test_published_values_are_interpolated_between_published_sizes_only() -> None:
    assert storage.published((1, 28, 28), 1000) == 1727.0
    assert storage.published((1, 28, 28), 9000) == pytest.approx(2178.4, abs=0.1)
    assert storage.published((1, 28, 28), 50) is None
    assert storage.published((1, 8, 8), 1000) is None


def test_seeds_share_the_error_of_the_images() -> None:
    records = [{"n": 100, "neural": {"value": value, "error": 3.0}} for value in (10.0, 14.0)]
    records.append({"n": 200, "neural": {"value": 50.0, "error": 2.0}})
    assert storage.averaged(records, n=100) == Estimate(12.0, np.hypot(2.0, 3.0))
    assert storage.averaged(records, n=200) == Estimate(50.0, 2.0)
    assert storage.averaged(records, n=300) is None


def test_a_slope_is_weighted_least_squares() -> None:
    sizes, errors = [100, 1000, 9000], np.array([10.0, 40.0, 20.0])
    line = storage.slope(sizes, [Estimate(200.0 * np.log(n) + 5.0, e) for n, e in zip(sizes, errors, strict=True)])
    assert line.value == pytest.approx(200.0)
    assert line.chi_square == pytest.approx(0.0, abs=1e-12)
    values = np.array([1000.0, 1900.0, 2000.0])
    bent = storage.slope(sizes, [Estimate(v, e) for v, e in zip(values, errors, strict=True)])
    fit, plain = np.polyfit(np.log(sizes), values, 1, w=1.0 / errors, cov="unscaled")
    assert bent.value == pytest.approx(fit[0])
    assert line.error == pytest.approx(np.sqrt(plain[0, 0]))
    assert bent.chi_square > 1.0
    assert bent.error == pytest.approx(np.sqrt(plain[0, 0] * bent.chi_square))
    assert storage.slope(sizes[:2], [Estimate(v, 1.0) for v in values[:2]]).chi_square is None
    assert storage.slope([100], [Estimate(1.0, 1.0)]) is None


def test_seconds_are_those_of_all_sittings(tmp_path) -> None:
    lines = [(50, 1.0), (100, 2.0), (150, 0.5), (200, 1.5), (210, 1.7)]
    text = "".join(json.dumps({"step": k, "loss": 100.0 / k, "seconds": s}) + "\n" for k, s in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert storage._training(tmp_path / "metrics.jsonl") == {"loss": 100.0 / 210, "training seconds": 3.7}


def test_a_stopped_experiment_goes_on(tmp_path, monkeypatch, few_times) -> None:
    monkeypatch.setattr(storage, "EVERY", 2)
    train, held_out = storage.read("digits")
    run, said = Run(20, 5, 0), []

    def start(folder):
        said.clear()
        return list(
            Experiment(train, held_out, folder, budget=SMALL, progress=False).carry_out([run], ("lam",), said.append)
        )

    whole, add = start(tmp_path / "whole"), Report.add

    def stop(self, step, loss):
        if step == 4:
            raise KeyboardInterrupt
        add(self, step, loss)

    monkeypatch.setattr(Report, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "stopped")
    assert [path.name for path in (tmp_path / "stopped" / "networks").glob("*.state.*")] == [f"{run.name}.state.safetensors"]
    steps = []
    monkeypatch.setattr(Report, "add", lambda self, step, loss: (steps.append(step), add(self, step, loss)))
    again = start(tmp_path / "stopped")
    assert steps == [3, 4, 5]
    weights = [tmp_path / name / "networks" / f"{run.name}.safetensors" for name in ("whole", "stopped")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert list((tmp_path / "stopped" / "networks").glob("*.state.*")) == []
    assert [record["neural"] for record in again] == [record["neural"] for record in whole]

    # A measurement that is missing is made with the network on disk; the others are not made again.
    (tmp_path / "stopped" / "runs" / f"{run.name}-lam-training.json").unlink()
    assert [record["neural"] for record in start(tmp_path / "stopped")] == [record["neural"] for record in whole]
    assert said == [f"{run.name}: S_NN on training images, grid lam"]
    start(tmp_path / "stopped")
    assert said == []


def test_other_settings_in_the_same_folder_are_refused(tmp_path, few_times) -> None:
    train, held_out = storage.read("digits")
    first = Experiment(train, held_out, tmp_path, budget=SMALL, progress=False)
    first.store.save(f"{Run(20, 5, 0).name}-training", {"loss": 1.0, "training seconds": 1.0})
    assert first.trainings([Run(20, 5, 0), Run(40, 5, 0)]) == [{"loss": 1.0, "training seconds": 1.0}]
    other = Experiment(train, held_out[:100], tmp_path, lr=1e-4, budget=SMALL, progress=False)
    with pytest.raises(ValueError, match=r"holds runs with other settings \(data, lr\)"):
        other.trainings([Run(20, 5, 0)])
    other = Experiment(train, held_out, tmp_path, constant=True, budget=SMALL, progress=False)
    with pytest.raises(ValueError, match=r"holds runs with other settings \(rate\)"):
        other.trainings([Run(20, 5, 0)])


def test_a_constant_rate_neither_falls_nor_averages(tmp_path) -> None:
    train, held_out = storage.read("digits")
    weights = []
    for constant in (True, False):
        folder = tmp_path / str(constant)
        experiment = Experiment(train, held_out, folder, lr=1e-3, constant=constant, budget=SMALL, progress=False)
        net = experiment.fit(Run(20, 120, 0), experiment.store, lambda text: None)
        rates = [
            json.loads(line)["lr"] for line in (folder / "networks" / "N=20-steps=120-seed=0.jsonl").read_text().splitlines()
        ]
        assert (rates[-1] == 1e-3) == constant
        weights.append(next(net.parameters()).detach())
    assert not torch.equal(*weights)


def test_the_network_is_the_published_one_where_it_fits() -> None:
    pictures = Images(np.random.default_rng(0).integers(0, 256, (4, 28, 28), dtype=np.uint8), span=(0, 1))
    experiment = Experiment(pictures, pictures, folder=None)
    assert sum(weight.numel() for weight in experiment.network(0).parameters()) == 1_115_297
    assert experiment.network(0).padding == 0
    digits = storage.read("digits")
    assert Experiment(*digits, folder=None).network(0).padding == 1


def test_samples_are_grey_levels(tmp_path) -> None:
    train, held_out = storage.read("digits")
    experiment = Experiment(train, held_out, tmp_path, budget=SMALL, progress=False)
    run = Run(20, 5, 0)
    experiment.generate(experiment.network(0), run)
    levels = np.load(experiment.sheet(run))
    assert levels.dtype == np.uint8
    assert levels.shape == (3, 1, 8, 8)
    assert levels.std() > 0.0
    np.testing.assert_array_equal(storage.read_samples(experiment.sheet(run)), levels)


def test_damaged_samples_are_refused_by_name(tmp_path) -> None:
    np.save(tmp_path / "good.npy", np.zeros((3, 1, 8, 8), dtype=np.uint8))
    good, path = (tmp_path / "good.npy").read_bytes(), tmp_path / "N=20.npy"
    damaged = [b"", b"text", good[:40], good[:-9], b"PK\x03\x04" + good, good.replace(b"|u1", b"|i1")]
    damaged += [good.replace(b"}", b" "), good.replace(b"(", b" "), good.replace(b"{", b"[")]
    damaged += [good.replace(b"(3, 1, 8, 8)", shape) for shape in (b"(3, 8, 8, 9)", b"(192,)      ", b"(3,1,8,8e99)")]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"N=20.npy is damaged: .*; delete it, and the same call draws them again"):
            storage.read_samples(path)
