"""Records of single runs on disk."""

import json

import pytest

from thermodiff.experiments.store import Store


def test_a_record_comes_back(tmp_path) -> None:
    store = Store(tmp_path / "runs", {"nodes": 4, "window": (1.0, 2.0)})
    assert store.load("a b") is None
    store.save("a b", {"value": 0.1})
    assert store.load("a b") == {"value": 0.1}
    assert Store(tmp_path / "runs", {"window": [1.0, 2.0], "nodes": 4}).load("a b") == {"value": 0.1}
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a-b.json"]


def test_other_settings_are_refused(tmp_path) -> None:
    Store(tmp_path, {"nodes": 4, "samples": 10}).save("a", {})
    with pytest.raises(ValueError, match=r"holds runs with other settings \(nodes\); choose another folder with --out"):
        Store(tmp_path, {"nodes": 8, "samples": 10}).load("a")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": {}}', "not json", '{"record": 1}'])
def test_a_damaged_record_is_refused(text: str, tmp_path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="is not a record of this experiment .* delete it to run it again"):
        Store(tmp_path, {}).load("a")


def test_names_stay_inside_the_folder(tmp_path) -> None:
    store = Store(tmp_path / "runs", {})
    store.save("../../x/y", {})
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["..-..-x-y.json"]
    assert json.loads((tmp_path / "runs" / "..-..-x-y.json").read_text())["record"] == {}
