"""A table's command line, run or described. Imports no torch before something runs."""

import json
from typing import Any

from runyard.commandline.command import Command, Table
from runyard.commandline.dry_run import describe_command
from runyard.commandline.options import Options


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
        trains=command.trains,
        runtime_env=runtime_env,
        max_concurrent=options.max_concurrent,
        paper=table.paper,
    )
    print(f"To print it again: runyard table {result.folder.root}")
    print(f"To browse it: {how_to_browse(result.results[0].spec, result.experiment_id)}")
