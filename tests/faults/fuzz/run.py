"""Untrusted files, changed at random: a file is either read or refused with an error that names it.

    python tests/faults/fuzz/run.py --count 1000 --seed 0 [--only coco voc ...] [--keep FOLDER]

Prints one JSON line: by kind of file how many inputs were tried, how many were read and refused, the slowest one, and
every one that made anything but an `InputError` come out. The same seed gives the same inputs. Runs as a process of its
own, because a native reader may end it, and because its memory is limited: a header that claims gigabytes must not
get them.
"""

import argparse
import json
import logging
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from kinds import KINDS

from detector.errors import InputError

MEMORY_BYTES = 1 << 30
"""More than the process has when it begins."""


def fuzz(name: str, count: int, seed: int, keep: Path | None = None) -> dict[str, Any]:
    """Tries `count` inputs of one kind."""
    counts = {"inputs": 0, "read": 0, "refused": 0}
    found: dict[str, str] = {}
    slowest_s = 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        kind = KINDS[name](Path(folder))
        for number in range(count):
            draw = random.Random(f"{name} {seed} {number}")
            kind.mutate(draw, kind.path)
            started = time.monotonic()
            try:
                try:
                    kind.read(kind.path)
                    outcome = "read"
                except InputError as error:
                    outcome = "refused"
                    str(error).encode("utf-8")  # it must be fit to print
                    if "\n" in str(error):
                        raise ValueError("an error of more than one line") from error
            except Exception as error:
                outcome = "found"
                frames = [f for f in traceback.extract_tb(error.__traceback__) if "/faults/fuzz/" not in f.filename]
                place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an assertion here"
                what = f"{type(error).__name__} at {place}"
                if what not in found:
                    found[what] = f"{name} seed {seed} number {number}: {str(error)[:200]}"
                    if keep is not None:
                        shutil.copytree(folder, keep / f"{name}-{seed}-{number}", dirs_exist_ok=True)
            slowest_s = max(slowest_s, time.monotonic() - started)
            counts["inputs"] += 1
            counts[outcome] = counts.get(outcome, 0) + 1
    return counts | {"slowest_s": round(slowest_s, 2), "bugs": found}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="inputs of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", type=Path, help="folder for what has to be looked at")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    for name in options.only:  # everything is imported and has its threads
        fuzz(name, 3, -1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    tried = {name: fuzz(name, options.count, options.seed, options.keep) for name in options.only}
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) // 1024
    inputs = sum(result["inputs"] for result in tried.values())
    seconds = round(time.monotonic() - started, 1)
    print(json.dumps({"inputs": inputs, "seconds": seconds, "grown_mib": grown_mib, "kinds": tried}))
    return int(any(result["bugs"] for result in tried.values()))


if __name__ == "__main__":
    sys.exit(main())
