"""Images are looked at once, not at every start, and again when something about them has changed."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from detector.config import DataConfig
from detector.data import health
from detector.data.formats import open_splits
from detector.data.samples import Dataset
from runyard.runs.data import OpenedData
from runyard.runs.images import progress_bar
from runyard.runs.images import verified as verified_images
from runyard.runs.images.check import check_splits
from runyard.runs.images.progress_bar import ProgressBar
from runyard.runs.images.verified import image_keys, memory_of, recall, remember
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec

CONFIG = DataConfig(min_image_side_px=8)


@pytest.fixture
def splits(tiny_data: Path) -> tuple[Dataset, Dataset]:
    return open_splits(tiny_data, "train", "val")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the images that are decoded, as they are."""
    names: list[str] = []
    check_image = health.check_image

    def check(path: Path, expected_size: tuple[int, int]) -> None:
        names.append(f"{path.parent.name}/{path.name}")
        check_image(path, expected_size)

    monkeypatch.setattr(health, "check_image", check)
    yield names
    names.clear()


def test_a_second_start_decodes_nothing(tiny_spec: ExperimentSpec, decoded: list[str]) -> None:
    prepare(tiny_spec)
    assert len(decoded) == 17  # data.train_limit is 12, and there are 5 to validate on
    decoded.clear()
    prepare(tiny_spec)
    prepare(replace(tiny_spec, seed=1, runtime=replace(tiny_spec.runtime, name="another")))
    assert decoded == []
    prepare(
        replace(tiny_spec, data=replace(tiny_spec.data, train_limit=14), runtime=replace(tiny_spec.runtime, name="b"))
    )
    assert sorted(decoded) == ["train/000013.jpg", "train/000014.jpg"]


def test_a_sweep_decodes_each_image_once(tiny_spec: ExperimentSpec, decoded: list[str]) -> None:
    data = OpenedData()
    first = data.splits(tiny_spec)
    assert data.splits(replace(tiny_spec, seed=1)) is first
    assert data.splits(replace(tiny_spec, data=replace(tiny_spec.data, flip_probability=0.0))) is first
    assert len(decoded) == 17


def test_a_file_that_was_touched_is_looked_at_alone(
    splits: tuple[Dataset, Dataset], tmp_path: Path, decoded: list[str]
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    paths = []
    for path in splits[1].image_paths:
        paths.append(copies / path.name)
        paths[-1].write_bytes(path.read_bytes())
    val = replace(splits[1], image_paths=tuple(paths))
    check_splits(splits[0], val, CONFIG, tmp_path)
    decoded.clear()
    os.utime(paths[3], ns=(1, 1))
    check_splits(splits[0], val, CONFIG, tmp_path)
    assert decoded == [f"copies/{paths[3].name}"]
    decoded.clear()
    resized = val.image_sizes.copy()
    resized[2] += 1
    (_, checked) = check_splits(splits[0], replace(val, image_sizes=resized), CONFIG, tmp_path)
    assert decoded == [f"copies/{paths[2].name}"]
    assert [image.path for image in checked.unusable] == [paths[2]]


def test_an_unusable_image_is_looked_at_every_time(
    splits: tuple[Dataset, Dataset], tmp_path: Path, decoded: list[str]
) -> None:
    sizes = splits[0].image_sizes.copy()
    sizes[0] += 1
    train = replace(splits[0], image_sizes=sizes)
    for _ in range(2):
        decoded.clear()
        (checked, _) = check_splits(train, splits[1], CONFIG, tmp_path)
        assert len(checked.unusable) == 1
    assert decoded == ["train/000001.jpg"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 400,
        b"\xff\xfe",
        b"runyard verified images 1\nabc",
        b"runyard verified images 1 " + b"0" * 64 + b"\nabc",
        b'{"sound": true}',
        None,
    ],
)
def test_a_damaged_memory_is_no_memory_and_mended(
    splits: tuple[Dataset, Dataset], tmp_path: Path, decoded: list[str], content: bytes | None
) -> None:
    val = splits[1]
    check_splits(*splits, CONFIG, tmp_path)
    memory = memory_of(val, tmp_path)
    whole = memory.read_bytes()
    memory.write_bytes(whole[:-1] if content is None else content)
    decoded.clear()
    check_splits(*splits, CONFIG, tmp_path)
    assert len(decoded) == 5
    assert memory.read_bytes() == whole


def test_the_memory_of_other_images_says_nothing_about_these(
    splits: tuple[Dataset, Dataset], tmp_path: Path, decoded: list[str]
) -> None:
    check_splits(*splits, CONFIG, tmp_path)
    memory_of(splits[1], tmp_path).write_bytes(memory_of(splits[0], tmp_path).read_bytes())
    decoded.clear()
    check_splits(*splits, CONFIG, tmp_path)
    assert len(decoded) == 5


def test_another_decoder_decides_anew(splits: tuple[Dataset, Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    before = image_keys(splits[1], range(5))
    assert before == image_keys(splits[1], range(5))
    monkeypatch.setattr(verified_images.PIL, "__version__", "0.0")
    assert not set(before.values()) & set(image_keys(splits[1], range(5)).values())


def test_processes_that_write_at_once_leave_a_whole_memory(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    groups = [[f"{group:012x}{number:012x}" for number in range(200)] for group in range(8)]
    threads = [Thread(target=remember, args=(memory, group)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = recall(memory)
    assert any(set(group) <= kept for group in groups)
    assert kept <= {key for group in groups for key in group}
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_where_nothing_can_be_written_nothing_is_remembered(
    splits: tuple[Dataset, Dataset], tmp_path: Path, decoded: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        decoded.clear()
        check_splits(*splits, CONFIG, tmp_path / "file")
        assert len(decoded) == 26


def test_without_a_terminal_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    with ProgressBar("checking images") as bar:
        for done in range(1, 41):
            now[0] += 0.5
            bar(done, 40)
    assert capsys.readouterr().err == "  checking images: 20 of 40, 10 s left\n  checking images: 40 of 40, 0 s left\n"


def test_on_a_terminal_progress_is_a_bar_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar.sys.stderr, "isatty", lambda: True, raising=False)
    now = [0.0]
    monkeypatch.setattr(progress_bar, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    with ProgressBar("checking images") as bar:
        bar(1, 40)
        assert bar._bar is None
        now[0] = 1.5
        bar(2, 40)
        assert bar._bar.tasks[0].completed == 2
    assert bar._bar.finished is False
