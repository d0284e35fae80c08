"""The one training loop, the same under Ray, torchrun and a plain process: spec and context in, a trained model out.

It imports no ray, no mlflow and no tyro. Rank 0 appends what it measures to the run's journal; nothing else leaves the
loop but checkpoints and the results of evaluations.
"""

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detector.backbones import load_imagenet_weights
from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.data.batching import Batch
from detector.data.cache import load_dataset
from detector.data.epoch_plan import trainable_images
from detector.data.loaders import make_train_loader
from detector.data.samples import Dataset
from detector.engine import StepResult, TrainingEngine, autocast_dtype
from detector.errors import CheckpointError
from detector.optim import build_optimizer, learning_rate_at
from detector.retinanet import RetinaNet
from runyard.layout import RunFolder
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal
from runyard.training.checkpoints import newest_good_checkpoint, prune_checkpoints
from runyard.training.context import TrainContext, first_rank_decides
from runyard.training.errors import NonFiniteLossError
from runyard.training.evaluation import detect
from runyard.training.scoring import score_detections, write_evaluation

_log = logging.getLogger(__name__)


def train(spec: ExperimentSpec, folder: RunFolder, context: TrainContext) -> dict[str, Any] | None:
    """Trains (or goes on training) the run in `folder`, evaluates it, and returns the final metrics on rank 0.

    Every rank calls it with the same spec. Raises NonFiniteLossError, CheckpointError, DatasetError.
    """
    loop = _Loop(spec, folder, context)
    try:
        loop.run_epochs()
        return loop.evaluate(final=True)
    finally:
        loop.close()


def build_model(spec: ExperimentSpec, num_classes: int, weights: Path | None) -> RetinaNet:
    """The spec's model with its initial weights, in training mode, on the CPU.

    Args:
        weights: the file of ImageNet weights; required unless the spec says 'none'.
    """
    torch.manual_seed(spec.seed)
    model = RetinaNet(spec.model, num_classes)
    if spec.model.backbone.weights == "imagenet":
        if weights is None:
            raise CheckpointError("no file of ImageNet weights was given", field="model.backbone.weights")
        load_imagenet_weights(model.backbone, spec.model.backbone.name, weights)
    return model.train()


