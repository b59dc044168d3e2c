"""Drifts, potentials and diffusivities as objects: calls, parameters, compilation at first use, travel."""

import functools
import importlib
import math
import multiprocessing
import pickle
import re
import warnings
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from user_dynamics import closure, double_well, swirl, warm

import thermodiff as td
from thermodiff import fields
from thermodiff.fields import Diffusivity, Drift, Field, FilledDrift, Potential, dimension


def test_the_decorators_make_fields_and_leave_the_function() -> None:
    @td.drift
    def pulled(x, t, k):
        """Pulled to the middle."""
        return (-k * x[0],)

    @td.drift(fills=True)
    def filled(x, t, out, k):
        out[0] = -k * x[0]

    @td.potential
    def energy(x, t):
        return x[0] ** 2

    @td.diffusivity
    def level(x, t):
        return (1.0 + x[0] ** 2,)

    kinds = [(pulled, Drift), (filled, FilledDrift), (energy, Potential), (level, Diffusivity)]
    assert [type(field) for field, _ in kinds] == [kind for _, kind in kinds]
    assert (pulled.__name__, pulled.__doc__, pulled.parameters) == ("pulled", "Pulled to the middle.", ("k",))
    assert filled.parameters == ("k",)
    assert energy.parameters == ()
    assert pulled((2.0,), 0.0, 3.0) == (-6.0,)
    assert repr(pulled) == "Drift(pulled(x, t, k))"
    x = np.array([[0.5], [-2.0]])
    np.testing.assert_array_equal(pulled.at(x, 0.0, (3.0,)), -3.0 * x)
    np.testing.assert_array_equal(filled.at(x, 0.0, (3.0,)), -3.0 * x)
    np.testing.assert_array_equal(energy.at(x), -2.0 * x)
    np.testing.assert_array_equal(level.at(x), np.hstack([1.0 + x**2, 2.0 * x]))


def test_a_field_is_compiled_once_for_each_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(function, dim, parameters, kind):
        calls.append((dim, parameters, kind))
        return len(calls)

    monkeypatch.setattr("thermodiff.kernels.user.lane_field", counted)
    monkeypatch.setattr(Field, "_require_agreement", lambda self, *given: None)
    field = td.drift(lambda x, t, k: tuple(-k * v for v in x))
    kernels = [field.kernel(dim, np.array([k])) for dim, k in ((1, 1.0), (2, 1.0), (1, 2.0), (2, 3.0))]
    assert kernels == [1, 2, 1, 2]
    assert calls == [(1, 1, "values"), (2, 1, "values")]


def test_a_point_outside_the_domain_does_not_stop_the_compilation() -> None:
    """The trial call is made near 0.1, where this has no value."""

    @td.drift
    def far(x, t):
        return math.log(x[0] - 1.0), 1.0 / (x[1] - 0.11)

    np.testing.assert_allclose(far.at([[3.0, 1.11]]), [[math.log(2.0), 1.0]], rtol=1e-15)


