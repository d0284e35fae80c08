"""Detections of many scoring rows in Parquet, from one forward pass a part; reading a row is then a CPU's job.

A store is a folder of *parts*, a part a folder of shards, one a worker: `part-00000/shard-00000-of-00002.parquet`. A
part holds the detections of every image under its rows, as `Detector.detect` found them on the device that ran the
network: every (box, class) pair once, and for each row the pairs and scores by rank. Nothing is scored or suppressed in
reading, so that a row read is the row detected, bit for bit. A new row is a new part: what is written stays as it is.

Every shard's metadata holds the schema version, the identity of data set and checkpoint, and the part's rows; anything
else that is asked for is refused. Writing and reading hold `IMAGES_PER_GROUP` images at a time. A part appears under
its name when all its shards are complete, never before.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from detector.config import ScoringConfig
from detector.errors import CandidateStoreError, ConfigError, InputError
from detector.files import sync
from detector.models.detector import ScoringRow
from detector.rescoring.columns import ImageRows, RowGroup, columns_of, from_arrow, require, row_column, to_arrow
from detector.rescoring.header import (
    REMEDY,
    PartHeader,
    StoreIdentity,
    check_identity,
    describe_row,
    encode_header,
    parse_header,
)

IMAGES_PER_GROUP = 64
_METADATA_KEY = b"runyard.candidates"


class PartWriter:
    """Writer of one worker's shard of a part; a context manager that leaves nothing behind where its block fails.

    When every worker's writer is closed, one worker calls `publish_part`.

    Args:
        part: from `next_part`, the same for all workers.
    """

    def __init__(self, part: Path, header: PartHeader, *, rank: int = 0, world_size: int = 1) -> None:
        self._path = _unpublished(part) / _shard_name(rank, world_size)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._num_rows = len(header.rows)
        metadata = {_METADATA_KEY: encode_header(header, world_size)}
        self._schema = pa.schema(columns_of(self._num_rows), metadata=metadata)
        # Compressed floats hardly shrink: zstd is for repeated boxes (an anchor with several classes), and is fast.
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", write_page_checksum=True)
        self._waiting: list[ImageRows] = []

    def add(self, image: ImageRows) -> None:
        """Add an image with its detections under every row of the part."""
        assert len(image.rows) == self._num_rows, "one entry a row"
        self._waiting.append(image)
        if len(self._waiting) >= IMAGES_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Complete the shard and make it last."""
        if self._waiting:
            self._flush()
        self._writer.close()
        sync(self._path)

    def __enter__(self) -> "PartWriter":
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
        self._writer.write_table(to_arrow(self._waiting, self._schema))
        self._waiting = []


