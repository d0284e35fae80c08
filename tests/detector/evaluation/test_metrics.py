"""The metrics of an evaluation by their tracked names."""

from detector.evaluation.metrics import score_detections


def test_vocs_metrics_are_those_of_its_protocol_alone(make_random):
    dataset, table = make_random(0)
    coco, voc = (score_detections(dataset, table, protocol) for protocol in ("coco", "voc"))
    added = set(voc) - set(coco)
    assert {"val/VOC07_AP", "val/VOC12_AP", "val/VOC07_AP50", "val/VOC12_AP75"} <= added
    assert all(name.startswith(("val/VOC07_", "val/VOC12_")) for name in added)
    assert not any("VOC" in name for name in coco)
