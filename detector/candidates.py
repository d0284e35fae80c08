"""Raw candidates in Parquet: one forward pass stores what every declared scoring needs, scoring is then a CPU's job.

A store is a folder of shards, one a worker: `shard-00000-of-00002.parquet`. A row of a shard is an image with the list
of its `survivors`: class logit, IoU logit, box, level, anchor, class, and under which declared rows the pair is a
detection. Every shard's metadata holds the schema version, the identity of data set and checkpoint, and the rows for
which the store is complete; whatever else is asked of it is refused.

What it weighs is bounded by rows x 100 pairs an image, and rows have most pairs in common. Writing and reading hold
`IMAGES_PER_GROUP` images at a time. The folder appears under its name when all shards are complete, never before.
"""

# I images of a group, S survivors of a group

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.config import ScoringConfig
from detector.errors import CandidateStoreError, CheckpointError, ConfigError, DatasetError, InputError
from detector.survivors import ScoringRow, Survivors

SCHEMA_VERSION = 1
IMAGES_PER_GROUP = 64
MAX_ROWS = 63
_METADATA_KEY = b"runyard.candidates"
_REMEDY = "Write the store again with one forward pass"

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


@dataclass(frozen=True)
class StoreIdentity:
    """Whose candidates they are: two stores of one identity hold the same logits."""

    dataset: str
    """`data.fingerprint.fingerprint` of the images."""
    checkpoint: str
    """`checkpoint.checkpoint_fingerprint` of the weights."""
    short_side_px: int
    long_side_px: int


