"""Interface of a data format: functions that find, list and parse the splits of a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detector.data.parsed_split import ParsedSplit


@dataclass(frozen=True)
class DataFormat:
    """One format, as listed in `detector.data.formats.FORMATS`. Every function raises DatasetError for bad input."""

    name: str
    """Value of `source.format`."""
    find: Callable[[Path, str], Path | None]
    """(root, split) -> file or folder that shows the split to be in this format; None without one."""
    splits: Callable[[Path], list[str]]
    """root -> names of the splits it holds in this format, sorted; empty for other folders."""
    parse: Callable[[Path, str, Path | None], ParsedSplit]
    """(root, split, images folder or None) -> content of the split."""
    looked_for: Callable[[str], str]
    """split -> the files that `find` looks for, for error messages."""
    chooses_images: bool = False
    """True if the images may lie in a folder that the user names."""
