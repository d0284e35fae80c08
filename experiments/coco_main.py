#!/usr/bin/env python3
"""Table 1: RetinaNet and IoU-aware RetinaNet on COCO, R50, R101 and X101, 12 epochs at [800, 1333].

    experiments/coco_main.py --data /data/coco --row r50-iou --workers 8
    experiments/coco_main.py --data /data/coco --rows r50-baseline r50-iou --seeds 3 --workers 8

With --rows or --seeds it is a sweep over rows and seeds, else one run.
Expected (test-dev AP): r50 35.9 -> 36.9, r101 38.1 -> 39.2, x101 39.0 -> 40.6 (baseline -> iou).
GPU hours: not measured. Run the same command again to continue an interrupted run.
"""

import sys

import _bootstrap

RUNTIME_ENV = _bootstrap.bootstrap()

from paper_tables import TABLE1  # noqa: E402
from recipes import TABLE1_ROWS, smoke, table1  # noqa: E402
from runyard.commandline import entry  # noqa: E402
from runyard.commandline import sweep as command  # noqa: E402

SWEEP_OPTIONS = ("--rows", "--seeds", "--vary", "--max-concurrent")
"""Any of them asks for a sweep over the table."""


def run() -> None:
    """Parses the command line and runs the experiment, or the sweep."""
    if any(argument.partition("=")[0] in SWEEP_OPTIONS for argument in sys.argv[1:]):
        sweep_options, recipe = command.parse(table1, TABLE1_ROWS, smoke, __doc__ or "", command.SweepOptions)
        command.run(command.build("table1", recipe, TABLE1_ROWS, sweep_options), sweep_options, RUNTIME_ENV, (TABLE1,))
        return
    spec, options = entry.parse(table1, ("r50-iou", *TABLE1_ROWS), smoke, __doc__ or "")
    if options.dry_run:
        entry.print_dry_run(spec, options.images_per_second)
        return
    from runyard.driver.experiment import how_to_browse, run_experiment

    outcome = run_experiment(spec, launcher=options.launcher, smoke=options.smoke, runtime_env=RUNTIME_ENV)
    print(f"To browse it: {how_to_browse(outcome.spec)}")


if __name__ == "__main__":
    sys.exit(entry.main(run))
