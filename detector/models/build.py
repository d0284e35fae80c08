"""The detectors that a configuration can name."""

from detector.config import DetectorConfig, LossConfig, RetinaNetConfig
from detector.models.detector import Detector
from detector.models.retinanet import RetinaNet
from detector.models.torchvision_retinanet import TorchvisionRetinaNet


def build_detector(config: DetectorConfig, loss: LossConfig, num_classes: int) -> Detector:
    """A detector with random weights on the CPU; torch's random stream decides them.

    Args:
        loss: RetinaNet's anchor assignment and loss weights; torchvision's detector has its own.
        num_classes: at least 1, else ConfigError.
    """
    if isinstance(config, RetinaNetConfig):
        return RetinaNet(config, num_classes, loss)
    return TorchvisionRetinaNet(config, num_classes)
