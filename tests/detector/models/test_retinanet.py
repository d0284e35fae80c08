"""The assembled detector: outputs agree with the anchors, seeds, freezing, training."""

import copy
import dataclasses

import pytest
import torch

from detector.config import BackboneConfig, LossConfig, RetinaNetConfig
from detector.errors import ConfigError
from detector.models.losses import detection_losses
from detector.models.retinanet import RetinaNet

SCRATCH = RetinaNetConfig(
    backbone=BackboneConfig(name="resnet18", weights="none"), fpn_channels=32, tower_depth=1, tower_norm="group"
)
FINE_TUNED = dataclasses.replace(SCRATCH, backbone=BackboneConfig(name="resnet18"), tower_norm="none")


@pytest.mark.parametrize(("height", "width"), [(64, 96), (128, 128), (32, 32)])
def test_outputs_and_anchors_agree(height: int, width: int) -> None:
    model = RetinaNet(SCRATCH, num_classes=3).eval()
    with torch.no_grad():
        outputs = model(torch.rand(2, 3, height, width))
    anchors = model.anchors(outputs.feature_shapes, "cpu")
    assert outputs.iou_logits is not None
    for level, (cls, box, iou) in enumerate(
        zip(outputs.cls_logits, outputs.box_deltas, outputs.iou_logits, strict=True)
    ):
        assert cls.shape == (2, len(anchors[level]), 3)
        assert box.shape == (2, len(anchors[level]), 4)
        assert iou.shape == (2, len(anchors[level]))


def test_one_seed_gives_baseline_and_iou_aware_the_same_weights() -> None:
    states, next_draws = [], []
    for iou_head in (True, False):
        torch.manual_seed(3)
        states.append(RetinaNet(dataclasses.replace(SCRATCH, iou_head=iou_head), 4).state_dict())
        next_draws.append(torch.rand(5))
    aware, baseline = states
    assert set(aware) - set(baseline) == {"heads.iou_logits.weight", "heads.iou_logits.bias"}
    assert all(torch.equal(aware[key], value) for key, value in baseline.items())
    assert torch.equal(*next_draws)


def test_same_seed_same_weights_other_seed_others() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in RetinaNet(SCRATCH, 4).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_initial_class_scores_are_the_prior() -> None:
    torch.manual_seed(0)
    model = RetinaNet(RetinaNetConfig(backbone=BackboneConfig(name="resnet18", weights="none")), 3).eval()
    with torch.no_grad():
        scores = torch.cat(model(torch.rand(1, 3, 64, 64)).cls_logits, dim=1).sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.01), rtol=0.2, atol=0)


def test_frozen_stages_survive_train() -> None:
    model = RetinaNet(FINE_TUNED, 3).train()
    assert model.training
    assert not model.backbone.layer1.training
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        f"backbone.{name}"
        for name, _ in model.backbone.named_parameters()
        if name.split(".")[0] in ("conv1", "bn1", "layer1")
    }


def test_the_copy_of_a_model_is_independent_and_keeps_freezing() -> None:
    model = RetinaNet(FINE_TUNED, 3)
    clone = copy.deepcopy(model).train()
    assert clone.backbone._frozen[1] is clone.backbone.layer1
    assert not clone.backbone.layer1.training
    assert model.backbone.layer1[0].conv1.weight is not clone.backbone.layer1[0].conv1.weight


def test_channels_last_gives_the_same_outputs() -> None:
    torch.manual_seed(0)
    model = RetinaNet(SCRATCH, 3).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        found = model(images.contiguous(memory_format=torch.channels_last))
    for ours, theirs in zip(
        found.cls_logits + found.box_deltas, expected.cls_logits + expected.box_deltas, strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert ours.is_contiguous()


@pytest.mark.parametrize("config", [SCRATCH, FINE_TUNED])
def test_a_few_steps_lower_the_loss_and_every_trainable_parameter_gets_a_gradient(config: RetinaNetConfig) -> None:
    torch.manual_seed(0)
    model = RetinaNet(config, 3).train()
    images = torch.rand(2, 3, 64, 64)
    boxes = torch.tensor([[[8.0, 8.0, 40.0, 40.0]], [[20.0, 10.0, 60.0, 30.0]]])
    labels, valid = torch.tensor([[0], [2]]), torch.ones(2, 1, dtype=torch.bool)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    history = []
    for _ in range(4):
        outputs = model(images)
        anchors = model.anchors(outputs.feature_shapes, "cpu")
        inside = model.anchors.inside_mask(anchors, torch.tensor([[64, 64], [64, 60]]))
        sums = detection_losses(outputs, anchors, boxes, labels, valid, inside, torch.ones(2), LossConfig())
        loss = (sums.cls + sums.box + sums.iou) / sums.normaliser
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0]
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_no_classes() -> None:
    with pytest.raises(ConfigError, match="num_classes"):
        RetinaNet(SCRATCH, 0)
