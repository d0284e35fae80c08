"""How training can end besides well, and besides bad input."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the weights are those before the step it names."""


class TrainingStoppedError(RuntimeError):
    """Training was asked to stop, and did; its last checkpoint holds all that was done."""


class SilentWorkerError(RuntimeError):
    """A worker waited in a collective operation, and another one did not come."""


class TrainingError(RuntimeError):
    """Training failed for good."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is."""
