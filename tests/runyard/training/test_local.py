"""The plain-torch launcher as a command: one process, and two of torchrun's."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import effective_metrics, read
from runyard.training.local import main

ROOT = Path(__file__).resolve().parents[3]


def run(spec: ExperimentSpec, processes: int) -> dict[str, float]:
    """Trains in this process, or under torchrun; the metrics that are printed."""
    assert spec.runtime.storage is not None
    file = spec.runtime.storage.with_name(f"{spec.runtime.name}.json")
    file.write_text(json.dumps(to_dict(spec)))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--standalone"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
    done = subprocess.run(
        [*command, "-m", "runyard.training.local", str(file)],
        env=environment, cwd=file.parent, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.processes
def test_N5_two_processes_train_and_count_21_images_as_one_does(
    tiny_spec: ExperimentSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    """21 images to evaluate; 7 to train on in batches of 4, so that the last step has three images for two workers."""
    spec = replace(
        tiny_spec,
        optim=replace(tiny_spec.optim, epochs=1),
        data=replace(tiny_spec.data, train_limit=7, val_split="train"),
    )
    assert spec.runtime.storage is not None
    file = spec.runtime.storage.with_name("alone.json")
    file.write_text(json.dumps(to_dict(spec)))
    assert main([str(file)]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["val/images"] == 21

    # Two processes evaluate the very weights that one has trained: nothing but the time differs.
    one = RunFolder(spec.runtime.storage / "tiny")
    copied = replace(spec, runtime=replace(spec.runtime, name="copied"))
    two = RunFolder(spec.runtime.storage / "copied")
    two.root.mkdir()
    one.checkpoints()[0].rename(two.checkpoint(2))
    together = run(copied, processes=2)
    del alone["val/images_per_s"], together["val/images_per_s"]
    assert together == alone
    (warning,) = [r.payload["message"] for r in read(two.journal) if r.payload.get("event") == "warning"]
    assert "written by 1 worker(s), 2 go on" in warning

    # And they train as one does, up to rounding.
    trained = replace(spec, runtime=replace(spec.runtime, name="trained-by-two"))
    run(trained, processes=2)
    curves = [effective_metrics(folder.journal) for folder in (one, RunFolder(two.root.with_name("trained-by-two")))]
    for name in ("loss", "loss_cls", "loss_box", "loss_iou", "gradient_norm"):
        (expected, measured) = ([value for _, value in curve[f"train/{name}"]] for curve in curves)
        assert measured == pytest.approx(expected, rel=1e-4)


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "unknown.json").write_text('{"modell": {}}')
    for name, message in (("missing", "cannot be read"), ("broken", "is not valid JSON"), ("unknown", "unknown key")):
        assert main([str(tmp_path / f"{name}.json")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
