"""Raw candidates in Parquet: one forward pass stores what every declared scoring needs, scoring is then a CPU's job.

A store is a folder of shards, one a worker: `shard-00000-of-00002.parquet`. A row of a shard is an image with the list
of its `survivors`: class logit, IoU logit, box, level, anchor, class, and under which declared rows the pair is a
detection. Every shard's metadata holds the schema version, the identity of data set and checkpoint, and the rows for
which the store is complete; whatever else is asked of it is refused.

An image has rows x 100 pairs at most, and rows have most pairs in common: 13 rows of 80 classes come to about 400 pairs
and 12 kB an image. Writing and reading hold `IMAGES_PER_GROUP` images at a time. The folder appears under its name when
all shards are complete, never before.
"""

# I images of a group, S survivors of a group

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.errors import CandidateStoreError, InputError
from detector.files import sync
from detector.rescoring.header import (
    REMEDY,
    StoreHeader,
    StoreIdentity,
    check_identity,
    encode_header,
    parse_header,
)
from detector.rescoring.kept_pairs import Survivors

IMAGES_PER_GROUP = 64
_METADATA_KEY = b"runyard.candidates"

_CANDIDATE = pa.struct(
    [
        ("anchor", pa.int32()),
        ("level", pa.int8()),
        ("label", pa.int16()),
        ("cls_logit", pa.float32()),
        ("iou_logit", pa.float32()),  # null without an IoU head
        ("true_iou", pa.float32()),  # null without an oracle row
        ("x1", pa.float32()),  # resized frame
        ("y1", pa.float32()),
        ("x2", pa.float32()),
        ("y2", pa.float32()),
        ("rows", pa.int64()),  # bit r: a detection under row r
    ]
)
_COLUMNS = [
    ("image", pa.int32()),  # position in the data set
    ("height", pa.int32()),  # of the resized image
    ("width", pa.int32()),
    ("candidates", pa.list_(_CANDIDATE)),
]


class CandidateWriter:
    """Writes one worker's shard; a context manager that leaves nothing behind where its block fails.

    When every worker's is closed, one of them calls `publish_store`.
    """

    def __init__(self, folder: Path, header: StoreHeader, *, rank: int = 0, world_size: int = 1) -> None:
        self._path = _unpublished(folder) / _shard_name(rank, world_size)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = pa.schema(_COLUMNS, metadata={_METADATA_KEY: encode_header(header, world_size)})
        # Compressed floats hardly shrink: zstd is for repeated boxes (an anchor with several classes), and is fast.
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", write_page_checksum=True)
        self._images: list[tuple[int, tuple[int, int]]] = []
        self._waiting: list[Survivors] = []

    def add(self, image: int, size: tuple[int, int], found: Survivors) -> None:
        """Adds an image by its position in the data set; `size` is the resized image's height and width."""
        self._images.append((image, size))
        self._waiting.append(found)
        if len(self._images) >= IMAGES_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Completes the shard and makes it last."""
        if self._images:
            self._flush()
        self._writer.close()
        sync(self._path)

    def __enter__(self) -> "CandidateWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:
            self._writer.close()
        finally:
            self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        offsets = np.cumsum([0, *(len(found.rows) for found in self._waiting)], dtype=np.int32)
        pairs = pa.StructArray.from_arrays(_columns_of(self._waiting), fields=list(_CANDIDATE))
        images, height, width = np.array([(image, *size) for image, size in self._images]).T
        columns = [
            *(_to_arrow(values, pa.int32()) for values in (images, height, width)),
            pa.ListArray.from_arrays(_to_arrow(offsets, pa.int32()), pairs, type=_COLUMNS[-1][1]),
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))
        self._images, self._waiting = [], []


def _columns_of(found: Sequence[Survivors]) -> list[pa.Array]:
    """The columns of `_CANDIDATE`."""

    def column(name: str) -> Tensor | None:
        parts = [getattr(of_image, name) for of_image in found]
        return None if parts[0] is None else torch.cat(parts)

    boxes = column("boxes")
    assert boxes is not None
    values = [column(name) for name in ("anchor_index", "level", "labels", "cls_logits", "iou_logits", "true_ious")]
    return [
        pa.nulls(len(boxes), field.type) if value is None else _to_arrow(value.numpy(), field.type)
        for field, value in zip(_CANDIDATE, [*values, *boxes.unbind(1), column("rows")], strict=True)
    ]


def _to_arrow(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Of a fixed-size type without nulls; `pa.array` would import pandas, which takes longer than a small store."""
    content = np.ascontiguousarray(values, dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(content), [None, pa.py_buffer(content)])


def publish_store(folder: Path, world_size: int = 1) -> None:
    """Gives a store its name once all shards are closed, in place of an earlier one.

    Raises CandidateStoreError, and changes nothing, where a shard is missing.
    """
    unpublished = _unpublished(folder)
    shards = {_shard_name(rank, world_size) for rank in range(world_size)}
    for name in sorted(shards):
        if not (unpublished / name).is_file():
            raise CandidateStoreError("was not written", file=unpublished / name, remedy=REMEDY)
    for path in unpublished.iterdir():  # left by an attempt with another number of workers
        if path.name not in shards:
            path.unlink()
    sync(unpublished)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(unpublished, folder)
    sync(folder.parent)


