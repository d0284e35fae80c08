"""Names of files and folders, made safe.

Class names, image ids, run names and names inside archives are untrusted. `safe_name` turns any text into one harmless
file name; nothing else in the project joins such text to a path.
"""

import hashlib
import re

# '~' is the escape character because URLs leave it alone: '%' would be decoded by artifact servers (and '%23' is
# refused by MLflow), '=' turns into a partition column in Parquet readers, and '_' is common in names.
_ESCAPE = "~"
_EMPTY_NAME = "~0"
_KEPT = re.compile(r"[A-Za-z0-9._-]")
_WINDOWS_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)")
_MAX_NAME_LENGTH = 120
_HASH_LENGTH_IN_NAMES = 12


def safe_name(text: str) -> str:
    """One file name for any text: ASCII, at most 120 characters, never '..', hidden, absolute or a device name.

    Characters other than letters, digits, '.', '_' and '-' become ~XX, the bytes of their UTF-8 form. Different texts
    get different names; a name that had to be cut ends in ~h and 16 digits of the text's SHA-256.
    """
    if not text:
        return _EMPTY_NAME
    pieces = [character if _KEPT.fullmatch(character) else _escaped(character) for character in text]
    # A leading '-' reads as an option, a leading '.' hides the file or climbs; Windows drops a trailing '.'.
    if pieces[0] in ".-" or _WINDOWS_DEVICE.match(text):
        pieces[0] = _escaped(text[0])
    if pieces[-1] == ".":
        pieces[-1] = _escaped(text[-1])
    name = "".join(pieces)
    if len(name) <= _MAX_NAME_LENGTH:
        return name
    suffix = f"{_ESCAPE}h{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
    head = ""
    for piece in pieces:
        if len(head) + len(piece) + len(suffix) > _MAX_NAME_LENGTH:
            break
        head += piece
    return head + suffix


def _escaped(character: str) -> str:
    return "".join(f"{_ESCAPE}{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def run_name(recipe: str, training_hash: str) -> str:
    """Name of a run and its folder: the same for the same recipe and training hash; no clock takes part."""
    return f"{safe_name(recipe)}-{short_hash(training_hash)}"


def is_run_name(name: str, training_hash: str) -> bool:
    """True if `run_name` may have given the name to a training: harmless, and ends in its hash."""
    harmless = name.replace(_ESCAPE, "_")
    return safe_name(harmless) == harmless and name.endswith(f"-{short_hash(training_hash)}")


def short_hash(text: str) -> str:
    """A hash as it stands in file names."""
    return safe_name(text[:_HASH_LENGTH_IN_NAMES])
