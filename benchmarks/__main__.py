"""Run the comparisons and print a table: ours, the other, the ratio with its 95 % interval, and the verdict.

    python -m benchmarks                          all of them
    python -m benchmarks --only P8,P9 --json OUT.json

A and B are measured in turn on one machine, in one process tree, every comparison in new processes. A goal counts as
met only if the worse end of the interval meets it.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Before torch is loaded: threads that outnumber the cores wait for each other, and Ray gives a worker one anyway.
for _variable in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):  # torch's and hotcoco's
    os.environ.setdefault(_variable, "1")
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "platform")]

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from benchmarks import machine  # noqa: E402
from benchmarks.markdown import page  # noqa: E402
from benchmarks.rows import AnyRow, print_table  # noqa: E402
from benchmarks.runner import COMPARISONS, has_failed, run_apart, title, write_json  # noqa: E402
from benchmarks.settings import Settings  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 1 where a comparison failed, never because of a verdict."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(COMPARISONS), help="which, as P8,P9 (default: all)")
    parser.add_argument("--json", type=Path, help="write every number here as well")
    parser.add_argument("--markdown", type=Path, help="write the table here as well")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, two repeats: it proves that all runs, no more"
    )
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    options = parser.parse_args(arguments)
    keys = options.only.upper().split(",")
    if unknown := [key for key in keys if key not in COMPARISONS]:
        parser.error(f"--only: no comparison {', '.join(unknown)}; there are {', '.join(COMPARISONS)}")

    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    compiled_too = device.type == "cuda" and not options.quick
    settings = Settings(device, quick=options.quick, variants=(False, True) if compiled_too else (False,))
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    found = machine.describe()
    rows: list[AnyRow] = []
    started = time.monotonic()
    for key in keys:
        print(f"{key} ({title(key)}) ...", file=sys.stderr, flush=True)
        rows += run_apart(key, settings)
        seconds = round(time.monotonic() - started)
        if options.json is not None:  # after each, so that an interruption loses little
            write_json(options.json, found, rows, command=command, seconds=seconds)
        if options.markdown is not None:
            options.markdown.parent.mkdir(parents=True, exist_ok=True)
            options.markdown.write_text(page(rows, found, command=command, seconds=seconds))
    console = Console(width=None if sys.stdout.isatty() else 140)
    print_table(rows, found, console)
    console.print(f"{command}: {time.monotonic() - started:.0f} s", highlight=False, soft_wrap=True)
    return int(has_failed(rows))


if __name__ == "__main__":
    sys.exit(main())
