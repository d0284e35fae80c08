"""The detectors that a configuration can name."""

from detector.config import DetectorConfig, LossConfig, names
from detector.models.detector import Detector


def build_detector(config: DetectorConfig, loss: LossConfig, num_classes: int) -> Detector:
    """A detector with random weights on the CPU; torch's random stream decides them.

    Args:
        loss: RetinaNet's anchor assignment and loss weights; other detectors have their own.
        num_classes: at least 1, else ConfigError.
    """
    detector: Detector = names.load(config.builder)(config, loss, num_classes)
    return detector
