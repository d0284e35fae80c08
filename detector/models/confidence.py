"""The detection confidence S = p^alpha IoU^(1 - alpha) (the paper's Eq. 5) and what it is compared with.

A anchors, C classes. Probabilities and confidences lie in [0, 1] and are float32; powers are taken in float64 and
rounded once, because PyTorch's float32 power depends in its last bit on where in a tensor a value stands: equal pairs
would rank by chance, and candidates that are stored and scored again would not score what they scored at first.
"""

import torch
from torch import Tensor

from detector.config import ScoringConfig


def combine_scores(class_probability: Tensor, iou: Tensor | None, scoring: ScoringConfig) -> Tensor:
    """Confidence (..., C) float32 from class probabilities p (..., C) and predicted IoU q (...,).

    'alpha': p^alpha q^(1 - alpha), exactly p at alpha = 1 and exactly q at alpha = 0, since 0^0 = 1; 'none': p q;
    'class', or no IoU at all: p.
    """
    probability = class_probability.float()
    if iou is None or scoring.confidence == "class":
        return probability
    quality = iou.float().unsqueeze(-1)
    if scoring.confidence == "none":
        return probability * quality
    weighted = torch.pow(probability.double(), scoring.alpha) * torch.pow(quality.double(), 1.0 - scoring.alpha)
    return weighted.float()
