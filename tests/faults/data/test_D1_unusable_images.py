"""D1: whatever image files a data set holds, they are read or named with a reason, and a run stops or does without."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detector.errors import ConfigError, DatasetError
from runyard.cli import main
from runyard.runs.prepare import prepare, skipped_text
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import read

Picture = Callable[..., Image.Image]


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def sixteen_bit_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + os.urandom(64 * 6) for _ in range(64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


UNUSABLE: dict[str, tuple[Callable[[Image.Image], bytes], str]] = {
    "truncated.jpg": (lambda p: encoded(p, "JPEG")[:-400], "is damaged (image file is truncated"),
    "truncated-grey.jpg": (lambda p: encoded(p.convert("L"), "JPEG")[:700], "is damaged (image file is truncated"),
    "truncated-progressive.jpg": (lambda p: encoded(p, "JPEG", progressive=True)[:-400], "is damaged"),
    "truncated.png": (lambda p: encoded(p, "PNG")[:-4000], "is damaged"),
    "zero-bytes.jpg": (lambda p: b"", "is an empty file"),
    "header-alone.jpg": (lambda p: encoded(p, "JPEG")[:20], "is not a JPEG or PNG image, or its header is damaged"),
    "gif.jpg": (lambda p: encoded(p, "GIF"), "is not a JPEG or PNG image"),
    "tiff.png": (lambda p: encoded(p, "TIFF"), "is not a JPEG or PNG image"),
    "web-page.jpg": (lambda p: b"<!DOCTYPE html><title>404</title>", "is not a JPEG or PNG image"),
    "scaled.jpg": (lambda p: encoded(p.resize((32, 32)), "JPEG"), "is 32x32 pixels, the annotations say 64x64"),
}
ORIENTATION_TAG = 0x0112


def add_unusable(split: Any, picture: Image.Image) -> None:
    for name, (make, _) in UNUSABLE.items():
        split.add(name, make(picture))


def add_odd_but_sound(split: Any, picture: Picture) -> None:
    """Every kind that is read: name, file, size as annotated."""
    noise = picture()
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    wide = picture(64, 48)
    box = [{"category_id": 1, "bbox": [0, 0, 48, 64]}]
    split.add("png-named.jpg", encoded(noise, "PNG"))
    split.add("jpeg-named.png", encoded(noise, "JPEG"))
    split.add("cmyk.jpg", noise.convert("CMYK"))
    split.add("grey.jpg", noise.convert("L"))
    split.add("16-bit-colour.png", sixteen_bit_png())
    split.add("16-bit-grey.png", encoded(noise.convert("L").convert("I;16"), "PNG"))
    split.add("palette.png", noise.convert("P"))
    split.add("transparent.png", noise.convert("RGBA"))
    split.add("bitmap.png", noise.convert("1"))
    split.add("animated.png", noise, save_all=True, append_images=[picture(seed=1)])
    split.add("upright.jpg", wide, size=(48, 64), boxes=box, exif=exif.tobytes())
    split.add("as-stored.jpg", wide, size=(64, 48), exif=exif.tobytes())
    split.add("1x1.png", picture(1, 1), boxes=[{"category_id": 2, "bbox": [0, 0, 1, 1]}])
    split.add("1x4000.png", picture(1, 4000), boxes=[{"category_id": 2, "bbox": [0, 9, 1, 900]}])
    split.add("4000x1.jpg", picture(4000, 1), boxes=[{"category_id": 2, "bbox": [9, 0, 900, 1]}])


def test_D1_a_run_does_not_start_and_names_them(data, spec_of: Callable, picture: Picture) -> None:
    for split in (data.train, data.val):
        add_unusable(split, picture())
    data.train.add("sound-3.png")
    with pytest.raises(DatasetError) as caught:
        prepare(spec_of(data))
    text = str(caught.value)
    assert "10 of 13 training images and 10 of 11 validation images cannot be used: " in text
    for name, (_, reason) in UNUSABLE.items():  # the first ten of both splits
        assert f"{data.root / 'train' / name}: {reason}" in text
    assert "; and 10 more. Mend or remove them" in text
    assert "--data.unusable-images skip" in text


def test_D1_a_run_that_skips_lists_them_and_says_how_many_its_result_lacks(
    data, spec_of: Callable, train_on: Callable, picture: Picture
) -> None:
    for split in (data.train, data.val):
        add_unusable(split, picture())
        add_odd_but_sound(split, picture)
    outcome = train_on(spec_of(data, unusable_images="skip", max_skipped_fraction=0.5))
    assert (outcome.prepared.train_images, outcome.prepared.val_images) == (17, 16)
    assert skipped_text(outcome.folder, outcome.prepared.spec) == "train 10, val 10"
    assert outcome.metrics["val/images"] == 16
    assert outcome.metrics["val/skipped_images"] == len(UNUSABLE)
    listed = json.loads(outcome.folder.manifest.read_text())["skipped_images"]
    for split in ("train", "val"):
        assert [Path(image["file"]).name for image in listed[split]] == list(UNUSABLE)
        for image, (_, reason) in zip(listed[split], UNUSABLE.values(), strict=True):
            assert image["reason"].startswith(reason)
    warnings = [
        record.payload["message"]
        for record in read(outcome.folder.journal)
        if record.kind == "event" and record.payload["event"] == "warning"
    ]
    assert warnings == [
        "10 unusable images are not trained on, 17 are left: manifest.json lists them",
        "10 unusable images are not evaluated, 16 are left: manifest.json lists them",
    ]


def test_D1_more_than_the_cap_is_an_error_with_skip_too(data, spec_of: Callable, picture: Picture) -> None:
    add_unusable(data.train, picture())
    message = r"10 of 12 training images cannot be used, more than data\.max_skipped_fraction 0\.5 lets pass: .*truncat"
    with pytest.raises(DatasetError, match=message):
        prepare(spec_of(data, unusable_images="skip", max_skipped_fraction=0.5))
    prepared = prepare(spec_of(data, unusable_images="skip", max_skipped_fraction=0.9))
    assert len(prepared.manifest["skipped_images"]["train"]) == len(UNUSABLE)


def test_D1_one_image_may_be_skipped_whatever_the_fraction_but_zero(data, spec_of: Callable) -> None:
    data.val.add("zero.jpg", b"")
    assert prepare(spec_of(data, unusable_images="skip")).val_images == 1
    with pytest.raises(DatasetError, match="1 of 2 validation images cannot be used"):
        prepare(spec_of(data, unusable_images="skip", max_skipped_fraction=0.0))


def test_D1_skipping_is_no_other_run_until_something_is_skipped(data, spec_of: Callable) -> None:
    """The same weights come of the same images, whatever the policy; of other images they are refused (D11)."""
    strict, lenient = spec_of(data), spec_of(data, unusable_images="skip")
    assert strict.training_hash == lenient.training_hash
    folder = prepare(strict).folder
    assert prepare(lenient).resumed
    path = data.root / "train" / "sound-2.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ConfigError, match=r"the data set has changed since this run started \(train\)"):
        prepare(lenient)
    assert json.loads(folder.manifest.read_text())["skipped_images"] == {"train": [], "val": []}


def test_D1_an_image_that_takes_the_place_of_a_skipped_one_is_looked_at_too(data, spec_of: Callable) -> None:
    for name in ("zero-1.jpg", "zero-2.jpg"):
        data.train.add(name, b"")
    data.train.add("sound-3.png")
    data.train.add("beyond-the-limit.jpg", b"")
    prepared = prepare(spec_of(data, unusable_images="skip", max_skipped_fraction=0.9, train_limit=3))
    assert [Path(image["file"]).name for image in prepared.manifest["skipped_images"]["train"]] == [
        "zero-1.jpg",
        "zero-2.jpg",
    ]


def test_D1_what_a_run_never_reads_is_not_looked_at(data, spec_of: Callable) -> None:
    data.train.add("without-boxes.jpg", b"", boxes=[])
    data.train.add("tiny.jpg", b"", size=(9, 9))
    data.val.add("beyond-the-limit.jpg", b"")
    spec = spec_of(data, val_limit=1)
    prepare(replace(spec, data=replace(spec.data, min_image_side_px=10)))


def test_D1_nobody_looks_where_the_user_says_so(data, spec_of: Callable) -> None:
    data.train.add("zero.jpg", b"")

    def unchecked(spec: ExperimentSpec) -> ExperimentSpec:
        return replace(spec, runtime=replace(spec.runtime, check_images=False))

    assert prepare(unchecked(spec_of(data))).train_images == 3
    with pytest.raises(ConfigError, match=r"data\.unusable_images: 'skip' needs the image check"):
        prepare(unchecked(spec_of(data, unusable_images="skip")))


def test_D1_the_doctor_lists_all_of_them(
    data, tmp_path: Path, picture: Picture, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in (data.train, data.val):
        add_odd_but_sound(split, picture)
    add_unusable(data.val, picture())
    command = ["doctor", "--data", str(data.write()), "--storage", str(tmp_path / "runs")]
    assert main([*command, "--data.min-image-side-px", "1"]) == 2
    shown = capsys.readouterr()
    assert "odd/train (training): 17 images, 17 boxes, classes 'cat', 'dog'" in shown.out
    assert "17 images that a run reads were decoded, 0 cannot be used" in shown.out
    assert "26 images that a run reads were decoded, 10 cannot be used" in shown.out
    for name, (_, reason) in UNUSABLE.items():
        assert f"'{data.root / 'val' / name}': {reason}" in shown.out
    assert "error: 10 of 26 validation images cannot be used" in shown.err
    lenient = ["--data.unusable-images", "skip", "--data.max-skipped-fraction", "0.5"]
    assert main([*command, *lenient]) == 0
