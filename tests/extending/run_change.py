"""One change of docs/extending.md at work: train a tiny run with the plain launcher, and write down the outcome.

A program: its process has the copy of the project that has the change first on the path.
"""

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

STEPS = 4
SCRATCH = {"name": "resnet18", "weights": "none"}
TINY: dict[str, Any] = {
    "recipe": "tiny",
    "model": {"backbone": SCRATCH, "fpn_channels": 8, "tower_depth": 0, "tower_norm": "group"},
    "optim": {
        "optimizer": "adamw",
        "learning_rate": 0.005,
        "reference_batch_size": 4,
        "batch_size": 4,
        "epochs": 1,
        "milestones": [],
        "warmup_steps": 0,
    },
    "data": {"short_side_px": 64, "long_side_px": 64, "min_image_side_px": 8, "train_limit": 12},
    "scoring": {"score_threshold": 0.001},
    "runtime": {"name": "run", "gpus_per_worker": 0, "log_every_steps": 1},
}
CHANGED: dict[str, dict[str, Any]] = {
    "iou_loss": {"loss": {"iou_loss": "qfl", "qfl_gamma": 1.5}},
    "box_loss": {"loss": {"box_loss": "giou"}},
    "backbone_like_resnet": {"model": {"backbone": {"name": "resnext50_32x4d"}}},
    "another_backbone": {"model": {"backbone": {"name": "convnext_tiny"}}},
    "data_format": {"source": {"format": "csv"}},
    "detector": {"model": {"kind": "points", "backbone": SCRATCH, "channels": 8}},
    "metric": {},
}
"""Fields that choose the new part."""
HELP = {"detector": "points"}
"""Scripts whose help shows the change; `ablate_iou_loss` for the others."""


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The base with the leaves of the change; a mapping with another 'kind' takes the place of the base's."""
    result = dict(base)
    for key, value in change.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict) and "kind" not in value
        result[key] = merged(base[key], value) if nested else value
    return result


def help_page(script: str, arguments: tuple[str, ...] = ()) -> str:
    """Help of an entry point."""
    from runyard.commandline import command
    from runyard.commandline.options import Options

    module = importlib.import_module(script)
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        command.parse(module.TABLE, module.__doc__, Options, [*arguments, "--help"])
    return page.getvalue()


def try_losses(spec: Any) -> tuple[list[str], list[float]]:
    """Promises that the spec's detector breaks on a batch of its training images, and its loss in steps on it."""
    import promises  # lies in the folder of this program
    import torch

    from detector.data.batching import collate
    from detector.data.formats import open_dataset
    from detector.data.transforms import load_sample
    from detector.engine import TrainingEngine
    from detector.models.build import build_detector
    from detector.optim import build_optimizer

    torch.manual_seed(0)
    dataset = open_dataset(spec.source.data, "train", format=spec.source.format)
    batch = collate([load_sample(dataset, index, spec.data, flip=False) for index in range(4)], spec.data.size_divisor)
    detector = build_detector(spec.model, spec.loss, len(dataset.categories))
    broken = promises.broken(detector, batch)
    engine = TrainingEngine(detector, build_optimizer(detector, spec.optim), spec.optim)
    rate = spec.optim.learning_rate
    return broken, [engine.step([batch], rate).read()["loss"] for _ in range(STEPS)]


def start(change: str, tree: Path, data: Path, folder: Path) -> None:
    """Try the change in `tree`, then exit with the status of its training.

    Options, hashes, losses and broken promises go to FOLDER/found.json, the run to FOLDER/runs/run.
    """
    sys.path[:0] = [str(tree / "platform"), str(tree), str(tree / "experiments")]
    from runyard.spec import from_dict

    base = merged(TINY, {"source": {"data": str(data)}, "runtime": {"storage": str(folder / "runs")}})
    before, spec = (from_dict(fields) for fields in (base, merged(base, CHANGED[change])))
    broken, losses = try_losses(spec)
    found = {
        "help": help_page(HELP.get(change, "ablate_iou_loss"), ("--rows", "points") if change == "detector" else ()),
        "hashes": [[s.training_hash, s.scoring_hash] for s in (before, spec)],
        "default_hash": from_dict({}).training_hash,
        "broken_promises": broken,
        "losses": losses,
        "from_the_copy": sys.modules["detector"].__path__[0] == str(tree / "detector"),
    }
    (folder / "found.json").write_text(json.dumps(found))
    (folder / "spec.json").write_text(json.dumps(merged(base, CHANGED[change])))
    from runyard.training import local

    sys.exit(local.main([str(folder / "spec.json")]))


if __name__ == "__main__":
    start(sys.argv[1], *map(Path, sys.argv[2:]))
