"""The best alpha, chosen on some images and reported on others.

Choosing alpha on the images that are reported, as the paper's tables invite to, overstates it. It is chosen on one half
of the images and reported on the other, or on the validation split and reported on a test split where there is one.
"""

from collections.abc import Mapping, Sequence

from runyard.reports.render import cell_text
from runyard.reports.resampling import best_alpha_on_halves
from runyard.reports.rows import Resampled, TableRow, baseline_of, common_seeds, gains_of
from runyard.spec.identity import digest, setting_of

_FEWEST_ALPHAS = 3
_SPLIT = "data.val_split"


def alpha_groups(rows: Sequence[TableRow], fewest: int = _FEWEST_ALPHAS) -> list[dict[float, TableRow]]:
    """Rows that differ in alpha only, by alpha; groups of fewer values are left out."""
    groups: dict[str, dict[float, TableRow]] = {}
    for row in rows:
        if row.alpha is not None:
            groups.setdefault(row.without_alpha, {})[row.alpha] = row
    return [group for group in groups.values() if len(group) >= fewest]


def choice_sentences(rows: Sequence[TableRow], resampled: Resampled) -> list[str]:
    """One sentence for each direction of the halves, and one for each pair of a validation and a test split."""
    groups = alpha_groups(rows)
    names = [f" of {next(iter(group.values())).row}" if len(groups) > 1 else "" for group in groups]
    sentences = []
    for name, group in zip(names, groups, strict=True):
        sentences += _on_halves(group, name, resampled)
    for position, group in enumerate(groups):
        for other in groups[position + 1 :]:
            if _without_split(group) == _without_split(other):
                sentences.append(_on_test(group, other, rows, resampled))
    return sentences


def _on_halves(group: Mapping[float, TableRow], name: str, resampled: Resampled) -> list[str]:
    seeds = common_seeds(list(group.values()))
    results = {alpha: [r for r in row.results if r.spec.seed in seeds] for alpha, row in group.items()}
    whole = {
        alpha: [resampled[result.id] for result in of_alpha]
        for alpha, of_alpha in results.items()
        if of_alpha and all(result.id in resampled for result in of_alpha)
    }
    return [
        f"Best alpha{name} on one half of the images ({choice.images[0]:,}): {choice.alpha:g}, with COCO AP "
        f"{100 * choice.chosen_ap:.1f} there and {100 * choice.reported_ap:.1f} on the other half, where the best "
        f"of any alpha is {100 * choice.best_ap:.1f}."
        for choice in best_alpha_on_halves(whole)
    ]


def _on_test(
    validation: Mapping[float, TableRow],
    test: Mapping[float, TableRow],
    rows: Sequence[TableRow],
    resampled: Resampled,
) -> str:
    """The validation rows are those that come first in the table."""
    alphas = [alpha for alpha in validation if alpha in test]
    best = max(alphas, key=lambda alpha: _ap(validation[alpha]))
    reported = test[best]
    baseline = baseline_of(reported, rows)
    gain = gains_of(reported, baseline, ("AP",), resampled).get("AP") if baseline else None
    difference = f" ({cell_text(gain)} to the baseline)" if gain is not None else ""
    return (
        f"Best alpha on {_split_of(validation)}: {best:g}, with COCO AP {100 * _ap(validation[best]):.1f} there and "
        f"{100 * _ap(reported):.1f} on {_split_of(test)}{difference}, where the best of any alpha is "
        f"{100 * max(_ap(test[alpha]) for alpha in alphas):.1f}."
    )


def _split_of(group: Mapping[float, TableRow]) -> str:
    return next(iter(group.values())).spec.data.val_split


def _ap(row: TableRow) -> float:
    return row.spread("val/AP").mean or 0.0


def _without_split(group: Mapping[float, TableRow]) -> str:
    row = next(iter(group.values()))
    setting = {n: v for n, v in setting_of(row.spec).items() if n not in (_SPLIT, "scoring.alpha")}
    return digest({"setting": setting, "training images": row.data[0]})
