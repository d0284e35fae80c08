"""One rank of what test_engine.py measures with two gloo processes: python engine_process.py SHAPES RESULT.

Started with torchrun's environment variables; leaves {case: {name: tensor or numbers}} in RESULT.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from detector.config import BackboneConfig, DataConfig, LossConfig, OptimConfig, RetinaNetConfig
from detector.data.batching import Batch
from detector.data.formats import open_dataset
from detector.data.loaders import make_train_loader
from detector.engine import TrainingEngine
from detector.models.retinanet import RetinaNet
from detector.optim import build_optimizer

MODEL = RetinaNetConfig(
    backbone=BackboneConfig(name="resnet18", weights="none"), fpn_channels=8, tower_depth=1, tower_norm="group"
)
DATA = DataConfig(short_side_px=64, long_side_px=64, min_image_side_px=8, train_limit=7)
OPTIM = OptimConfig(batch_size=4)


def new_engine(loss: LossConfig | None = None) -> TrainingEngine:
    torch.manual_seed(0)
    loss = loss or LossConfig()
    detector = RetinaNet(MODEL, 6, loss).train()
    return TrainingEngine(detector, build_optimizer(detector, OPTIM), OPTIM, normaliser=loss.normaliser)


def steps(shapes: Path, rank: int, world_size: int, accumulation: int) -> list[list[Batch]]:
    """The micro-batches of the two steps of an epoch: four images, and the three that are left."""
    loader = make_train_loader(
        open_dataset(shapes, "train"),
        DATA,
        seed=0,
        start_epoch=0,
        start_step=0,
        epochs=1,
        batch_size=OPTIM.batch_size,
        rank=rank,
        world_size=world_size,
        accumulation=accumulation,
    )
    batches = list(loader)
    return [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]


def momenta(engine: TrainingEngine) -> dict[str, torch.Tensor]:
    """After the first step, the gradient."""
    states = engine.optimizer.state
    return {name: states[p]["momentum_buffer"].clone() for name, p in engine.detector.named_parameters() if p in states}


def trained(shapes: Path, rank: int = 0, world_size: int = 1, accumulation: int = 1) -> dict[str, Any]:
    """Gradient of the first step, numbers of both, weights after them."""
    engine = new_engine()
    first, second = steps(shapes, rank, world_size, accumulation)
    numbers = [engine.step(first, 0.01).read()]
    gradient = momenta(engine)
    numbers.append(engine.step(second, 0.01).read())
    return {"gradient": gradient, "numbers": numbers, "weights": engine.detector.state_dict()}


def poisoned(shapes: Path, rank: int, world_size: int) -> dict[str, Any]:
    """A first good step; then rank 1 alone has a NaN in a bias, which it mends before the third step."""
    engine = new_engine()
    first, second = steps(shapes, rank, world_size, 1)
    numbers = [engine.step(first, 0.01).read()]
    before = {name: tensor.clone() for name, tensor in engine.detector.state_dict().items()}
    momenta_before = momenta(engine)
    bias = next(p for name, p in engine.detector.named_parameters() if name.endswith("bias") and p.requires_grad)
    kept = bias.detach().clone()
    if rank == 1:
        bias.data.fill_(float("nan"))
    numbers.append(engine.step(second, 0.01).read())
    bias.data.copy_(kept)
    numbers.append(engine.step(second, 0.01).read())
    after, momenta_after = engine.detector.state_dict(), momenta(engine)
    return {
        "numbers": numbers,
        "unchanged": all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        and all(torch.equal(tensor, momenta_after[name]) for name, tensor in momenta_before.items()),
    }


def stopped(shapes: Path, rank: int, world_size: int) -> list[float]:
    """Numbers that a rank reads in three steps, with a stop request to rank 1 alone in the second."""
    engine = new_engine()
    first, _ = steps(shapes, rank, world_size, 1)
    return [engine.step(first, 0.01, stop_requested=rank == 1 and step == 1).read()["stop"] for step in range(3)]


def main() -> None:
    shapes, result = Path(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    results: dict[str, Any] = {f"accumulation {n}": trained(shapes, rank, world_size, accumulation=n) for n in (1, 2)}
    results["poisoned"] = poisoned(shapes, rank, world_size)
    results["stopped"] = stopped(shapes, rank, world_size)
    torch.save(results, result.with_name(f"{result.name}.{rank}"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