@dataclass(frozen=True)
class CandidateGroup:
    """A few images of a store."""

    images: NDArray[np.int64]
    """(I,) positions in the data set."""
    sizes: NDArray[np.int64]
    """(I, 2) height, width of the resized images."""
    counts: NDArray[np.int64]
    """(I,) survivors of each image; their sum is S."""
    pairs: Survivors
    """Of all these images, one after the other."""


class CandidateStore:
    """A complete store, open for reading."""

    def __init__(self, header: StoreHeader, shards: tuple[Path, ...]) -> None:
        self.header = header
        self._shards = shards

    @classmethod
    def open(cls, folder: Path, expect: StoreIdentity | None = None) -> "CandidateStore":
        """Opens a store and checks that all of it is there: every shard, and every image exactly once.

        Raises CandidateStoreError for one that is missing, incomplete, damaged or of another version; where it is not
        the one that is expected, DatasetError, CheckpointError or ConfigError (another image size).
        """
        paths = sorted(folder.glob("shard-*.parquet"))
        if not paths:
            raise CandidateStoreError("there is no candidate store", file=folder, remedy=REMEDY)
        images: list[NDArray[np.int64]] = []
        headers: list[tuple[StoreHeader, int]] = []
        for path in paths:
            with _damage_reported(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                text = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
                if text is None:
                    raise CandidateStoreError("is a Parquet file, but no candidate store", file=path)
                _check_columns(file.schema_arrow, path)
                headers.append(parse_header(text, path))
                column = file.read(columns=["image"])["image"]
                _require(column.null_count == 0, "lacks the position of an image", path)
                images.append(column.to_numpy().astype(np.int64))
        header, world_size = headers[0]
        check_identity(folder, header.identity, expect)
        missing = [rank for rank in range(world_size) if folder / _shard_name(rank, world_size) not in paths]
        if missing:
            path = folder / _shard_name(missing[0], world_size)
            raise CandidateStoreError(f"is missing: the store has {world_size} shards", file=path, remedy=REMEDY)
        for path, other in zip(paths, headers, strict=True):
            if other != headers[0] or len(paths) != world_size:
                raise CandidateStoreError(
                    "shards of different stores lie side by side", file=path, remedy=f"Remove the folder. {REMEDY}"
                )
        if not np.array_equal(np.sort(np.concatenate(images)), np.arange(header.num_images)):
            raise CandidateStoreError(
                f"does not hold each of its {header.num_images} images once", file=folder, remedy=REMEDY
            )
        return cls(header, tuple(paths))

    def groups(self) -> Iterator[CandidateGroup]:
        """All images, `IMAGES_PER_GROUP` at most at a time; CandidateStoreError where a file turns out damaged."""
        for path in self._shards:
            with _damage_reported(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                for number in range(file.num_row_groups):
                    yield _to_group(file.read_row_group(number, use_threads=False), self.header, path)


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:  # ValueError: a name that is no text
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise CandidateStoreError(
            f"cannot be read, it may be cut off or damaged ({problem})", file=path, remedy=REMEDY
        ) from error


def _check_columns(found: pa.Schema, path: Path) -> None:
    """The metadata alone do not make a store: whoever wrote the columns may not have been us."""
    _require(found.names == [name for name, _ in _COLUMNS], "has other columns", path)
    for name, kind in _COLUMNS:
        same = found.field(name).type == kind
        if pa.types.is_list(kind) and pa.types.is_list(found.field(name).type):
            same = found.field(name).type.value_type == kind.value_type
        _require(same, f"has a column {name!r} of another type", path)


def _require(holds: bool, problem: str, path: Path) -> None:
    if not holds:
        raise CandidateStoreError(problem, file=path, remedy=REMEDY)


def _to_group(table: pa.Table, header: StoreHeader, path: Path) -> CandidateGroup:
    lists = table["candidates"].combine_chunks()
    values = lists.flatten()
    _require(lists.null_count == values.null_count == 0, "lacks the candidates of an image", path)

    def column(name: str) -> Tensor:
        _require(values.field(name).null_count == 0, f"lacks a value of {name!r}", path)
        found = torch.from_numpy(values.field(name).to_numpy(zero_copy_only=False).copy())
        _require(bool(found.isfinite().all()), f"holds a value of {name!r} that is not finite", path)
        return found

    labels = column("label").long()
    has_oracle = any(row.oracle for row in header.rows)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < header.num_classes:
        raise CandidateStoreError("holds a class that does not exist", file=path, remedy=REMEDY)
    sides = [table[name] for name in ("height", "width")]
    _require(all(side.null_count == 0 for side in sides), "lacks the size of an image", path)
    sizes = np.stack([side.to_numpy() for side in sides], axis=1).astype(np.int64)
    _require(bool((sizes >= 1).all()), "holds an image without area", path)
    return CandidateGroup(
        images=table["image"].to_numpy().astype(np.int64),
        sizes=sizes,
        counts=np.diff(lists.offsets.to_numpy()).astype(np.int64),
        pairs=Survivors(
            anchor_index=column("anchor").long(),
            level=column("level").long(),
            labels=labels,
            boxes=torch.stack([column(name) for name in ("x1", "y1", "x2", "y2")], dim=1),
            cls_logits=column("cls_logit"),
            iou_logits=column("iou_logit") if header.iou_head else None,
            true_ious=column("true_iou") if has_oracle else None,
            rows=column("rows"),
        ),
    )


def _shard_name(rank: int, world_size: int) -> str:
    return f"shard-{rank:05d}-of-{world_size:05d}.parquet"


def _unpublished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")
