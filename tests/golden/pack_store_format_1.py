"""Pack the store that make_store_format_1.sh leaves in /data: `python tests/golden/pack_store_format_1.py /data`.

Pictures are left out. The values of all tensors of checkpoints but the random state become zeros, so that the archive
is small; names, shapes and types stay, and so does validity, as every record of a file's SHA-256 is rewritten. Any text
that names a folder outside /data, or this machine, ends the packing.
"""

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

ARCHIVE = Path(__file__).resolve().with_name("store_format_1.tar.xz")
LARGEST_ARCHIVE_BYTES = 2_000_000
KEPT_TENSORS = ("random.torch",)
# Split so that this file does not hold what it looks for.
FOREIGN = re.compile(rb"/(?:wo" + rb"rk|tm" + rb"p|ro" + rb"ot|ho" + rb"me)\b|\b" + platform.node().encode() + rb"\b")


def remove_values(file: Path) -> tuple[bytes, bytes]:
    """Leave a safetensors file with zeros, as holes of the file, for all tensors but `KEPT_TENSORS`.

    Returns the file's hexadecimal SHA-256 before and after.
    """
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    file.unlink()
    with file.open("wb") as stream:
        stream.write(content[:start])
        for name, entry in json.loads(content[8:start]).items():
            if name in KEPT_TENSORS:
                begin, end = (start + offset for offset in entry["data_offsets"])
                stream.seek(begin)
                stream.write(content[begin:end])
        stream.truncate(len(content))
    before, after = (hashlib.sha256(of).hexdigest().encode() for of in (content, file.read_bytes()))
    return before, after


def replace_in_parquet(file: Path, digests: dict[bytes, bytes]) -> None:
    """Rewrite the digests in the schema's metadata; all else is written as it was."""
    table = pq.read_table(file)
    metadata = dict(table.schema.metadata)
    for old, new in digests.items():
        metadata = {key: value.replace(old, new) for key, value in metadata.items()}
    pq.write_table(table.replace_schema_metadata(metadata), file, compression="zstd", write_page_checksum=True)


def strip(store: Path) -> None:
    """Remove pictures and the values of tensors, in place."""
    for picture in store.rglob("*.png"):
        picture.unlink()
    digests = dict(remove_values(file) for file in store.rglob("tensors.safetensors"))
    for file in store.rglob("*"):
        if not file.is_file() or file.name == "tensors.safetensors":
            continue
        if file.suffix == ".parquet":
            replace_in_parquet(file, digests)
        content = file.read_bytes()
        if file.suffix == ".json":
            for old, new in digests.items():
                content = content.replace(old, new)
            file.write_bytes(content)
        left = [old.decode() for old in digests if old in content]
        if left:
            raise SystemExit(f"{file}: holds the SHA-256 of a file that was changed: {left}")


def check_text(store: Path) -> None:
    """End where a text file, the database or the columns of a data set name something of this machine."""
    for file in store.rglob("*"):
        if not file.is_file() or file.suffix in (".jpg", ".safetensors"):
            continue
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as columns:
                text = " ".join(str(columns[name].tolist()) for name in columns.files).encode()
        elif file.suffix == ".parquet":
            text = str(pq.read_schema(file).metadata).encode()
        else:
            text = file.read_bytes()
        if found := FOREIGN.search(text):
            raise SystemExit(f"{file}: holds {found[0]!r}")


def main() -> None:
    """Copy, strip, check, pack."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "data"
        for part in ("runs", "shapes"):
            shutil.copytree(Path(sys.argv[1]) / part, store / part)  # with the times, which the image check remembers
        strip(store)
        check_text(store)
        subprocess.run(
            [
                "tar",
                "--create",
                "--directory",
                folder,
                "--format=posix",
                "--sparse",
                "--hole-detection=raw",
                "--sort=name",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--pax-option=delete=atime,delete=ctime",
                "--use-compress-program=xz -9e",
                "--file",
                ARCHIVE,
                "data",
            ],
            check=True,
        )
    if ARCHIVE.stat().st_size > LARGEST_ARCHIVE_BYTES:
        raise SystemExit(f"{ARCHIVE} has {ARCHIVE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
