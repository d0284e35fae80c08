"""D2: an image that unpacks into gigabytes costs its header; a large photo is read; only JPEG and PNG are opened."""

import gzip
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from detector.data.images.header import MAX_PIXELS
from detector.errors import DatasetError
from runyard.runs.prepare import prepare

ROOT = Path(__file__).resolve().parents[3]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """30,000 x 30,000 px of one bit each, whole and valid: 113 MB of rows, in grey 900 MB."""
    row = b"\0" * (1 + 30_000 // 8)
    packer = zlib.compressobj(9)
    rows = b"".join([packer.compress(row * 1000) for _ in range(30)]) + packer.flush()
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def fits_bomb() -> bytes:
    """A FITS file, gzip-compressed inside, that a decoder would unpack without a limit (CVE-2026-40192)."""
    cards = ("SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2",
             "NAXIS1  =                   64", "NAXIS2  =                   64", "ZBITPIX =                    8",
             "ZCMPTYPE= 'GZIP_1  '", "END")  # fmt: skip
    return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + gzip.compress(b"\0" * 50_000_000)


def test_D2_the_bomb_is_small(bomb: bytes) -> None:
    assert 100_000 < len(bomb) < 120_000
    assert MAX_PIXELS < 30_000**2


@pytest.mark.parametrize("name", ["bomb.png", "bomb.jpg"])
def test_D2_a_bomb_is_refused_before_it_is_decoded(
    data, spec_of: Callable, bomb: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded") if self.width > 10_000 else load(self))
    data.train.add(name, bomb, size=(30_000, 30_000))
    with pytest.raises(DatasetError, match=rf"1 of 3 training images .*{name}: has more than 100,000,000 pixels"):
        prepare(spec_of(data))


def test_D2_a_process_that_checks_a_bomb_needs_no_memory_for_it(data, bomb: bytes) -> None:
    path = data.train.add("bomb.png", bomb, size=(30_000, 30_000))
    program = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from detector.data.images import check_image, read_image\n"
        "from detector.errors import DatasetError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for look in (check_image, read_image):\n"
        "    try: look(Path(sys.argv[1]), (30_000, 30_000))\n"
        "    except DatasetError: pass\n"
        "    else: sys.exit('was read')\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20, f"{done.stdout} MiB"


def test_D2_other_formats_are_not_opened(data, spec_of: Callable, fits_bomb: bytes) -> None:
    data.train.add("fits.png", fits_bomb)
    with pytest.raises(DatasetError, match=r"fits\.png: is not a JPEG or PNG image"):
        prepare(spec_of(data))


def test_D2_sixty_megapixels_are_read(data, spec_of: Callable, train_on: Callable) -> None:
    photo = Image.new("L", (9600, 6250), 90)
    data.train.add("large.jpg", photo, boxes=[{"category_id": 2, "bbox": [100, 100, 4000, 3000]}])
    outcome = train_on(spec_of(data))
    assert outcome.prepared.train_images == 3
    assert outcome.prepared.manifest["skipped_images"] == {"train": [], "val": []}
