"""Files written whole or not at all, and strict JSON."""

import json
import math
import os
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.files import encode_json, write_json, write_text


def test_write_replaces_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    write_text(path, "first")
    write_text(path, "sécond")
    assert path.read_text(encoding="utf-8") == "sécond"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_failed_write_keeps_the_old_file_and_removes_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "good")

    def disk_full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "bad")
    assert path.read_text() == "good"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_json_that_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"old": 1})
    for bad in ({"value": math.nan}, {"value": object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(path, bad, non_finite="error")
    assert json.loads(path.read_text()) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_json_is_strict_and_non_finite_numbers_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"AP": math.nan, "nested": [math.inf, 1.5, ("ü", None)], 1: True}, indent=2)
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "AP": None,
        "nested": [None, 1.5, ["ü", None]],
        "1": True,
    }


def test_non_finite_numbers_as_text_are_read_back_by_float() -> None:
    values = json.loads(encode_json([math.nan, math.inf, -math.inf, 0.1], non_finite="text"))
    assert math.isnan(float(values[0]))
    assert [float(value) for value in values[1:]] == [math.inf, -math.inf, 0.1]


def test_a_mapping_is_an_object_and_an_unknown_value_needs_a_default() -> None:
    assert json.loads(encode_json(MappingProxyType({"path": Path("/x")}), default=str)) == {"path": "/x"}
    with pytest.raises(TypeError, match="PosixPath"):
        encode_json({"path": Path("/x")})


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(st.characters()),
        lambda item: st.lists(item) | st.dictionaries(st.text(), item),
    )
)
def test_plain_values_come_back(value: object) -> None:
    assert json.loads(encode_json(value)) == value


def test_bytes_of_a_name_that_are_not_text_come_back() -> None:
    name = os.fsdecode(b"caf\xe9 \xc3\xa9 \xe2\x80\xa8.jpg")
    assert json.loads(encode_json({name: name})) == {name: name}
    assert b"\n" not in encode_json({name: name})


def test_a_symbolic_link_is_followed_and_nothing_special_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "file.json")
    write_json(tmp_path / "link", [1])
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "far" / "file.json").read_text()) == [1]
    os.mkfifo(tmp_path / "pipe")
    for special in (tmp_path / "pipe", tmp_path / "far", Path("/dev/null")):
        with pytest.raises(FileExistsError, match="not a regular file"):
            write_json(special, [1])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["far", "link", "pipe"]