class _Loop:
    """The state of one attempt: where it stands, and what it writes to."""

    def __init__(self, spec: ExperimentSpec, folder: RunFolder, context: TrainContext) -> None:
        self.spec, self.folder, self.context = spec, folder, context
        runtime, optim = spec.runtime, spec.optim
        self.dataset: Dataset = load_dataset(folder.dataset("train"))
        self.steps_per_epoch = -(-len(trainable_images(self.dataset, spec.data)) // optim.batch_size)
        self.total_steps = self.steps_per_epoch * optim.epochs
        model = build_model(spec, len(self.dataset.categories), folder.initial_weights)
        if runtime.channels_last:
            model = model.to(memory_format=torch.channels_last)
        self.model = model.to(context.device)
        self.optimizer = build_optimizer(self.model, optim)
        self.step = self._restore()
        self.autocast_dtype = autocast_dtype(optim.precision, context.device)
        self.engine = TrainingEngine(
            self.model,
            self.optimizer,
            spec.loss,
            optim,
            autocast_dtype=self.autocast_dtype,
            channels_last=runtime.channels_last,
            compile_model=runtime.compile,
        )
        self.journal = Journal(folder.journal) if context.rank == 0 else None
        if self.journal is not None:
            self.journal.append("rewind", {"step": self.step})
            total = {"start_step": self.step, "total_steps": self.total_steps, "steps_per_epoch": self.steps_per_epoch}
            self.journal.append("event", {"event": "start", "workers": context.world_size, **total})

    def run_epochs(self) -> None:
        """Trains from the restored step to the last one."""
        if self.step >= self.total_steps:
            return
        runtime, optim = self.spec.runtime, self.spec.optim
        loader = make_train_loader(
            self.dataset,
            self.spec.data,
            seed=self.spec.seed,
            start_epoch=self.step // self.steps_per_epoch,
            start_step=self.step % self.steps_per_epoch,
            epochs=optim.epochs,
            batch_size=optim.batch_size,
            rank=self.context.rank,
            world_size=self.context.world_size,
            accumulation=runtime.accumulation,
            loader_workers=runtime.loader_workers,
            pin_memory=self.context.device.type == "cuda",
        )
        micro_batches: list[Batch] = []
        unread: _Launched | None = None
        throughput = _Throughput()
        for batch in loader:
            micro_batches.append(batch)
            if len(micro_batches) < runtime.accumulation:
                continue
            rate = learning_rate_at(optim, self.step, self.steps_per_epoch)
            result = self.engine.step(micro_batches, rate)
            # The host looks at a step only after the next one is on its way: the device never waits for it.
            if unread is not None:
                self._read(unread, throughput)
            images = [i for micro in micro_batches for i in micro.image_index.tolist()]
            unread = _Launched(self.step, result, images, time.monotonic())
            micro_batches = []
            self.step += 1
            epoch_ends = self.step % self.steps_per_epoch == 0
            every = runtime.checkpoint_every_steps
            if epoch_ends or (every and self.step % every == 0):
                self._read(unread, throughput)
                unread = None
                self._checkpoint()
                epoch = self.step // self.steps_per_epoch
                interval = runtime.evaluate_every_epochs
                if epoch_ends and interval and epoch % interval == 0 and epoch < optim.epochs:
                    self.evaluate(final=False)
                throughput.restart()

    def evaluate(self, *, final: bool) -> dict[str, Any] | None:
        """Evaluates the present weights on the validation split; the metrics are returned on rank 0."""
        spec, context = self.spec, self.context
        dataset = load_dataset(self.folder.dataset("val"))
        started = time.monotonic()
        table = detect(
            self.model,
            dataset,
            spec.data,
            spec.scoring,
            context,
            batch_size=spec.runtime.evaluation_batch_size,
            loader_workers=spec.runtime.loader_workers,
            autocast_dtype=self.autocast_dtype,
            channels_last=spec.runtime.channels_last,
        )
        if table is None or self.journal is None:
            return None
        seconds = time.monotonic() - started
        metrics = score_detections(dataset, table, spec.protocol)
        metrics["val/images_per_s"] = len(dataset) / seconds
        self.journal.append("metrics", {"step": self.step, "values": metrics})
        if final:
            write_evaluation(self.folder.evaluation(spec.scoring_hash), dataset, table, metrics)
        return metrics

    def close(self) -> None:
        """Gives the journal free."""
        if self.journal is not None:
            self.journal.close()

    def _restore(self) -> int:
        """Loads the newest good checkpoint, the same on every rank; returns the number of steps done."""
        choice = newest_good_checkpoint(self.folder) if self.context.rank == 0 else None
        choice = first_rank_decides(choice, self.context)
        if choice is None:
            return 0
        metadata = load_checkpoint(choice, self.model, self.optimizer, random_state=True)
        if metadata["training_hash"] != self.spec.training_hash:
            raise CheckpointError(
                "belongs to a run with another training hash", file=choice, value=metadata["training_hash"]
            )
        if metadata["workers"] != self.context.world_size:
            _log.warning(
                "%s was written by %d workers, %d go on: same images in the same order and the same global batch, "
                "equal up to rounding",
                choice, metadata["workers"], self.context.world_size,
            )  # fmt: skip
        return int(metadata["step"])

    def _checkpoint(self) -> None:
        target = self.folder.checkpoint(self.step)
        if self.context.rank == 0:
            metadata = {
                "step": self.step,
                "epoch": self.step / self.steps_per_epoch,
                "training_hash": self.spec.training_hash,
                "workers": self.context.world_size,
                "classes": list(self.dataset.class_names),
            }
            save_checkpoint(target, self.model, self.optimizer, metadata)
            prune_checkpoints(self.folder)
        self.context.report({"step": float(self.step)}, target)

    def _read(self, launched: "_Launched", throughput: "_Throughput") -> None:
        """Checks and logs a step that has been launched before."""
        step, images = launched.step, launched.images
        values = launched.result.read()
        throughput.count(values["images"], launched.at_s)
        if values["non_finite"]:
            if self.journal is not None:
                names = [str(self.dataset.image_ids[i]) for i in images]
                self.journal.append("event", {"event": "non_finite", "step": step, "images": names, **_finite(values)})
            raise NonFiniteLossError(
                f"the loss is not finite at step {step} ({json.dumps(_finite(values))}); earlier weights are kept. "
                "Lower optim.learning_rate, or look at the images that the journal names"
            )
        if self.journal is not None and (step % self.spec.runtime.log_every_steps == 0 or step + 1 == self.total_steps):
            record = {f"train/{name}": values[name] for name in ("loss", "loss_cls", "loss_box", "loss_iou")}
            record["train/gradient_norm"] = values["gradient_norm"]
            record["train/learning_rate"] = learning_rate_at(self.spec.optim, step, self.steps_per_epoch)
            record["train/epoch"] = (step + 1) / self.steps_per_epoch
            rate = throughput.images_per_s()
            if rate is not None:
                record["train/images_per_s"] = rate
            self.journal.append("metrics", {"step": step + 1, "values": record})


@dataclass(frozen=True)
class _Launched:
    """A step on its way, not looked at yet."""

    step: int
    result: StepResult
    images: list[int]
    at_s: float


class _Throughput:
    """Images a second between the steps that were looked at last, evaluations and checkpoints left out."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._images, self._since, self._latest = 0.0, time.monotonic(), time.monotonic()

    def count(self, images: float, launched_at_s: float) -> None:
        self._images += images
        self._latest = launched_at_s

    def images_per_s(self) -> float | None:
        elapsed = self._latest - self._since
        rate = self._images / elapsed if elapsed > 0 else None
        self._images, self._since = 0.0, self._latest
        return rate


def _finite(values: dict[str, float]) -> dict[str, float | str]:
    """JSON has no NaN: such values become words."""
    return {name: value if abs(value) < float("inf") else str(value) for name, value in values.items()}