@pytest.mark.parametrize(
    ("params", "expected"),
    [((1, 2.5), [1.0, 2.5]), (np.array([1.0, 2.0]), [1.0, 2.0]), ([np.float32(0.5), np.int64(3)], [0.5, 3.0])],
)
def test_parameters_become_an_array(params, expected) -> None:
    found = swirl.values_of(params)
    assert found.dtype == np.float64
    assert found.tolist() == expected
    assert double_well.values_of(2.0).tolist() == [2.0]


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ((1.0,), ValueError, "swirl takes 2 parameters (kappa, omega), got 1."),
        ((), ValueError, "swirl takes 2 parameters (kappa, omega), got 0.  They follow the point and the time"),
        ((1.0, 2.0, 3.0), ValueError, "swirl takes 2 parameters (kappa, omega), got 3."),
        ((1.0, "a"), TypeError, "params[1] must be a number, got 'a'."),
        ((1.0, True), TypeError, "params[1] must be a number, got True."),
        ((1.0, None), TypeError, "params[1] must be a number, got None."),
        ((1.0, 2j), TypeError, "params[1] must be a number, got 2j."),
        ((math.inf, 2.0), ValueError, "params[0] must be finite, got inf."),
        (None, TypeError, "params[0] must be a number, got None."),
    ],
)
def test_parameters_that_are_refused(params, error, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        swirl.values_of(params)


def test_parameters_may_have_defaults() -> None:
    @td.drift
    def pulled(x, t=0.0, k=1.0, shift=2.0):
        return (-k * x[0] + shift,)

    assert [pulled.values_of(given).tolist() for given in ((), 3.0, (3.0, 4.0))] == [[1.0, 2.0], [3.0, 2.0], [3.0, 4.0]]
    assert pulled.at([[1.0]]).tolist() == [[1.0]]
    with pytest.raises(ValueError, match=r"pulled takes 2 parameters \(k, shift\), got 3"):
        pulled.values_of((1.0, 2.0, 3.0))

    @td.drift
    def needs_one(x, t, k, shift=2.0):
        return (-k * x[0] + shift,)

    with pytest.raises(ValueError, match=r"needs_one takes 2 parameters \(k, shift\), got 0"):
        needs_one.values_of(())


def test_a_call_may_name_the_parameters() -> None:
    assert swirl((1.0, 0.0), 0.0, kappa=1.0, omega=2.0) == swirl((1.0, 0.0), 0.0, 1.0, 2.0)


def test_arrays_without_axes_are_numbers() -> None:
    @td.drift
    def switched(x, t):
        return np.where(x[0] > 0.0, 2.0, -1.0), np.heaviside(x[1], 0.5)

    assert switched.at([[1.0, -1.0], [-1.0, 0.0]]).tolist() == [[2.0, 0.0], [-1.0, 0.5]]


def test_points_and_times_that_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(n, d\), got \(2,\)"):
        swirl.at([1.0, 2.0], 0.0, (1.0, 2.0))
    with pytest.raises(ValueError, match="t must be finite"):
        swirl.at([[1.0, 2.0]], math.nan, (1.0, 2.0))


def test_a_field_of_a_module_travels_by_name() -> None:
    for field in (swirl, warm):
        assert pickle.loads(pickle.dumps(field)) is field
    assert len(pickle.dumps(swirl)) < 4000


def test_other_fields_travel_by_value_and_arrive_once() -> None:
    """A worker that meets the same field in each task compiles it once."""
    for field in (closure(2.5), td.drift(lambda x, t: (x[0], 2.0)), td.potential(lambda x, t: x[0] * 2.5)):
        content = pickle.dumps(field)
        one, two = pickle.loads(content), pickle.loads(content)
        assert one is two
        assert one is not field
        assert type(one) is type(field)
        assert one((1.0, 0.0), 0.0) == field((1.0, 0.0), 0.0)
    one, two = (pickle.loads(pickle.dumps(closure(shift))) for shift in (1.0, 2.0))
    assert [field((0.0, 0.0), 0.0)[0] for field in (one, two)] == [1.0, 2.0]


def test_a_field_works_in_another_process() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
        found = executor.submit(closure(2.5).at, [[1.0, 0.0]]).result()
    assert found.tolist() == [[1.5, 0.0]]


def test_dimensions() -> None:
    assert [dimension(value) for value in (1, np.int64(64))] == [1, 64]
    for value, error, message in (
        (0, ValueError, "dim must be at least 1, got 0"),
        (65, ValueError, "dim must be at most 64, got 65"),
        (2.0, TypeError, "dim must be an integer, got 2.0"),
    ):
        with pytest.raises(error, match=message):
            dimension(value)


def test_only_what_is_used_is_imported() -> None:
    """Decorating compiles nothing and does not load numba."""
    import subprocess
    import sys

    code = (
        "import sys, thermodiff as td\n"
        "@td.drift\ndef f(x, t): return (-x[0],)\n"
        "td.Langevin(f, dim=1)\n"
        "print('numba' in sys.modules)"
    )
    environment = {"PYTHONPATH": ":".join([*sys.path, str(fields.__file__).rsplit("/", 2)[0]])}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_random_numbers_inside_a_function_are_refused() -> None:
    def noisy(x, t):
        return (np.random.normal(),)  # noqa: NPY002

    def noisy_filled(x, t, out):
        out[0] = np.random.normal()  # noqa: NPY002

    for field in (td.drift(noisy), td.drift(fills=True)(noisy_filled)):
        with pytest.raises(ValueError, match="gives different values for the same point and time; rng= could not fix"):
            td.simulate(td.Langevin(field, diffusivity=1.0, dim=1), np.zeros((2, 1)), 1.0, 0.1)


def test_a_function_that_prints_is_refused(capsys) -> None:
    @td.drift
    def chatty(x, t):
        print("here")
        return (x[0],)

    with pytest.raises(ValueError, match="chatty prints, which it would do for every path at every step"):
        td.simulate(td.Langevin(chatty, diffusivity=1.0, dim=1), np.zeros((2, 1)), 1.0, 0.1)
    assert capsys.readouterr().out == ""


def test_parameters_go_by_name_too() -> None:
    @td.drift
    def pulled(x, t, k, g=0.5):
        return (-k * x[0] + g,)

    assert pulled.values_of({"g": 2.0, "k": 1.0}).tolist() == [1.0, 2.0]
    assert pulled.values_of({"k": 1.0}).tolist() == [1.0, 0.5]
    for wrong in ({"g": 1.0}, {"k": 1.0, "z": 2.0}):
        with pytest.raises(ValueError, match=f"pulled has the parameters k, g, got {', '.join(wrong)}"):
            pulled.values_of(wrong)
    process = td.Langevin(pulled, {"k": 3.0}, dim=1)
    assert process.with_params(g=0.0).params.tolist() == [3.0, 0.0]
    assert process.with_params(1.0, 2.0).params.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"pulled takes 2 parameters \(k, g\), got 1; give all, or some by name"):
        process.with_params(1.0)
    with pytest.raises(TypeError, match="in order, or some by name, not both"):
        process.with_params(1.0, g=2.0)


