"""What the fields of records accept: plain Python values, each of a rule that an error can quote.

A NumPy or torch scalar is refused, since it would not come back from JSON as it was.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What a kind of field accepts, in words and as a predicate. A bool is no number, and types are exact."""

    accepted: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def one_of(*names: str) -> Rule:
    """The rule of a field that takes one of a few strings."""
    return Rule("must be " + " or ".join(f'"{name}"' for name in names), lambda v: type(v) is str and v in names)


POSITIVE = Rule("must be a positive integer", lambda v: type(v) is int and v > 0)
POSITIVE_OR_NONE = Rule("must be a positive integer or None", lambda v: v is None or POSITIVE.holds(v))
NON_NEGATIVE = Rule("must be a non-negative integer", lambda v: type(v) is int and v >= 0)
NUMBER = Rule("must be a finite number", _is_number)
NON_NEGATIVE_NUMBER = Rule("must be a finite non-negative number", lambda v: _is_number(v) and v >= 0)
PROBABILITY = Rule("must lie in [0, 1)", lambda v: _is_number(v) and 0 <= v < 1)
BOOL = Rule("must be a bool", lambda v: type(v) is bool)
STRING = Rule("must be a string", lambda v: type(v) is str)
TUPLE = Rule("must be a tuple of layers", lambda v: type(v) is tuple)


def check_fields(record: Any, subject: str = "{} of {}", /, **rules: Rule) -> None:
    """Raises ValueError for the first field that breaks its rule; `subject` says what it is in the error."""
    for name, rule in rules.items():
        value = getattr(record, name)
        if not rule.holds(value):
            raise ValueError(f"{subject.format(name, type(record).__name__)} {rule.accepted}, got {value!r}")
