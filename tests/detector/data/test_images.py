"""Reading images of every kind that data sets hold, and refusing those that are damaged or hostile."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from detector.data.images import check_image, read_image
from detector.data.images import header as image_header
from detector.data.images.header import read_size
from detector.errors import DatasetError

WIDTH, HEIGHT = 60, 40


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth noise, so that JPEG changes it little; no symmetry."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def _save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, "JPEG" if path.suffix == ".jpg" else "PNG", **options)
    return path


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + _chunk(b"IEND", b"")


def _pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg(tmp_path: Path, photo: Image.Image, options: dict[str, object]) -> None:
    path = _save(photo, tmp_path / "a.jpg", **options)
    image = read_image(path, expected_size=(HEIGHT, WIDTH))
    assert image.dtype == torch.uint8
    assert image.shape == (3, HEIGHT, WIDTH)
    with Image.open(path) as reference:
        assert torch.equal(image, _pixels(reference))
    assert read_size(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_D1_jpeg_modes(tmp_path: Path, photo: Image.Image, mode: str) -> None:
    image = read_image(_save(photo.convert(mode), tmp_path / "a.jpg", quality=95))
    difference = (image.int() - _pixels(photo.convert(mode)).int()).abs()
    assert difference.max() < 40
    assert difference.float().mean() < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_D1_png_modes_are_read_exactly(tmp_path: Path, photo: Image.Image, mode: str) -> None:
    changed = photo.convert("L").convert(mode) if mode == "LA" else photo.convert(mode)
    assert torch.equal(read_image(_save(changed, tmp_path / "a.png")), _pixels(changed))


@pytest.mark.filterwarnings("error")
def test_D1_alpha_is_dropped(tmp_path: Path, photo: Image.Image) -> None:
    see_through = photo.copy()
    see_through.putalpha(3)
    assert torch.equal(read_image(_save(see_through, tmp_path / "a.png")), _pixels(photo))
    palette = photo.convert("P")
    path = _save(palette, tmp_path / "p.png", transparency=bytes(range(200)))
    assert torch.equal(read_image(path), _pixels(palette))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_D1_sixteen_bits_give_their_upper_eight(tmp_path: Path, colour: int, channels: int) -> None:
    values = np.random.default_rng(1).integers(0, 2**16, (5, 4, channels))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(_png(4, 5, 16, colour, rows))
    colours = values[..., :3] if channels >= 3 else values[..., :1].repeat(3, axis=-1)
    assert np.array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), colours >> 8)


def test_D1_png_named_jpg_and_the_reverse(tmp_path: Path, photo: Image.Image) -> None:
    photo.save(tmp_path / "a.jpg", "PNG")
    assert torch.equal(read_image(tmp_path / "a.jpg"), _pixels(photo))
    photo.save(tmp_path / "a.png", "JPEG")
    assert read_image(tmp_path / "a.png").shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("separate_still", [False, True])
def test_D1_animations_give_their_first_frame(tmp_path: Path, photo: Image.Image, separate_still: bool) -> None:
    frames = [ImageOps.invert(photo), ImageOps.mirror(photo)]
    path = tmp_path / "a.png"
    photo.save(path, save_all=True, append_images=frames, default_image=separate_still)
    assert torch.equal(read_image(path), _pixels(photo))


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_D1_extreme_sizes(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    path = _save(Image.new("RGB", size, (9, 9, 9)), tmp_path / f"a.{suffix}")
    height_width = (size[1], size[0])
    assert read_image(path, expected_size=height_width).shape == (3, *height_width)
    assert read_size(path) == height_width


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_D1_D12_exif_is_applied_unless_the_annotations_say_otherwise(
    tmp_path: Path, photo: Image.Image, orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(photo, tmp_path / f"a.{suffix}", exif=exif.tobytes())
    with Image.open(path) as stored:
        upright, as_stored = _pixels(ImageOps.exif_transpose(stored)), _pixels(stored)
    assert torch.equal(read_image(path), upright)
    turned = orientation >= 5
    upright_size = (WIDTH, HEIGHT) if turned else (HEIGHT, WIDTH)
    assert read_size(path) == upright_size
    assert torch.equal(read_image(path, expected_size=upright_size), upright)
    if turned:
        assert torch.equal(read_image(path, expected_size=(HEIGHT, WIDTH)), as_stored)
    with pytest.raises(DatasetError, match=r"is 60x40 pixels, the annotations say 30x20"):
        read_image(path, expected_size=(20, 30))


@pytest.mark.parametrize("content", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"junk" * 9])
def test_exif_that_cannot_be_read_is_none(tmp_path: Path, photo: Image.Image, content: bytes) -> None:
    path = _save(photo, tmp_path / "a.jpg", exif=content)
    assert read_image(path).shape == (3, HEIGHT, WIDTH)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, -1, -2, -3, -12])
@pytest.mark.parametrize(
    ("suffix", "mode"), [("jpg", "RGB"), ("jpg", "L"), ("jpg", "CMYK"), ("png", "RGB"), ("png", "P")]
)
def test_D1_truncated_files_are_errors(tmp_path: Path, photo: Image.Image, suffix: str, mode: str, kept: float) -> None:
    path = _save(photo.convert(mode).resize((300, 200)), tmp_path / f"a.{suffix}")
    size = path.stat().st_size
    os.truncate(path, int(size * kept) if kept > 0 else size + int(kept))
    if suffix == "png" and -12 <= kept < 0:
        # Only the empty end chunk is cut: every pixel is there.
        assert read_image(path).shape == (3, 200, 300)
        return
    with pytest.raises(DatasetError, match=f"a.{suffix}: (is damaged|is not a JPEG|has a damaged header)"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"\0" * 100, "is not a JPEG or PNG"),
        (b"GIF89a" + b"\0" * 100, "is not a JPEG or PNG"),
        (b"SIMPLE  =                    T" + b" " * 5000, "is not a JPEG or PNG"),
        (b"\xff\xd8\xff", "is not a JPEG or PNG|damaged"),
        (b"\x89PNG\r\n\x1a\n", "is not a JPEG or PNG|damaged"),
        (_png(4, 5, 8, 0, b"\0" * 25).replace(b"x\xda", b"xx"), "is damaged"),
    ],
)
def test_D1_files_that_are_no_image(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"{path.name}: .*({message})"):
        read_image(path)


def test_a_damaged_png_does_not_end_the_process(tmp_path: Path, photo: Image.Image) -> None:
    path = _save(photo, tmp_path / "a.png")
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="is damaged"):
        read_image(path)


@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_D2_bombs_are_refused_by_their_header(
    tmp_path: Path, width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    path = tmp_path / "bomb.png"
    path.write_bytes(_png(width, height, 1, 0, b"\0" * 1000))
    for read in (read_image, read_size):
        with pytest.raises(DatasetError, match=r"bomb\.png: has more than 100,000,000 pixels"):
            read(path)


def test_D2_compressed_text_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    text = _chunk(b"zTXt", b"note\0\0" + zlib.compress(b"\0" * 20_000_000, 9))
    path.write_bytes(_png(4, 5, 8, 0, b"\0" * 25, extra=text))
    with pytest.raises(DatasetError, match="has a damaged header"):
        read_image(path)


def test_D2_sixty_megapixels_are_within_the_limit() -> None:
    assert 60_000_000 < image_header.MAX_PIXELS < Image.MAX_IMAGE_PIXELS * 2


@pytest.mark.parametrize("name", ["none.jpg", "a\0b.jpg", "x" * 300 + ".jpg", "."])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        read_image(tmp_path / name)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_size(tmp_path / name)


@pytest.mark.parametrize("name", ["two\nlines.jpg", "kůň 🐴.jpg", os.fsdecode(b"caf\xe9.jpg")])
def test_D8_unusual_names(tmp_path: Path, photo: Image.Image, name: str) -> None:
    photo.save(tmp_path / name)
    assert read_image(tmp_path / name).shape == (3, HEIGHT, WIDTH)
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DatasetError) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value).encode("utf-8").decode()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_are_changed_gives_an_image_or_a_dataset_error(
    tmp_path: Path, photo: Image.Image, data: st.DataObject
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    photo.convert(data.draw(st.sampled_from(("RGB", "L")))).save(
        buffer, data.draw(st.sampled_from(("JPEG", "PNG"))), exif=exif.tobytes()
    )
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "a.img"
    path.write_bytes(content)
    try:
        image = read_image(path)
    except DatasetError as error:
        str(error).encode("utf-8")
        return
    assert image.dtype == torch.uint8
    assert tuple(image.shape[1:]) == read_size(path)


def test_real_jpegs_equal_pillow(shared_data: Path, make_equal_check: Callable[[Path], None]) -> None:
    for path in sorted((shared_data / "coco2017_slice" / "train2017").glob("*.jpg"))[:10]:
        make_equal_check(path)


@pytest.fixture
def make_equal_check() -> Callable[[Path], None]:
    def check(path: Path) -> None:
        with Image.open(path) as reference:
            assert torch.equal(read_image(path), _pixels(reference))

    return check


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(("JPEG", "progressive", "PNG")),
    mode=st.sampled_from(("RGB", "L", "CMYK")),
    seed=st.integers(0, 2**32 - 1),
)
def test_checking_an_image_finds_what_reading_it_finds(
    tmp_path: Path, photo: Image.Image, kind: str, mode: str, seed: int
) -> None:
    random = np.random.default_rng(seed)
    buffer = io.BytesIO()
    source = photo.resize((150, 100)).convert("RGB" if kind == "PNG" and mode == "CMYK" else mode)
    source.save(buffer, "PNG" if kind == "PNG" else "JPEG", **({"progressive": True} if kind == "progressive" else {}))
    content = bytearray(buffer.getvalue())
    for place in random.integers(0, len(content), random.integers(0, 4)):
        content[place] = random.integers(0, 256)
    path = tmp_path / "a.img"
    path.write_bytes(content[: random.integers(0, len(content) + 1)] if random.random() < 0.5 else content)
    verdicts = []
    for look in (read_image, check_image):
        try:
            look(path, (150, 100))
            verdicts.append("sound")
        except DatasetError as error:
            verdicts.append(error.problem)
    assert verdicts[0] == verdicts[1]
