"""The errors a user can cause and mend; everything else that is raised is a fault of ours."""


class InputError(ValueError):
    """Bad input: says what is wrong, where (file and field), the value found, and what to do about it.

    Command lines print `str(error)` on one line and exit with status 2; no traceback is shown for it.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: object | None = None,
        field: str | None = None,
        value: object | None = None,
        remedy: str | None = None,
    ) -> None:
        where = [str(part) for part in (file, field) if part is not None]
        text = f"{': '.join(where)}: {problem}" if where else problem
        if value is not None:
            text += f" (found {_shorten(value)})"
        if remedy:
            text += f". {remedy}"
        super().__init__(printable(text))
        self.problem = problem
        self.file = file
        self.field = field
        self.value = value
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive pickling by default, and Ray pickles them.
        return (_rebuild, (type(self), self.problem, self.file, self.field, self.value, self.remedy))


class DatasetError(InputError):
    """A data set, an annotation file or an image cannot be used as it is."""


class ConfigError(InputError):
    """A configuration holds an unknown key or a value outside its range."""


class CheckpointError(InputError):
    """A checkpoint or a weights file is damaged, hostile or made for another model."""


class CandidateStoreError(InputError):
    """A store of candidates is damaged, incomplete, or of another version."""


class ResultFileError(InputError):
    """A detections file cannot be scored against its ground truth."""


def printable(text: str) -> str:
    """One line that any stream can encode: names from files may hold newlines, and bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def _shorten(value: object, limit: int = 160) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _rebuild(
    kind: type[InputError], problem: str, file: object, field: str | None, value: object, remedy: str | None
) -> InputError:
    return kind(problem, file=file, field=field, value=value, remedy=remedy)
