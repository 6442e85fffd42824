"""A user's words, as names of files and classes are, on a screen or in a picture: to be read, never to be obeyed."""

import os
from collections.abc import Callable


def shown(text: str, printable: Callable[[str], bool] = str.isprintable) -> str:
    r"""The text on one line, each character that is not `printable` in the form that Python would write it in.

    A new line is `\n`, another control character of ASCII `\x1b`, one beyond `\u202e` or `\U000e0067`: marks that
    turn the direction of writing and all others without a shape of their own are among these. A byte of a file's name
    that is not UTF-8, as `os.fsdecode` gives it, is `\xff`. All else is left as it is, a backslash too, so that a name
    that spells out `\n` looks like one with a new line in it.
    """
    return "".join(c if printable(c) else _escaped(c) for c in text)


def said(error: Exception) -> str:
    """An error's words; of the system's those about its file, without a number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error).rstrip("\n")


def shortened(text: str, longest: int) -> str:
    """The text, or its start and its end with three dots between, `longest` characters in all."""
    if len(text) <= longest:
        return text
    end = (longest - 1) // 3
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"


def _escaped(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return r"\n"
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
