"""The list of works."""

from __future__ import annotations

import pytest

from thermodiff.bench import rivals, timing
from thermodiff.bench.works import WORKS, choose


def test_names_and_sizes() -> None:
    names = [work.name for work in WORKS]
    assert len(set(names)) == len(names)
    for work in WORKS:
        assert set(work.sizes) == {"full", "quick", "tiny"}
        assert len({(way.name, way.threads) for way in work.ways}) == len(work.ways)
        assert work.ways[0].name.startswith("thermodiff") or work.name == "scaling"
        for size in work.sizes.values():
            work.problem(**size)


def test_the_published_sizes_and_goals() -> None:
    by_name = {work.name: work for work in WORKS}
    assert by_name["euler-1"].sizes["full"] == {"paths": 102_400, "steps": 1000}
    assert by_name["reverse"].sizes["full"] == {"paths": 102_400, "steps": 500}
    assert by_name["entropy"].sizes["full"] == {"nodes": 100, "samples": 10_000}
    assert by_name["cloud"].sizes["full"] == {"points": 10_000, "dim": 784, "queries": 1000}
    goals = {way.name: way.goal for way in by_name["euler-2"].ways if way.goal}
    assert list(goals.values()) == [8.0, 12.0, 4.0, 4.0, 8.0, 30.0, 30.0]


def test_choose() -> None:
    assert choose([]) == list(WORKS)
    assert [work.name for work in choose(["reverse", "euler-1", "reverse"])] == ["euler-1", "reverse"]
    with pytest.raises(ValueError, match="unknown work 'eule'; choose among euler-1, euler-2"):
        choose(["eule"])


def test_every_rival_is_listed() -> None:
    """A name that no module has would otherwise show up as a failure of that rival only."""
    from importlib.util import find_spec

    assert all(find_spec(f"thermodiff.bench.rivals.{name}") for name in rivals.LIBRARIES)


def test_pieces_of_the_scaling_work_are_about_equally_large() -> None:
    """Except where paths or steps are what changes."""
    (work,) = choose(["scaling"])
    problem = work.problem(**work.sizes["full"])
    sizes = {way.name: way.size(problem) for way in work.ways}
    assert sizes["all paths, all steps"] == 102_400 * 1000
    assert sizes["paths / 100"] == sizes["steps / 100"] == 1024 * 1000
    rest = [size for name, size in sizes.items() if " d = " in name or "components" in name]
    assert max(rest) < 3.0 * min(rest)


@pytest.mark.parametrize("name", ["cloud", "threads"])
def test_a_tiny_run(name: str) -> None:
    (work,) = choose([name])
    found = timing.run(work, "tiny", 1, 0.0)
    assert [one.way for one in found] == [way.name for way in work.ways]
    assert all(one.skipped == "" and one.cost > 0.0 for one in found)
