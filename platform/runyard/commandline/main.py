"""Entry of every command: runs a table's command line, and turns errors into one line and an exit status."""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from detector.errors import InputError
from runyard.commandline.command import Command, Table
from runyard.commandline.dry_run import describe_command
from runyard.commandline.options import Options
from runyard.failures import NonFiniteLossError, Terminated, TrainingError


def run_command(table: Table, command: Command, options: Options, runtime_env: dict[str, Any]) -> None:
    """Run the sweep of a command line, or print what it would run."""
    if options.dry_run:
        print(json.dumps(describe_command(command, options.images_per_second), indent=1))
        return
    from runyard.driver.browse import how_to_browse
    from runyard.driver.run import run_sweep

    result = run_sweep(
        command.trials,
        command.name,
        launcher=options.launcher,
        smoke=options.smoke,
        trains=command.trains,
        runtime_env=runtime_env,
        max_concurrent=options.max_concurrent,
        paper=table.paper,
    )
    print(f"To print it again: runyard table {result.folder.root}")
    print(f"To browse it: {how_to_browse(result.results[0].spec)}")


def main(run: Callable[[], None]) -> int:
    """Run a command; return its exit status.

    An input error becomes one line and status 2, a failed training its first traceback, a line and status 1, an
    interruption status 130 or 143.
    """
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGHUP, _terminate)
    try:
        run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingError, NonFiniteLossError) as error:
        print(*getattr(error, "__notes__", ()), f"error: {error}", sep="\n", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; without this Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as interruption:
        print("interrupted; the same command continues the run", file=sys.stderr)
        return 143 if isinstance(interruption, Terminated) else 130
    return 0


def _terminate(signum: int, frame: object) -> None:
    raise Terminated