@dataclass(frozen=True)
class StoreHeader:
    """What a store says of itself."""

    identity: StoreIdentity
    num_images: int
    num_classes: int
    iou_head: bool
    rows: tuple[ScoringRow, ...]
    """For which the store is complete; at most 63."""
    written_on: str = ""
    """Device and precision of the forward pass, for the record."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.rows) <= MAX_ROWS:
            raise ConfigError(f"must be 1 to {MAX_ROWS}", field="rows of a candidate store", value=len(self.rows))

    def row_of(self, scoring: ScoringConfig, oracle: bool = False) -> int:
        """The number of a declared row that holds all that `scoring` needs.

        That is a row of the same confidence, alpha, top-k and NMS threshold, with a score threshold and a number of
        detections that let at least as much through: the detections of `scoring` are the first of that row's.
        ConfigError, which names what is declared, where there is none.
        """
        number = self._find(scoring, oracle)
        if number is None:
            raise ConfigError(
                f"the candidate store is not complete for {describe_row(ScoringRow(scoring, oracle))}",
                field="scoring",
                remedy=f"It is for {'; '.join(map(describe_row, self.rows))}. Write a store that declares it as well",
            )
        return number

    def holds(self, row: ScoringRow) -> bool:
        """Whether `row_of` finds it."""
        return self._find(row.scoring, row.oracle) is not None

    def _find(self, scoring: ScoringConfig, oracle: bool) -> int | None:
        any_iou = self.iou_head or oracle
        for number, row in enumerate(self.rows):
            declared = row.scoring
            if (
                row.oracle == oracle
                and _alpha(declared, any_iou) == _alpha(scoring, any_iou)
                and declared.top_k == scoring.top_k
                and declared.nms_iou == scoring.nms_iou
                and declared.score_threshold <= scoring.score_threshold
                and declared.max_detections >= scoring.max_detections
            ):
                return number
        return None


def describe_row(row: ScoringRow) -> str:
    """One row in words, all values included."""
    scoring = row.scoring
    confidence = f"alpha {scoring.alpha:g}" if scoring.confidence == "alpha" else f"confidence '{scoring.confidence}'"
    return (
        f"{'oracle ' if row.oracle else ''}{confidence} (top-k {scoring.top_k}, score > {scoring.score_threshold:g}, "
        f"NMS {scoring.nms_iou:g}, {scoring.max_detections} detections)"
    )


def _alpha(scoring: ScoringConfig, any_iou: bool) -> float | None:
    """The exponent of p; the class score is alpha = 1 to the bit. None for 'none'."""
    if not any_iou or scoring.confidence == "class":
        return 1.0
    return scoring.alpha if scoring.confidence == "alpha" else None


class CandidateWriter:
    """Writes one worker's shard; a context manager that leaves nothing behind where its block fails.

    When every worker's is closed, one of them calls `publish_store`.
    """

    def __init__(self, folder: Path, header: StoreHeader, *, rank: int = 0, world_size: int = 1) -> None:
        self._path = _unpublished(folder) / _shard_name(rank, world_size)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"version": SCHEMA_VERSION, "shards": world_size, **asdict(header)})
        self._schema = pa.schema(_COLUMNS, metadata={_METADATA_KEY: text.encode("ascii")})
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
        _sync(self._path)

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
            raise CandidateStoreError("was not written", file=unpublished / name, remedy=_REMEDY)
    for path in unpublished.iterdir():  # left by an attempt with another number of workers
        if path.name not in shards:
            path.unlink()
    _sync(unpublished)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(unpublished, folder)
    _sync(folder.parent)


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
            raise CandidateStoreError("there is no candidate store", file=folder, remedy=_REMEDY)
        images: list[NDArray[np.int64]] = []
        headers: list[tuple[StoreHeader, int]] = []
        for path in paths:
            with _damage_reported(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                headers.append(_parse_header(file.schema_arrow, path))
                images.append(file.read(columns=["image"])["image"].to_numpy().astype(np.int64))
        header, world_size = headers[0]
        _check_identity(folder, header.identity, expect)
        missing = [rank for rank in range(world_size) if folder / _shard_name(rank, world_size) not in paths]
        if missing:
            path = folder / _shard_name(missing[0], world_size)
            raise CandidateStoreError(f"is missing: the store has {world_size} shards", file=path, remedy=_REMEDY)
        for path, other in zip(paths, headers, strict=True):
            if other != headers[0] or len(paths) != world_size:
                raise CandidateStoreError(
                    "shards of different stores lie side by side", file=path, remedy=f"Remove the folder. {_REMEDY}"
                )
        if not np.array_equal(np.sort(np.concatenate(images)), np.arange(header.num_images)):
            raise CandidateStoreError(
                f"does not hold each of its {header.num_images} images once", file=folder, remedy=_REMEDY
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
    except (OSError, pa.ArrowException, KeyError) as error:
        raise CandidateStoreError(
            f"cannot be read, it may be cut off or damaged ({str(error).splitlines()[0]})", file=path, remedy=_REMEDY
        ) from error


def _parse_header(schema: pa.Schema, path: Path) -> tuple[StoreHeader, int]:
    """The header and the number of shards."""
    text = (schema.metadata or {}).get(_METADATA_KEY)
    if text is None:
        raise CandidateStoreError("is a Parquet file, but no candidate store", file=path)
    try:
        content = json.loads(text)
        version = content.pop("version")
        if version != SCHEMA_VERSION:
            remedy = f"This version reads {SCHEMA_VERSION}. {_REMEDY}"
            raise CandidateStoreError("has an unknown schema version", file=path, value=version, remedy=remedy)
        shards = int(content.pop("shards"))
        identity = StoreIdentity(**content.pop("identity"))
        rows = tuple(ScoringRow(ScoringConfig(**row["scoring"]), row["oracle"]) for row in content.pop("rows"))
        return StoreHeader(identity=identity, rows=rows, **content), shards
    except CandidateStoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CandidateStoreError(f"has a damaged header ({error})", file=path, remedy=_REMEDY) from error


def _check_identity(folder: Path, found: StoreIdentity, expect: StoreIdentity | None) -> None:
    if expect is None:
        return
    if found.dataset != expect.dataset:
        raise DatasetError(
            f"was made from another data set (fingerprint {found.dataset[:12]}…, not {expect.dataset[:12]}…)",
            file=folder, remedy=_REMEDY,
        )  # fmt: skip
    if found.checkpoint != expect.checkpoint:
        raise CheckpointError(
            f"was made with another checkpoint (sha256 {found.checkpoint[:12]}…, not {expect.checkpoint[:12]}…)",
            file=folder, remedy=_REMEDY,
        )  # fmt: skip
    if found != expect:
        raise ConfigError(
            f"was made at short and long side {found.short_side_px} and {found.long_side_px} px, "
            f"not {expect.short_side_px} and {expect.long_side_px}",
            file=folder, remedy=_REMEDY,
        )  # fmt: skip


def _to_group(table: pa.Table, header: StoreHeader, path: Path) -> CandidateGroup:
    lists = table["candidates"].combine_chunks()
    values = lists.flatten()

    def column(name: str) -> Tensor:
        return torch.from_numpy(values.field(name).to_numpy(zero_copy_only=False).copy())

    labels = column("label").long()
    has_oracle = any(row.oracle for row in header.rows)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < header.num_classes:
        raise CandidateStoreError("holds a class that does not exist", file=path, remedy=_REMEDY)
    return CandidateGroup(
        images=table["image"].to_numpy().astype(np.int64),
        sizes=np.stack([table["height"].to_numpy(), table["width"].to_numpy()], axis=1).astype(np.int64),
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