def next_part(store: Path) -> Path:
    """Path of a new part of the store `store`; remove what an interrupted writer has left behind."""
    for leftover in store.glob(".part-*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)
    numbers = [int(path.name[5:]) for path in store.glob("part-*") if path.name[5:].isdecimal()]
    return store / f"part-{max(numbers, default=-1) + 1:05d}"


def publish_part(part: Path, world_size: int = 1) -> None:
    """Give a part its name once all its shards are closed.

    Raise CandidateStoreError, and change nothing, where a shard is missing.
    """
    unpublished = _unpublished(part)
    shards = {_shard_name(rank, world_size) for rank in range(world_size)}
    for name in sorted(shards):
        if not (unpublished / name).is_file():
            raise CandidateStoreError("was not written", file=unpublished / name, remedy=REMEDY)
    for path in unpublished.iterdir():  # left by an attempt with another number of workers
        if path.name not in shards:
            path.unlink()
    sync(unpublished)
    os.replace(unpublished, part)
    sync(part.parent)


def remove_part(path: Path) -> None:
    """Remove a part, or a file that lies in its place."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Part:
    """A complete part."""

    header: PartHeader
    shards: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        return self.shards[0].parent


class CandidateStore:
    """The usable parts of a store, open for reading.

    Attributes:
        parts: at least one, in the order in which they were written.
        unusable: by path, the parts that cannot be used, and what is wrong with each: damaged, of another version, or
            of another data set or checkpoint than expected. `remove_unusable` removes them.
    """

    def __init__(self, folder: Path, parts: tuple[Part, ...], unusable: dict[Path, InputError]) -> None:
        self.folder = folder
        self.parts = parts
        self.unusable = unusable

    @classmethod
    def open(cls, folder: Path, expect: StoreIdentity | None = None) -> "CandidateStore":
        """Open a store and check each part: every shard is there, and every image exactly once.

        Where no part is usable, raise CandidateStoreError for a store that is missing, incomplete, damaged or of
        another version; for one of another origin than expected DatasetError, CheckpointError or ConfigError (another
        image size).
        """
        parts: list[Part] = []
        unusable: dict[Path, InputError] = {}
        for path in sorted(folder.glob("part-*")):
            try:
                parts.append(_open_part(path, expect))
            except InputError as error:
                unusable[path] = error
        for path in sorted(folder.glob("shard-*.parquet")):  # a store of schema version 1 has no parts
            problem = "belongs to a candidate store of another version"
            unusable[path] = CandidateStoreError(problem, file=path, remedy=REMEDY)
        store = cls(folder, tuple(parts), unusable)
        if not parts:
            raise store._unusable_error() or CandidateStoreError(
                "expected a candidate store, found nothing", file=folder, remedy="Run the command that writes it"
            )
        return store

    @property
    def rows(self) -> tuple[ScoringRow, ...]:
        """All rows that the parts declare."""
        return tuple(dict.fromkeys(row for part in self.parts for row in part.header.rows))

    def row_of(self, scoring: ScoringConfig, oracle: bool = False) -> tuple[Part, int]:
        """The part and the number of its row that answer a scoring (see `PartHeader.row_of`).

        Raise ConfigError, which names the declared rows, where no row does; where unusable parts might have answered,
        raise what is wrong with the first of them.
        """
        row = ScoringRow(scoring, oracle)
        found = self._find(row)
        if found is not None:
            return found
        if (error := self._unusable_error()) is not None:
            raise error
        raise ConfigError(
            f"the candidate store is not complete for {describe_row(row)}",
            field="scoring",
            remedy=f"It is for {'; '.join(map(describe_row, self.rows))}. Write a part that declares it as well",
        )

    def holds(self, row: ScoringRow) -> bool:
        """Tell whether `row_of` finds the row."""
        return self._find(row) is not None

    def missing(self, rows: Sequence[ScoringRow]) -> tuple[ScoringRow, ...]:
        """The rows that the store does not hold, each once, in order."""
        return tuple(row for row in dict.fromkeys(rows) if not self.holds(row))

    def groups(self, scoring: ScoringConfig, oracle: bool = False) -> Iterator[RowGroup]:
        """Detections of all images under the row that answers a scoring, `IMAGES_PER_GROUP` images at most at a time.

        The row may let more through than `scoring`. Raise as `row_of`, and CandidateStoreError where a file turns out
        to be damaged.
        """
        part, row = self.row_of(scoring, oracle)
        columns = ["image", "height", "width", "pairs", row_column(row)]
        for path in part.shards:
            with _damage_reported(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number, columns=columns, use_threads=False)
                    yield from_arrow(table, row, part.header.num_classes, path)

    def remove_unusable(self) -> None:
        """Remove the parts that cannot be used."""
        for path in self.unusable:
            remove_part(path)
        self.unusable = {}

    def _find(self, row: ScoringRow) -> tuple[Part, int] | None:
        for part in self.parts:
            number = part.header.row_of(row)
            if number is not None:
                return part, number
        return None

    def _unusable_error(self) -> InputError | None:
        return next(iter(self.unusable.values()), None)


def _open_part(folder: Path, expect: StoreIdentity | None) -> Part:
    """A part whose shards are all there, are of one kind, and hold every image once; raise as `CandidateStore.open`."""
    paths = sorted(folder.glob("shard-*.parquet"))
    if not paths:
        raise CandidateStoreError("expected shards of a candidate store, found none", file=folder, remedy=REMEDY)
    images: list[NDArray[np.int64]] = []
    headers: list[tuple[PartHeader, int]] = []
    for path in paths:
        with _damage_reported(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
            text = (file.schema_arrow.metadata or {}).get(_METADATA_KEY)
            if text is None:
                raise CandidateStoreError("is a Parquet file, but no candidate store", file=path, remedy=REMEDY)
            headers.append(parse_header(text, path))
            _check_columns(file.schema_arrow, len(headers[-1][0].rows), path)
            column = file.read(columns=["image"])["image"]
            require(column.null_count == 0, "lacks the position of an image", path)
            images.append(column.to_numpy().astype(np.int64))
    header, world_size = headers[0]
    check_identity(folder, header.identity, expect)
    missing = [rank for rank in range(world_size) if folder / _shard_name(rank, world_size) not in paths]
    if missing:
        path = folder / _shard_name(missing[0], world_size)
        raise CandidateStoreError(f"is missing: the part has {world_size} shards", file=path, remedy=REMEDY)
    for path, other in zip(paths, headers, strict=True):
        if other != headers[0] or len(paths) != world_size:
            raise CandidateStoreError("shards of different parts lie side by side", file=path, remedy=REMEDY)
    if not np.array_equal(np.sort(np.concatenate(images)), np.arange(header.num_images)):
        problem = f"does not hold each of its {header.num_images} images once"
        raise CandidateStoreError(problem, file=folder, remedy=REMEDY)
    return Part(header, tuple(paths))


def _check_columns(found: pa.Schema, num_rows: int, path: Path) -> None:
    """The metadata alone do not make a part: the columns must be those of a writer of ours."""
    expected = columns_of(num_rows)
    require(found.names == [name for name, _ in expected], "has other columns", path)
    for name, kind in expected:
        same = found.field(name).type == kind
        if pa.types.is_list(kind) and pa.types.is_list(found.field(name).type):
            same = found.field(name).type.value_type == kind.value_type
        require(same, f"has a column {name!r} of another type", path)


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:  # ValueError: a name that is not text
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise CandidateStoreError(
            f"cannot be read, it may be cut off or damaged ({problem})", file=path, remedy=REMEDY
        ) from error


def _shard_name(rank: int, world_size: int) -> str:
    return f"shard-{rank:05d}-of-{world_size:05d}.parquet"


def _unpublished(part: Path) -> Path:
    return part.with_name(f".{part.name}.partial")
