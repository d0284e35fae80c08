"""A table of a paper as data, and whether our numbers may stand beside it. Imports no torch."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ImageSet:
    """The images that numbers are of, or weights come from, by what can be counted in them."""

    name: str
    """'COCO val2017'."""
    images: int
    classes: int
    objects: int | None
    """Annotated objects, crowds and difficult ones among them. None: not known here."""


@dataclass(frozen=True)
class PaperRow:
    """One line as printed."""

    label: str
    """First column; with the backbone, where the table has such a column."""
    percent: dict[str, float]


@dataclass(frozen=True)
class PaperTable:
    """One table as printed."""

    number: int
    title: str
    evaluated_on: ImageSet
    """Of the numbers; those of other images are not comparable."""
    trained_on: ImageSet
    protocol: str
    """What AP means there: 'coco' (101 points) or 'voc07' (11 points, difficult objects ignored)."""
    columns: tuple[str, ...]
    rows: dict[str, PaperRow]
    shown_beside: ImageSet | None = None
    """Other images whose numbers are shown beside these without a difference: val2017's beside test-dev's."""

    @property
    def name(self) -> str:
        """'Table 1': what `ExperimentSpec.paper.table` says."""
        return f"Table {self.number}"

    def metric(self, column: str) -> str:
        """The tracked name of a column's metric: 'val/AP50', for voc07 'val/VOC07_AP50'."""
        return f"val/VOC07_{column}" if self.protocol == "voc07" else f"val/{column}"

    def to_dict(self) -> dict[str, Any]:
        """The plain JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> "PaperTable":
        """The inverse of `to_dict`; KeyError and TypeError for anything else."""
        beside = tree["shown_beside"]
        return cls(
            **{
                **tree,
                "evaluated_on": ImageSet(**tree["evaluated_on"]),
                "trained_on": ImageSet(**tree["trained_on"]),
                "columns": tuple(tree["columns"]),
                "rows": {key: PaperRow(**row) for key, row in tree["rows"].items()},
                "shown_beside": None if beside is None else ImageSet(**beside),
            }
        )
