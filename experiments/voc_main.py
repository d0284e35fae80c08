#!/usr/bin/env python3
"""Table 5: RetinaNet and IoU-aware RetinaNet on PASCAL VOC, R50 and R101, VOC07+12 -> VOC07 test; four trainings.

    experiments/voc_main.py --data /data/VOCdevkit --workers 2

Expected (VOC07 11-point AP over IoU 0.50:0.05:0.95): r50 51.4 -> 53.6, r101 55.1 -> 56.2 (baseline -> iou); COCO-style
AP of the same detections is reported too. GPU hours: not measured. Run the same command again to continue.
"""

import sys

import _bootstrap

RUNTIME_ENV = _bootstrap.bootstrap()

from paper_tables import TABLE5
from recipes import TABLE5_ROWS, smoke, table5
from runyard.commandline import command, main
from runyard.commandline.options import Options
from runyard.driver.command import run_command

TABLE = command.Table("table5", table5, TABLE5_ROWS, smoke, (TABLE5,))


def run() -> None:
    """Parse the command line and run the sweep."""
    options, given = command.parse(TABLE, __doc__ or "", Options)
    run_command(TABLE, command.build(TABLE, options, given), options, RUNTIME_ENV)


if __name__ == "__main__":
    sys.exit(main.main(run))
