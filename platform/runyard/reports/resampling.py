"""AP of an evaluation on other draws of its images: what intervals and the choice of alpha on one half are made of.

N images, B resamples, T IoU thresholds. Detections are matched once; every draw only weights the images. The result is
kept beside the evaluation, so that any two rows of any table can be compared at once.
"""

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from detector.data.samples import Dataset
from detector.evaluation.bootstrap import image_draws, metric_of, resample
from detector.files import write_bytes
from runyard.scoring.results import TrialResult

RESAMPLES = 1000
SEED = 0
_VERSION = 1


@dataclass(frozen=True, eq=False)
class ResampledAP:
    """COCO AP of one evaluation; all of fractions, NaN without ground truth."""

    draws: NDArray[np.float64]
    """(1 + B, T) of all images, then of each resample of them."""
    halves: NDArray[np.float64]
    """(2, T) of the images of either half."""
    half_sizes: tuple[int, int]
    """Images in each half."""

    def half(self, side: int, metric: str = "AP") -> float:
        """Metric of one half."""
        return float(metric_of(self.halves[side : side + 1], metric)[0])


def resampled_ap(result: TrialResult) -> ResampledAP:
    """Reads it from the evaluation's folder, where an earlier call has left it, or computes it and leaves it there."""
    path, identity = result.evaluation.resampled, _identity(result)
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["of"]) == identity and len(stored["draws"]) == 1 + RESAMPLES:
                first, second = stored["sizes"].tolist()
                return ResampledAP(stored["draws"], stored["halves"], (first, second))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # missing or damaged
    dataset, table = result.load_detections()
    half = image_halves(dataset)
    weights = np.concatenate([image_draws(len(dataset), RESAMPLES, SEED), [half == 0, half == 1]])
    ap = resample(dataset, table, weights)
    sizes = (int((half == 0).sum()), int((half == 1).sum()))
    content = io.BytesIO()
    np.savez(content, of=identity, draws=ap[:-2], halves=ap[-2:], sizes=sizes)
    write_bytes(path, content.getvalue())
    return ResampledAP(ap[:-2], ap[-2:], sizes)


@dataclass(frozen=True)
class HalvesChoice:
    """The best alpha on one half of the images, and what it is worth on the other."""

    images: tuple[int, int]
    """Of the half chosen on, and of the other."""
    alpha: float
    chosen_ap: float
    """Of `alpha` on the half that it was chosen on: optimistic."""
    reported_ap: float
    """Of `alpha` on the other half."""
    best_ap: float
    """The best that any alpha reaches on the other half."""


def best_alpha_on_halves(by_alpha: Mapping[float, Sequence[ResampledAP]]) -> list[HalvesChoice]:
    """COCO AP, mean over seeds, with alpha chosen on one half of the images and reported on the other, in both
    directions.

    Choosing alpha on the images that are reported, as the paper's tables invite to, overstates it. Of equal alphas the
    first is chosen. A direction is left out where one of the halves has no ground truth.
    """
    alphas = list(by_alpha)
    choices = []
    for side in (0, 1):
        here, there = ([float(np.mean([r.half(s) for r in by_alpha[a]])) for a in alphas] for s in (side, 1 - side))
        if not alphas or any(map(math.isnan, here + there)):
            continue
        best = int(np.argmax(here))
        sizes = by_alpha[alphas[0]][0].half_sizes
        choices.append(
            HalvesChoice((sizes[side], sizes[1 - side]), alphas[best], here[best], there[best], max(there))
        )  # fmt: skip
    return choices


def image_halves(dataset: Dataset) -> NDArray[np.int64]:
    """(N,) 0 or 1: which half an image is in, by its id alone, not by its place in the file."""
    return np.array([_digest(f"{SEED} {image_id!r}") & 1 for image_id in dataset.image_ids], dtype=np.int64)


def _identity(result: TrialResult) -> str:
    """Changes where the evaluation was made anew, or would be drawn from other images."""
    parts = (str(_VERSION).encode(), result.evaluation.metrics.read_bytes(), result.val_data.read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _digest(text: str) -> int:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[0]
