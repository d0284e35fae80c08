#!/usr/bin/env python3
"""Table 1: RetinaNet and IoU-aware RetinaNet on COCO, R50, R101 and X101, 12 epochs at [800, 1333].

    experiments/coco_main.py --data /data/coco --row r50-iou --workers 8
    experiments/coco_main.py --data /data/coco --rows r50-baseline r50-iou --seeds 3 --workers 8

Rows are trained one after the other or side by side, and stand in one table. Without --rows it trains r50-iou.
The row torchvision-r50 is torchvision's own RetinaNet in the same harness.
Expected (test-dev AP): r50 35.9 -> 36.9, r101 38.1 -> 39.2, x101 39.0 -> 40.6 (baseline -> iou).
GPU hours: not measured. Run the same command again to continue an interrupted run.
"""

import sys

import _bootstrap

RUNTIME_ENV = _bootstrap.bootstrap()

from paper_tables import TABLE1
from recipes import COCO_ROWS, coco, smoke
from runyard.commandline import command, main
from runyard.commandline.options import Options
from runyard.driver.command import run_command

TABLE = command.Table("table1", coco, COCO_ROWS, smoke, (TABLE1,))


def run() -> None:
    """Parse the command line and run the sweep."""
    options, given = command.parse(TABLE, __doc__ or "", Options, rows=("r50-iou",))
    run_command(TABLE, command.build(TABLE, options, given), options, RUNTIME_ENV)


if __name__ == "__main__":
    sys.exit(main.main(run))
