"""Tables that lead from words of the configuration to modules: complete, and each entry leads to what it says."""

import typing

import pytest
import torch
from torch import nn

from detector.config import BackboneConfig, DetectorConfig, LossConfig
from detector.config.names import BACKBONES, FORMATS, BackboneName, FormatName, load
from detector.data.formats.data_format import DataFormat
from detector.models.backbones import Backbone, build_backbone
from detector.models.build import build_detector
from detector.models.detector import Detector

DETECTORS = typing.get_args(DetectorConfig)


def test_every_word_has_an_entry_and_every_entry_a_word() -> None:
    assert tuple(BACKBONES) == typing.get_args(BackboneName)
    assert ("auto", *FORMATS) == typing.get_args(FormatName)


@pytest.mark.parametrize("word", FORMATS)
def test_a_format_is_named_as_its_word(word: FormatName) -> None:
    found = load(FORMATS[word])
    assert isinstance(found, DataFormat)
    assert found.name == word


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_levels_of_strides_8_16_and_32(name: BackboneName) -> None:
    with torch.device("meta"):
        backbone = build_backbone(BackboneConfig(name=name, weights="none"))
        levels = backbone(torch.zeros(2, 3, 64, 96))
    assert isinstance(backbone, Backbone)
    assert [tuple(level.shape) for level in levels] == [
        (2, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", BACKBONES)
def test_no_part_of_a_backbone_is_random_in_training(name: BackboneName) -> None:
    """Steps are repeated exactly after an interruption, and shared out over workers without another result."""
    with torch.device("meta"):
        parts = {type(part).__name__ for part in build_backbone(BackboneConfig(name=name, weights="none")).modules()}
    assert not any("Dropout" in part or "StochasticDepth" in part for part in parts)


@pytest.mark.parametrize("config", DETECTORS)
def test_a_detector_is_built_by_its_configuration(config: type) -> None:
    names = [member.kind for member in DETECTORS]
    assert len(set(names)) == len(names)
    with torch.device("meta"):
        detector = build_detector(config(), LossConfig(), num_classes=3)
    assert isinstance(detector, Detector)
    assert detector.config == config()
    assert any(isinstance(part, nn.Conv2d) for part in detector.modules())


@pytest.mark.parametrize("config", DETECTORS)
def test_a_detectors_configuration_says_what_the_platform_asks(config: type) -> None:
    found = config()
    assert isinstance(found.iou_head, bool)
    assert isinstance(found.trains_batch_statistics, bool)
    assert found.pretrained is None or isinstance(found.pretrained, BackboneConfig)
