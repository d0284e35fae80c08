"""The plain-torch launcher on a machine where one rank's forward pass gives NaN once: $POISON_RANK, $POISON_STEP."""

import os
import sys
from typing import Any

import torch
from torch import nn

from detector.models.retinanet import RetinaNet
from runyard.training.local import main

STEP = int(os.environ["POISON_STEP"])
steps = 0


def poison(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    global steps
    if not (isinstance(module, RetinaNet) and module.training):
        return None
    steps += 1
    if steps != STEP:
        return None
    return outputs._replace(box_deltas=tuple(deltas * float("nan") for deltas in outputs.box_deltas))


if __name__ == "__main__":
    if os.environ["RANK"] == os.environ["POISON_RANK"]:
        torch.nn.modules.module.register_module_forward_hook(poison)
    sys.exit(main(sys.argv[1:]))