def test_what_is_bound_already_is_refused_with_advice() -> None:
    for bound in (functools.partial(swirl.function, kappa=1.0), "text".join):
        with pytest.raises(TypeError, match="it decorates a plain Python function"):
            td.drift(bound)
    with pytest.raises(TypeError, match="write a function that calls it, and pass what is bound by params="):
        td.drift(functools.partial(swirl.function, kappa=1.0))


def test_a_filling_drift_that_gives_out_away_is_refused() -> None:
    @td.drift(fills=True)
    def forgot(x, t, out):
        out = -x  # noqa: F841

    with pytest.raises(TypeError, match=r"forgot gives the name out to something else, .* write out\[:\] = \.\.\."):
        forgot.at([[1.0, 2.0]])


def test_entries_that_are_never_written_are_warned_of() -> None:
    @td.drift(fills=True)
    def part(x, t, out):
        for i in range(len(x) - 1):
            out[i] = -x[i]

    with pytest.warns(RuntimeWarning, match=r"part left out\[2\] as given .* what it does not write is 0"):
        found = part.at([[1.0, 2.0, 3.0]])
    np.testing.assert_array_equal(found, [[-1.0, -2.0, 0.0]])


def test_forces_may_be_added_up() -> None:
    @td.drift(fills=True)
    def pairs(x, t, out):
        for i in range(len(x)):
            for j in range(i):
                out[i] += x[i] - x[j]
                out[j] -= x[i] - x[j]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(pairs.at([[0.0, 1.0, 3.0]] * 300), [[-4.0, -1.0, 5.0]] * 300)


def test_out_may_be_changed_in_place_as_a_whole() -> None:
    @td.drift(fills=True)
    def added(x, t, out):
        out += -x
        out *= 2.0

    np.testing.assert_array_equal(added.at([[1.0, 3.0]] * 300), [[-2.0, -6.0]] * 300)


def test_a_filling_drift_may_have_many_coordinates() -> None:
    @td.drift(fills=True)
    def decaying(x, t, out):
        for i in range(len(x)):
            out[i] = -x[i]

    process = td.Langevin(decaying, dim=500, diffusivity=0.0)
    path = td.simulate(process, np.ones((3, 500)), 1.0, 0.1)
    np.testing.assert_allclose(path.final, np.exp(-1.0), rtol=1e-6)
    with pytest.warns(RuntimeWarning, match="the step 2.5 is too large"):
        td.simulate(process, np.ones((3, 500)), 2.5, 2.5)
    with pytest.raises(ValueError, match="dim must be at most 4096, got 5000"):
        td.Langevin(decaying, dim=5000)
    with pytest.raises(
        ValueError, match=r"dim must be at most 64, got 65; with @td.drift\(fills=True\) it may be up to 4096"
    ):
        td.Langevin(swirl, (1.0, 1.0), dim=65)


def test_a_worker_whose_module_has_other_numbers_says_so(tmp_path, monkeypatch) -> None:
    """A module imported afresh in the worker has the constants of its file, not those of now."""
    (tmp_path / "constants_of_mine.py").write_text(
        "import thermodiff as td\nK = 1.0\n\n\ndef rate():\n    return K\n\n\n"
        "@td.drift\ndef pulled(x, t):\n    return (-rate() * x[0],)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("constants_of_mine")
    process, given = (
        td.Langevin(mine.pulled, dim=1),
        {"x0": np.ones((600, 1)), "times": 0.1, "dt": 0.05, "rng": 0, "chunk": 1},
    )
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        here = td.simulate(process, **given).final
        np.testing.assert_array_equal(td.simulate(process, executor=pool, **given).final, here)
        monkeypatch.setattr(mine, "K", 4.0)
        with pytest.raises(ValueError, match="pulled takes other numbers from around it in a worker than here: a constant"):
            td.simulate(process, executor=pool, **given)
    assert not np.array_equal(td.simulate(process, **given).final, here)


@pytest.mark.parametrize("dim", [1, 3, 12])
def test_a_stop_condition_carries_its_gradient(dim: int) -> None:
    """Minus the force of the same function as a potential."""

    def wavy(x, t, k):
        total = t
        for v in x:
            total += np.sin(k * v) * v
        return total

    x = np.random.default_rng(dim).standard_normal((300, dim))
    found = td.stop_condition(wavy).at(x, 0.7, (1.3,))
    assert found.shape == (300, 1 + dim)
    np.testing.assert_allclose(found[:, 0], 0.7 + (np.sin(1.3 * x) * x).sum(axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found[:, 1:], -td.potential(wavy).at(x, 0.7, (1.3,)), rtol=1e-12, atol=1e-14)
