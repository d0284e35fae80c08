"""torchvision's detector behind the port computes what its own forward pass computes, on the same weights and batch."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn

from detector.config import LossConfig, ScoringConfig, TorchvisionRetinaNetConfig
from detector.data.batching import Batch, collate
from detector.data.transforms import Sample
from detector.errors import CheckpointError, ConfigError
from detector.models.build import build_detector
from detector.models.detector import ScoringRow
from detector.models.torchvision_retinanet import TorchvisionRetinaNet
from detector.predictor import Predictor

CLASSES = 4
SIZES = ((64, 96), (64, 90))
"""Height, width: what its own resizing to a short side of 64 keeps."""
CLASS_ROW = ScoringRow(ScoringConfig(confidence="class", score_threshold=0.02, max_detections=300))


def make_detector(weights: Any = "imagenet") -> TorchvisionRetinaNet:
    """With class scores that differ between anchors, so that post-processing has something to choose."""
    torch.manual_seed(0)
    detector = build_detector(TorchvisionRetinaNetConfig(weights=weights), LossConfig(), CLASSES)
    assert isinstance(detector, TorchvisionRetinaNet)
    head = detector.network.head
    torch.nn.init.normal_(head.classification_head.cls_logits.weight, std=0.05)
    torch.nn.init.normal_(head.regression_head.bbox_reg.weight, std=0.02)
    return detector


def make_batch(fillers: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    samples = [
        Sample(
            torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator),
            torch.tensor([[8.0, 8, 50, 40], [20, 10, 60, 50]])[: 2 - i],
            torch.tensor([1, 3])[: 2 - i],
            i,
        )
        for i, size in enumerate(SIZES)
    ]
    return collate(samples, 32, fillers)


def as_its_users_pass_them(batch: Batch) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    images = [batch.images[i, :, :h, :w].float() / 255 for i, (h, w) in enumerate(batch.sizes.tolist())]
    valid = batch.valid
    targets = [{"boxes": batch.boxes[i][valid[i]], "labels": batch.labels[i][valid[i]]} for i in range(len(images))]
    return images, targets


def without_resizing(detector: TorchvisionRetinaNet) -> Any:
    """Its own network, whose resizing leaves these images as they are."""
    transform = detector.network.transform
    transform.min_size, transform.max_size = (64,), 96
    return detector.network


def test_the_network_is_its_own_builders() -> None:
    torch.manual_seed(3)
    ours = build_detector(TorchvisionRetinaNetConfig(weights="none"), LossConfig(), CLASSES)
    torch.manual_seed(3)
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)
    expected = theirs.state_dict()
    found = {name.removeprefix("network."): tensor for name, tensor in ours.state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    assert all(parameter.requires_grad for parameter in ours.parameters())


def test_imagenet_weights_freeze_the_lower_layers_and_batch_norm(tmp_path: Any) -> None:
    detector = make_detector()
    body = detector.network.backbone.body
    trainable = {n.split(".")[0] for n, p in body.named_parameters() if p.requires_grad}
    assert trainable == {"layer2", "layer3", "layer4"}
    assert not any("bn" in name for name, _ in body.named_parameters())
    weights = {name: torch.rand_like(tensor) for name, tensor in body.state_dict().items()}
    torch.save({**weights, "fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}, tmp_path / "w.pth")
    detector.load_initial_weights(tmp_path / "w.pth")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in body.state_dict().items())
    with pytest.raises(CheckpointError, match=r"model\.weights"):
        detector.load_initial_weights(None)


@pytest.mark.parametrize("channels_last", [False, True])
def test_losses_are_those_of_its_forward_pass(channels_last: bool) -> None:
    detector = make_detector().train()
    if channels_last:
        detector.to(memory_format=torch.channels_last)
    batch = make_batch()
    sums = detector.losses(batch)
    expected = without_resizing(detector)(*as_its_users_pass_them(batch))
    assert list(sums.weighted) == ["cls", "box"]
    assert sums.normaliser.item() == 2
    torch.testing.assert_close(sums.weighted["cls"] / 2, expected["classification"], rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.weighted["box"] / 2, expected["bbox_regression"], rtol=1e-6, atol=0)
    ours = torch.autograd.grad(sum(sums.weighted.values()) / 2, [p for p in detector.parameters() if p.requires_grad])
    theirs = torch.autograd.grad(sum(expected.values()), [p for p in detector.parameters() if p.requires_grad])
    for first, second in zip(ours, theirs, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_a_filler_counts_for_nothing() -> None:
    detector = make_detector().train()
    both, first = detector.losses(make_batch(fillers=1)), detector.losses(collate_first(make_batch()))
    assert both.normaliser.item() == first.normaliser.item() == 1
    for name, loss in both.weighted.items():
        torch.testing.assert_close(loss, first.weighted[name], rtol=1e-5, atol=0)
    nothing = detector.losses(make_batch(fillers=2))
    assert nothing.normaliser.item() == 0
    assert [loss.item() for loss in nothing.weighted.values()] == [0.0, 0.0]
    sum(nothing.weighted.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in detector.parameters() if p.requires_grad)


def collate_first(batch: Batch) -> Batch:
    return batch._map(lambda tensor: tensor[:1])


def test_detections_are_those_of_its_forward_pass() -> None:
    detector = make_detector()
    batch = make_batch()
    rows = [
        CLASS_ROW,
        ScoringRow(ScoringConfig(confidence="class", score_threshold=0.03, nms_iou=0.3, max_detections=7, top_k=50)),
    ]
    found = Predictor(detector, torch.device("cpu"), channels_last=False)(batch, rows)
    images, _ = as_its_users_pass_them(batch)
    network = without_resizing(detector.eval())
    for row, of_row in zip(rows, found, strict=True):
        network.score_thresh, network.nms_thresh = row.scoring.score_threshold, row.scoring.nms_iou
        network.topk_candidates, network.detections_per_img = row.scoring.top_k, row.scoring.max_detections
        with torch.inference_mode():
            expected = network(images)
        for ours, theirs in zip(of_row, expected, strict=True):
            assert len(ours.scores) > 3
            assert torch.equal(ours.boxes, theirs["boxes"])
            assert torch.equal(ours.scores, theirs["scores"])
            assert torch.equal(ours.class_scores, theirs["scores"])
            assert torch.equal(ours.labels, theirs["labels"])
            assert ours.ious.isnan().all()
    assert len(found[1][0].scores) <= 7


@pytest.mark.parametrize("confidence", ["alpha", "none"])
def test_without_an_iou_head_every_confidence_is_the_class_score(confidence: Literal["alpha", "none"]) -> None:
    row = replace(CLASS_ROW, scoring=replace(CLASS_ROW.scoring, confidence=confidence))
    by_class, same = Predictor(make_detector(), torch.device("cpu"))(make_batch(), [CLASS_ROW, row])
    for expected, found in zip(by_class, same, strict=True):
        assert len(found.scores) > 3
        assert torch.equal(found.scores, expected.class_scores)
        assert torch.equal(found.boxes, expected.boxes)


def test_an_oracle_row_is_refused() -> None:
    row = ScoringRow(ScoringConfig(confidence="class"), oracle=True)
    with pytest.raises(ConfigError, match="no oracle row"):
        Predictor(make_detector(), torch.device("cpu"))(make_batch(), [CLASS_ROW, row])


def test_no_classes() -> None:
    with pytest.raises(ConfigError, match="num_classes"):
        TorchvisionRetinaNet(TorchvisionRetinaNetConfig(), 0)
