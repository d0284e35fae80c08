"""Class list of a data set in label order: stated by the user, or found in the training split.

Training and validation must agree on it, while their files may number the same classes differently, list classes
without a box, or (Roboflow's exports) a super-category that is not a class.
"""

import difflib
import logging
from collections import Counter
from collections.abc import Sequence

from detector.data.invalid_entries import first_ten
from detector.data.parsed_split import ParsedSplit, to_dataset
from detector.data.samples import Dataset
from detector.errors import DatasetError

logger = logging.getLogger(__name__)


def single_dataset(split: ParsedSplit, classes: Sequence[str] | None) -> Dataset:
    """The split as a data set of its own: with the stated classes, all of which it must have, or those it has."""
    category_index_of = _category_index_of(split)
    if classes is None:
        classes = _own_classes(split)
    else:
        _check_stated(split, classes, category_index_of)
    return to_dataset(split, classes, category_index_of)


def training_and_validation(
    train: ParsedSplit, val: ParsedSplit, classes: Sequence[str] | None
) -> tuple[Dataset, Dataset]:
    """Both splits with one class list: the stated one, or that of the training split.

    Each keeps its own file's category ids. Raises DatasetError where a stated class is unknown to a file, and without
    a stated list where the validation file has boxes of a class that the training classes lack.
    """
    train_dataset = single_dataset(train, classes)
    if classes is not None and val.lists_unused_classes:
        _check_stated(val, classes, _category_index_of(val))
    stated = classes is not None
    return train_dataset, later_split(val, train_dataset.class_names, stated, trained_on=str(train.source))


def later_split(
    split: ParsedSplit, classes: Sequence[str], drop_other_classes: bool, *, trained_on: str = "the training data"
) -> Dataset:
    """A split to evaluate on, with the class list of the training data; its category ids are its own file's.

    Args:
        drop_other_classes: leave out boxes of classes that are not in the list; else they are a DatasetError.
        trained_on: what the class list comes from, for that error.
    """
    category_index_of = _category_index_of(split)
    if not drop_other_classes:
        _check_validation_classes(split, classes, trained_on)
    absent = [name for name in classes if name not in category_index_of]
    if absent:
        logger.warning("%s has nothing of these classes: %s", split.name, first_ten(absent))
    return to_dataset(split, classes, category_index_of)


def _own_classes(split: ParsedSplit) -> tuple[str, ...]:
    """The names in label order: all categories but unused super-categories, which are logged.

    A category without boxes is otherwise kept: a slice of COCO still has COCO's 80 classes.
    """
    unused = _unused_supercategories(split)
    if unused:
        names = ", ".join(repr(split.categories[position].name) for position in sorted(unused))
        logger.info(
            "%s: not a class, as it has no boxes and other classes call it their supercategory: %s", split.name, names
        )
    kept = tuple(category.name for position, category in enumerate(split.categories) if position not in unused)
    if not kept:
        raise DatasetError("has no classes", file=split.source, remedy="State the class list, or name another split")
    return kept


def _unused_supercategories(split: ParsedSplit) -> set[int]:
    """Positions of the categories that have no boxes and are the supercategory of another one."""
    counts = split.boxes_per_category()
    children = Counter(category.supercategory for category in split.categories)
    return {
        position
        for position, category in enumerate(split.categories)
        if counts[position] == 0 and children[category.name] > (category.supercategory == category.name)
    }


def _category_index_of(split: ParsedSplit) -> dict[str, int]:
    """Name -> position in `split.categories`; DatasetError where two real classes share a name.

    A super-category may bear the name of its one class (Roboflow: the project 'balloon' with its class 'balloon').
    """
    unused = _unused_supercategories(split)
    index_of: dict[str, int] = {}
    duplicates: list[str] = []
    for position, category in enumerate(split.categories):
        earlier = index_of.get(category.name)
        if earlier is None or earlier in unused:
            index_of[category.name] = position
        elif position not in unused:
            duplicates.append(category.name)
    if duplicates:
        raise DatasetError(
            f"{len(duplicates)} class names are used by several categories: {first_ten(duplicates)}",
            file=split.source,
            field="categories",
            remedy="Give each category a name of its own",
        )
    return index_of


def _check_stated(split: ParsedSplit, classes: Sequence[str], category_index_of: dict[str, int]) -> None:
    unknown = [name for name in classes if name not in category_index_of]
    if unknown:
        known = sorted(category_index_of)
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"Did you mean {close[0]!r}? " if close else ""
        raise DatasetError(
            f"does not have the stated classes {', '.join(map(repr, unknown))}",
            file=split.source,
            field="classes",
            remedy=f"{hint}It has: {', '.join(map(repr, known))}",
        )


def _check_validation_classes(val: ParsedSplit, classes: Sequence[str], trained_on: str) -> None:
    counts = val.boxes_per_category()
    unknown = [
        (category.name, int(count))
        for category, count in zip(val.categories, counts, strict=True)
        if count and category.name not in classes
    ]
    if unknown:
        listed = first_ten(unknown, lambda entry: f"{entry[0]!r} ({entry[1]} boxes)")
        raise DatasetError(
            f"has boxes of classes that {trained_on} has none of: {listed}",
            file=val.source,
            field="categories",
            remedy=f"Make the names equal, or state the class list. Training has: {', '.join(map(repr, classes))}",
        )
