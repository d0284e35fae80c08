"""What a candidate store says of itself: whose candidates it holds, and for which rows it is complete.

It stands in the metadata of every shard, as JSON.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_origin, get_type_hints

from detector.config import ScoringConfig
from detector.errors import CandidateStoreError, CheckpointError, ConfigError, DatasetError
from detector.rescoring.kept_pairs import ScoringRow

SCHEMA_VERSION = 1
MAX_ROWS = 63
REMEDY = "Delete the store; the command that wrote it writes it again"


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


def encode_header(header: StoreHeader, num_shards: int) -> bytes:
    """The header as it stands in each of `num_shards` shards."""
    return json.dumps({"version": SCHEMA_VERSION, "shards": num_shards, **asdict(header)}).encode("ascii")


def parse_header(text: bytes, path: Path) -> tuple[StoreHeader, int]:
    """What `encode_header` was given; CandidateStoreError, naming `path`, where it is damaged or of another version."""
    try:
        content = json.loads(text)
        version = content.pop("version")
        if version != SCHEMA_VERSION:
            remedy = f"This version reads {SCHEMA_VERSION}. {REMEDY}"
            raise CandidateStoreError("has an unknown schema version", file=path, value=version, remedy=remedy)
        shards = content.pop("shards")
        identity = StoreIdentity(**content.pop("identity"))
        rows = tuple(ScoringRow(ScoringConfig(**row["scoring"]), row["oracle"]) for row in content.pop("rows"))
        header = StoreHeader(identity=identity, rows=rows, **content)
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
    """Whether numbers, flags and texts of a dataclass are such: JSON has others, and its 1 may stand for 1.0."""
    for name, hint in get_type_hints(type(part)).items():
        allowed = {float: (float, int), int: (int,), bool: (bool,), str: (str,)}.get(hint)
        allowed = (str,) if get_origin(hint) is Literal else allowed
        if allowed is not None and type(getattr(part, name)) not in allowed:
            return False
    return True


def check_identity(folder: Path, found: StoreIdentity, expect: StoreIdentity | None) -> None:
    """Raises DatasetError, CheckpointError or ConfigError where the store `folder` is not the one that is expected."""
    if expect is None:
        return
    if found.dataset != expect.dataset:
        raise DatasetError(
            f"was made from another data set (fingerprint {found.dataset[:12]}…, not {expect.dataset[:12]}…)",
            file=folder, remedy=REMEDY,
        )  # fmt: skip
    if found.checkpoint != expect.checkpoint:
        raise CheckpointError(
            f"was made with another checkpoint (sha256 {found.checkpoint[:12]}…, not {expect.checkpoint[:12]}…)",
            file=folder, remedy=REMEDY,
        )  # fmt: skip
    if found != expect:
        raise ConfigError(
            f"was made at short and long side {found.short_side_px} and {found.long_side_px} px, "
            f"not {expect.short_side_px} and {expect.long_side_px}",
            file=folder, remedy=REMEDY,
        )  # fmt: skip
