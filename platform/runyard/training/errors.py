"""How training can fail besides bad input."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the weights are those before the step it names."""


class TrainingError(RuntimeError):
    """Training failed for good."""
