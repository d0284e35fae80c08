"""Loaders: the same batches from any number of loader workers, and errors that a user can read."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detector.config import DataConfig
from detector.data import loaders
from detector.data.batching import Batch
from detector.data.epoch_plan import trainable_images
from detector.data.formats.coco import load_coco
from detector.data.loaders import BatchLoader, make_eval_loader, make_train_loader
from detector.data.samples import Category, Dataset
from detector.data.synthetic import draw_image
from detector.data.transforms import flips, load_sample
from detector.errors import DatasetError

CONFIG = DataConfig(short_side_px=64, long_side_px=96, min_image_side_px=16)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """21 small pictures of shapes, landscape, portrait and square."""
    folder = tmp_path_factory.mktemp("pictures")
    drawn = [draw_image(np.random.default_rng(i), 64) for i in range(21)]
    paths = []
    for i, (pixels, _) in enumerate(drawn):
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    rows = [shape for _, found in drawn for shape in found]
    return Dataset(
        name="pictures",
        categories=tuple(Category(i + 1, str(i)) for i in range(6)),
        image_paths=tuple(paths),
        image_ids=tuple(range(21)),
        image_sizes=np.array([pixels.shape[:2] for pixels, _ in drawn]),
        offsets=np.cumsum([0] + [len(found) for _, found in drawn]),
        boxes_xywh=np.array([shape["bbox"] for shape in rows], dtype=np.float64),
        labels=np.array([int(str(shape["category_id"])) - 1 for shape in rows]),
        areas=np.array([shape["area"] for shape in rows], dtype=np.float64),
        is_crowd=np.zeros(len(rows), dtype=bool),
        is_difficult=np.zeros(len(rows), dtype=bool),
    )


def training(dataset: Dataset, **changes: int | float) -> BatchLoader:
    arguments = {"seed": 5, "start_epoch": 0, "start_step": 0, "epochs": 2, "batch_size": 4} | changes
    return make_train_loader(dataset, CONFIG, **arguments)


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.epoch, a.step, a.micro) == (b.epoch, b.step, b.micro)
        for name in ("images", "sizes", "boxes", "labels", "valid", "image_index", "image_weight"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_the_number_of_loader_workers_changes_nothing(dataset: Dataset) -> None:
    here = list(training(dataset, accumulation=2))
    assert len(here) == len(training(dataset)) * 2 == 2 * 6 * 2
    for workers in (1, 2):
        assert_same(here, list(training(dataset, accumulation=2, loader_workers=workers)))


def test_going_on_gives_the_rest_of_the_batches(dataset: Dataset) -> None:
    whole = list(training(dataset, accumulation=2))
    assert_same(whole[2 * 8 :], list(training(dataset, accumulation=2, start_epoch=1, start_step=2)))
    assert_same(whole[2 * 6 :], list(training(dataset, accumulation=2, start_epoch=0, start_step=6)))


def test_two_workers_show_what_one_shows(dataset: Dataset) -> None:
    alone = list(training(dataset))
    ranks = [list(training(dataset, rank=rank, world_size=2)) for rank in (0, 1)]
    for one, *shares in zip(alone, *ranks, strict=True):
        assert {(share.epoch, share.step) for share in shares} == {(one.epoch, one.step)}
        seen = torch.cat([share.image_index[share.image_weight > 0] for share in shares])
        assert sorted(seen.tolist()) == sorted(one.image_index.tolist())
    # 21 = 5 x 4 + 1: in the last step of an epoch the second worker has but a filler.
    assert [batch.image_weight.tolist() for batch in ranks[1] if batch.step == 5] == [[0.0], [0.0]]


def test_images_are_flipped_as_the_hash_says(dataset: Dataset) -> None:
    for batch in training(dataset):
        mirrored = flips(5, batch.epoch, batch.image_index.numpy(), 0.5)
        for i, index in enumerate(batch.image_index.tolist()):
            sample = load_sample(dataset, index, CONFIG, bool(mirrored[i]))
            height, width = batch.sizes[i].tolist()
            assert torch.equal(batch.images[i, :, :height, :width], sample.image)
            assert torch.equal(batch.boxes[i][batch.valid[i]], sample.boxes)


def test_making_and_using_a_loader_draws_no_random_number(dataset: Dataset) -> None:
    before = torch.get_rng_state()
    next(iter(training(dataset)))
    next(iter(make_eval_loader(dataset, CONFIG, batch_size=4, loader_workers=1)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_counts_every_image_once(dataset: Dataset, world_size: int) -> None:
    batches = [
        batch
        for rank in range(world_size)
        for batch in make_eval_loader(dataset, CONFIG, batch_size=4, rank=rank, world_size=world_size)
    ]
    assert sorted(torch.cat([batch.image_index for batch in batches]).tolist()) == list(range(21))
    alone = list(make_eval_loader(dataset, CONFIG, batch_size=4, loader_workers=2))
    assert_same(alone, sorted(batches, key=lambda batch: batch.step))


def test_evaluation_flips_nothing_and_can_be_done_again(dataset: Dataset) -> None:
    loader = make_eval_loader(dataset, CONFIG, batch_size=4)
    first = list(loader)
    assert_same(first, list(loader))
    assert len(first) == len(loader)
    for batch in first:
        for i, index in enumerate(batch.image_index.tolist()):
            sample = load_sample(dataset, index, CONFIG, flip=False)
            height, width = batch.sizes[i].tolist()
            assert torch.equal(batch.images[i, :, :height, :width], sample.image)
        assert (batch.image_weight == 1).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_one_clear_error(dataset: Dataset, tmp_path: Path, workers: int) -> None:
    bad = tmp_path / "half a picture.png"
    bad.write_bytes(dataset.image_paths[3].read_bytes()[:200])
    paths = (*dataset.image_paths[:3], bad, *dataset.image_paths[4:])
    broken = Dataset(**{**vars(dataset), "image_paths": paths})
    with pytest.raises(DatasetError, match=r"half a picture\.png") as caught:
        list(training(broken, loader_workers=workers))
    assert caught.value.file == bad
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_storage_that_hangs_is_named(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "load_sample", lambda *_: time.sleep(60))
    loader = training(dataset, loader_workers=1, timeout_s=1.0, batch_size=2)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no batch arrived for 1 s, while waiting for .*\d+\.png, .*\d+\.png\. Is"):
        next(iter(loader))
    assert time.monotonic() - started < 15


def test_storage_that_is_slow_is_waited_for(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    real = load_sample

    def slow(*arguments: object) -> object:
        time.sleep(0.1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(loaders, "CHECK_INTERVAL_S", 0.05)
    expected = list(training(dataset, epochs=1))
    monkeypatch.setattr(loaders, "load_sample", slow)
    assert_same(expected, list(training(dataset, epochs=1, loader_workers=2, timeout_s=30.0)))


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_killed_loader_worker_is_noticed(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, in_main_thread: bool
) -> None:
    monkeypatch.setattr(loaders, "load_sample", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    monkeypatch.setattr(loaders, "CHECK_INTERVAL_S", 0.5)
    errors: list[Exception] = []

    def load() -> None:
        try:
            next(iter(training(dataset, loader_workers=1, timeout_s=100.0)))
        except RuntimeError as error:
            errors.append(error)

    if in_main_thread:
        load()
    else:
        thread = threading.Thread(target=load)
        thread.start()
        thread.join(timeout=30)
    assert len(errors) == 1
    assert "DataLoader worker" in str(errors[0])
    assert "while waiting for step 0 of epoch 0" in errors[0].__notes__[0]
    assert "lacked memory, or shared memory (" in errors[0].__notes__[1]


def test_nothing_to_train_on_is_said_before_any_worker_starts(dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match="no image to train on"):
        make_train_loader(
            dataset.subset([]), CONFIG, seed=0, start_epoch=0, start_step=0, epochs=1, batch_size=1, loader_workers=1
        )


def test_real_photos_come_with_boxes_inside_them(shared_data: Path) -> None:
    folder = shared_data / "aquarium" / "train"
    aquarium = load_coco(folder / "_annotations.coco.json", folder, None, "aquarium")
    config = DataConfig(short_side_px=192, long_side_px=320)
    loader = make_train_loader(aquarium, config, seed=0, start_epoch=0, start_step=0, epochs=1, batch_size=8)
    assert len(loader) == -(-len(trainable_images(aquarium, config)) // 8)
    batch = next(iter(loader))
    height, width = batch.sizes[:, None, 0], batch.sizes[:, None, 1]
    x1, y1, x2, y2 = batch.boxes.unbind(-1)
    inside = (x1 >= 0) & (y1 >= 0) & (x1 < x2) & (y1 < y2) & (x2 <= width) & (y2 <= height)
    assert batch.valid.any(dim=1).all()
    assert inside[batch.valid].all()
    assert len(set((batch.sizes[:, 1] > batch.sizes[:, 0]).tolist())) == 1


@pytest.mark.gpu
def test_pinned_batches_reach_the_gpu_unchanged(dataset: Dataset) -> None:
    plain = list(training(dataset))
    pinned = list(training(dataset, loader_workers=2, pin_memory=True))
    assert all(batch.images.is_pinned() and batch.boxes.is_pinned() for batch in pinned if batch.boxes.numel())
    assert_same(plain, [batch.to("cuda").to("cpu") for batch in pinned])
