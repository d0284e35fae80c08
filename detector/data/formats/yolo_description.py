"""YOLO's data.yaml as Ultralytics defines it: the folder of a data set, its splits and its class names.

The file is untrusted. It is read by a loader that makes texts, lists and mappings only, whatever its tags say; and
every path in it must lie in the data set's folder.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.data.invalid_entries import short_repr
from detector.errors import DatasetError
from detector.files import read_regular

MAX_BYTES = 2**20
"""Names of 20,000 classes take a third of this."""
FILE_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
SPLIT_KEYS = ("train", "val", "test")
_ALIASES = {"valid": "val"}
"""Spellings of the keys, in the file and by the user."""


@dataclass(frozen=True)
class YoloDescription:
    """Content of a data.yaml."""

    file: Path
    root: Path
    """Folder that the splits are relative to: 'path', else the file's own."""
    class_names: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    """Key ('train', 'val', 'test') -> folders and lists of image files, as written."""
    keypoint_values: int
    """Numbers that follow the box in a line of a pose data set ('kpt_shape'); 0 in others."""

    def entries(self, split: str) -> list[Path]:
        """Absolute paths of the folders and list files of a split.

        Raises DatasetError for a split that is not there, and for a path that does not exist or leads out of `root`.
        """
        written = self.splits.get(_ALIASES.get(split, split))
        if written is None:
            raise DatasetError(
                f"has no split {split!r}",
                file=self.file,
                field="split",
                remedy=f"Its splits: {', '.join(self.splits) or 'none'}",
            )
        return [self._resolve(entry, split) for entry in written]

    def _resolve(self, entry: str, split: str) -> Path:
        # Roboflow writes '../train/images' into a file in the folder of train/, and Ultralytics' reader corrects that.
        for spelling in dict.fromkeys((entry, entry.removeprefix("../"))):
            path = inside(self.root, spelling)
            if path is not None and os.path.exists(path):
                return path
        raise DatasetError(
            f"expected a folder of images or a list file in {self.root}, found {short_repr(entry)}",
            file=self.file,
            field=split,
            remedy="Correct the entry, or set 'path' to the folder of the data set",
        )


def is_description(path: Path) -> bool:
    """True for a path that names a data.yaml rather than a folder, by its suffix."""
    return path.suffix in (".yaml", ".yml")


def find_description(root: Path) -> Path | None:
    """The data.yaml of a folder, or `root` itself where it is one; None without one."""
    if is_description(root):
        return root if os.path.isfile(root) else None
    return next((root / name for name in FILE_NAMES if os.path.isfile(root / name)), None)


def inside(folder: Path, name: str) -> Path | None:
    """The path `name` taken from `folder`; None where it leads out of it, or no file can have it."""
    path = Path(os.path.normpath(folder / name))
    return path if path.is_relative_to(folder) and "\0" not in name else None


def read_description(file: Path) -> YoloDescription:
    """Read and check a data.yaml.

    Raises DatasetError for a file that cannot be read, is larger than `MAX_BYTES`, is not YAML or not a mapping at the
    top, and for class names, counts and splits of the wrong form.
    """
    content = _read_yaml(file)
    return YoloDescription(
        file=file,
        root=_root(file, content.get("path") or "."),
        class_names=_class_names(file, content),
        splits=_splits(file, content),
        keypoint_values=_keypoint_values(file, content.get("kpt_shape")),
    )


def _read_yaml(file: Path) -> dict[Any, Any]:
    try:
        import yaml  # not at the top: the plain launcher runs where only torch is installed
    except ImportError as error:
        raise DatasetError(
            "cannot be read without PyYAML", file=file, remedy="Install it: pip install pyyaml"
        ) from error

    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise DatasetError(f"is larger than {MAX_BYTES // 2**20} MiB", file=file, value=f"{size} bytes")
        # BaseLoader: tags are ignored, and a class named 'no' or '1' stays a text.
        content = yaml.load(read_regular(file).decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise DatasetError(f"is not valid YAML: {problem}{place}", file=file) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"is not UTF-8 text ({error.reason} at byte {error.start})", file=file) from error
    except RecursionError as error:
        raise DatasetError("is nested too deeply for a data.yaml", file=file) from error
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror or error})", file=file) from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"expected a mapping at the top, found a {type(content).__name__}",
            file=file,
            remedy="A data.yaml has 'train', 'val' and 'names'",
        )
    return content


def _root(file: Path, path: Any) -> Path:
    if not isinstance(path, str) or "\0" in path:
        raise DatasetError(f"expected a folder, found {short_repr(path)}", file=file, field="path")
    folder = Path(os.path.abspath(file)).parent
    stated = Path(os.path.normpath(folder / path))
    # A data set that was moved keeps the old place in 'path'; its own folder is then the only one that can be meant.
    return stated if os.path.isdir(stated) else folder


def _class_names(file: Path, content: dict[Any, Any]) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if count is not None and not (isinstance(count, str) and count.isascii() and count.isdigit() and int(count) > 0):
        raise DatasetError(f"expected a number of classes, found {short_repr(count)}", file=file, field="nc")
    if names is None:
        if count is None:
            raise DatasetError("has neither 'names' nor 'nc'", file=file, remedy="List the class names in 'names'")
        names = [f"class_{number}" for number in range(int(count))]
    if isinstance(names, dict):
        expected = [str(number) for number in range(len(names))]
        if set(names) != set(expected):
            raise DatasetError(
                f"expected the class numbers 0 to {len(names) - 1}, found {short_repr(sorted(map(str, names)))}",
                file=file,
                field="names",
            )
        names = [names[number] for number in expected]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise DatasetError(f"expected class names, found {short_repr(names)}", file=file, field="names")
    if count is not None and int(count) != len(names):
        raise DatasetError(f"expected {len(names)}, the number of names, found {count}", file=file, field="nc")
    return tuple(names)


def _splits(file: Path, content: dict[Any, Any]) -> dict[str, tuple[str, ...]]:
    splits: dict[str, tuple[str, ...]] = {}
    for key in (*SPLIT_KEYS, *_ALIASES):
        entries = content.get(key)
        if not entries:  # Ultralytics' templates have 'test:' without a value
            continue
        entries = [entries] if isinstance(entries, str) else entries
        if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
            raise DatasetError(f"expected a path or a list of paths, found {short_repr(entries)}", file=file, field=key)
        splits.setdefault(_ALIASES.get(key, key), tuple(entries))
    return splits


def _keypoint_values(file: Path, shape: Any) -> int:
    if not shape:
        return 0
    numbers = [int(value) for value in shape if isinstance(value, str) and value.isascii() and value.isdigit()]
    if not isinstance(shape, list) or len(numbers) != 2 or len(shape) != 2 or max(numbers) > 1000:
        raise DatasetError(f"expected [points, 2 or 3], found {short_repr(shape)}", file=file, field="kpt_shape")
    return numbers[0] * numbers[1]
