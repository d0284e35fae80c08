"""The header of a part of a candidate store: the outputs that it holds, and the rows that it answers.

It stands in the metadata of every shard, as JSON.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_origin, get_type_hints

from detector.config import ScoringConfig
from detector.errors import CandidateStoreError, CheckpointError, ConfigError, DatasetError
from detector.models.detector import ScoringRow

SCHEMA_VERSION = 2
MAX_ROWS = 63
"""Rows of one part; more rows take more parts."""
REMEDY = "Delete it; the command that wrote it writes it again"


@dataclass(frozen=True)
class StoreIdentity:
    """Origin of the outputs: two stores of one identity hold outputs of the same weights on the same images."""

    dataset: str
    """`data.fingerprint.fingerprint` of the images."""
    checkpoint: str
    """`checkpoint.checkpoint_fingerprint` of the weights."""
    short_side_px: int
    long_side_px: int


@dataclass(frozen=True)
class PartHeader:
    """Contents of one part of a store."""

    identity: StoreIdentity
    num_images: int
    num_classes: int
    iou_head: bool
    rows: tuple[ScoringRow, ...]
    """Rows that the part answers, 1 to 63, in the order of its columns."""
    written_on: str = ""
    """Device and precision of the forward pass, for the record."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.rows) <= MAX_ROWS:
            raise ConfigError(f"must be 1 to {MAX_ROWS}", field="rows of a candidate store", value=len(self.rows))

    def row_of(self, row: ScoringRow) -> int | None:
        """The number of a declared row that answers `row`; None where no row does.

        That is a row of the same confidence, alpha, top-k and NMS threshold, with a score threshold and a number of
        detections that let at least as much through: the detections of `row` are the first of that row's.
        """
        any_iou = self.iou_head or row.oracle
        scoring = row.scoring
        for number, declared in enumerate(self.rows):
            if (
                declared.oracle == row.oracle
                and _alpha(declared.scoring, any_iou) == _alpha(scoring, any_iou)
                and declared.scoring.top_k == scoring.top_k
                and declared.scoring.nms_iou == scoring.nms_iou
                and declared.scoring.score_threshold <= scoring.score_threshold
                and declared.scoring.max_detections >= scoring.max_detections
            ):
                return number
        return None


def describe_row(row: ScoringRow) -> str:
    """One row in words, with all its values."""
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


def encode_header(header: PartHeader, num_shards: int) -> bytes:
    """The header as it stands in each of `num_shards` shards."""
    return json.dumps({"version": SCHEMA_VERSION, "shards": num_shards, **asdict(header)}).encode("ascii")


def parse_header(text: bytes, path: Path) -> tuple[PartHeader, int]:
    """The header and number of shards that `encode_header` was given.

    Raise CandidateStoreError, naming `path`, for a damaged header or another version.
    """
    try:
        content = json.loads(text)
        version = content.pop("version")
        if version != SCHEMA_VERSION:
            remedy = f"This version reads {SCHEMA_VERSION}. {REMEDY}"
            raise CandidateStoreError("has an unknown schema version", file=path, value=version, remedy=remedy)
        shards = content.pop("shards")
        identity = StoreIdentity(**content.pop("identity"))
        rows = tuple(ScoringRow(ScoringConfig(**row["scoring"]), row["oracle"]) for row in content.pop("rows"))
        header = PartHeader(identity=identity, rows=rows, **content)
        if type(shards) is not int or not all(
            map(_has_its_types, (header, identity, *rows, *(r.scoring for r in rows)))
        ):
            raise TypeError("a value is of another type")
        return header, shards
    except CandidateStoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CandidateStoreError(f"has a damaged header ({error})", file=path, remedy=REMEDY) from error


def _has_its_types(part: object) -> bool:
    """Check the numbers, flags and texts of a dataclass: JSON has others, and its 1 may stand for 1.0."""
    for name, hint in get_type_hints(type(part)).items():
        allowed = {float: (float, int), int: (int,), bool: (bool,), str: (str,)}.get(hint)
        allowed = (str,) if get_origin(hint) is Literal else allowed
        if allowed is not None and type(getattr(part, name)) not in allowed:
            return False
    return True


def check_identity(folder: Path, found: StoreIdentity, expect: StoreIdentity | None) -> None:
    """Raise DatasetError, CheckpointError or ConfigError where the part `folder` is not of the expected origin."""
    if expect is None:
        return
    if found.dataset != expect.dataset:
        problem = f"was made from another data set (fingerprint {found.dataset[:12]}…, not {expect.dataset[:12]}…)"
        raise DatasetError(problem, file=folder, remedy=REMEDY)
    if found.checkpoint != expect.checkpoint:
        problem = f"was made with another checkpoint (sha256 {found.checkpoint[:12]}…, not {expect.checkpoint[:12]}…)"
        raise CheckpointError(problem, file=folder, remedy=REMEDY)
    if found != expect:
        problem = (
            f"was made at short and long side {found.short_side_px} and {found.long_side_px} px, "
            f"not {expect.short_side_px} and {expect.long_side_px}"
        )
        raise ConfigError(problem, file=folder, remedy=REMEDY)
