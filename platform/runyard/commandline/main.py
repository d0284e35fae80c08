"""Entry of every command: errors become one line and an exit status."""

import os
import signal
import sys
from collections.abc import Callable

from detector.errors import InputError
from runyard.failures import NonFiniteLossError, Terminated, TrainingError


def main(run: Callable[[], None]) -> int:
    """Run a command; return its exit status.

    An input error becomes one line and status 2, a failed training its first traceback, a line and status 1, an
    interruption status 130 or 143. SIGTERM and SIGHUP stay ignored where the process was started so (`nohup`).
    """
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, _terminate)
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
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 143 if isinstance(interruption, Terminated) else 130
    return 0


def _terminate(signum: int, frame: object) -> None:
    raise Terminated
