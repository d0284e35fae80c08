"""Words of the configuration that choose a module: the backbones and the data formats. Imports no torch.

Each table gives a word the object that it stands for, as `module:name`, imported when it is needed. A new backbone or
format is a module and its word here; a detector names its module in its configuration class.
"""

from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any, Literal

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x4d", "resnext101_32x8d"]
BACKBONES: Mapping[BackboneName, str] = {
    "resnet18": "detector.models.resnet:build",
    "resnet34": "detector.models.resnet:build",
    "resnet50": "detector.models.resnet:build",
    "resnet101": "detector.models.resnet:build",
    "resnext101_32x4d": "detector.models.resnet:build",
    "resnext101_32x8d": "detector.models.resnet:build",
}
"""Functions that build a `detector.models.backbones.Backbone` from a BackboneConfig."""

FormatName = Literal["auto", "coco", "voc", "yolo"]
"""'auto' recognises the format by the files that are there."""
FORMATS: Mapping[FormatName, str] = {
    "coco": "detector.data.formats.coco_folders:COCO",
    "voc": "detector.data.formats.voc:VOC",
    "yolo": "detector.data.formats.yolo:YOLO",
}
"""`detector.data.formats.data_format.DataFormat` of each word but 'auto'; errors list them in this order."""


def load(reference: str) -> Any:
    """Object that `module:name` stands for; imports the module."""
    return resolve_name(reference)
