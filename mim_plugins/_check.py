"""What arguments may be: errors that name the argument, what is allowed and what was given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any


def check_int(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int; TypeError for a bool or float, ValueError below ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """``value`` as a float; TypeError unless a number, for a bool too."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    # numpy's narrow floats by their shortest digits: float32's 0.6 is 0.6, not 0.60000002384.
    return float(str(value)) if hasattr(value, "dtype") else float(value)


def _number_that(is_allowed: Callable[[float], bool], words: str) -> Callable[[str, Any], float]:
    """As :func:`check_number`, but ValueError for a number that is not ``words``."""

    def check(name: str, value: Any) -> float:
        number = check_number(name, value)
        if not is_allowed(number):
            raise ValueError(f"{name} must be {words}, got {value}")
        return number

    return check


check_weight = _number_that(lambda x: 0.0 <= x < math.inf, "finite and at least 0")
check_positive = _number_that(lambda x: 0.0 < x < math.inf, "positive and finite")
check_fraction = _number_that(lambda x: 0.0 < x < 1.0, "in (0, 1)")
check_share = _number_that(lambda x: 0.0 <= x <= 1.0, "in [0, 1]")


def check_bool(name: str, value: Any) -> bool:
    """``value`` if it is a bool, else TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return value


def check_dict(name: str, value: Any) -> dict:
    """A dict, or None for an empty one, as a dict, else TypeError."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a dict or None, got {value!r}")
    return dict(value or {})


def check_statistics(name: str, value: Any) -> list[float] | None:
    """A mean or standard deviation, one number or one for each channel; None stays None."""
    if value is None:
        return None
    numbers = [check_number(name, number) for number in check_list(name, value)]
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} must be finite numbers, one per channel, got {value!r}")
    return numbers


def check_callable(name: str, value: Any) -> Any:
    """``value`` if it is callable or None, else TypeError."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable or None, got {value!r}")
    return value


def check_list(name: str, value: Any) -> list:
    """A list or tuple as a list, else TypeError."""
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list, got {value!r}")
    return list(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """``value`` if it is one of ``choices``, else ValueError."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")
    return value


def first_line(error: BaseException) -> str:
    """An error's class and what it says, as far as one line goes."""
    return f"{type(error).__name__}: {error}".strip().split("\n", 1)[0]
