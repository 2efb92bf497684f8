"""Whatever the arguments: a clear error, or a component that works.

Every argument of every public component gets every value of ``fuzz.WRONG``, the others staying
at their defaults; then several arguments at once, drawn by hypothesis. Allowed is

- a ``TypeError`` or ``ValueError`` at construction that names the argument and the value;
- a component that does one step, or draws one mask, with finite results;
- where only the data show that they do not fit, as an image smaller than a patch, a
  ``ValueError`` in that step that names argument and value.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from . import fuzz
from .fuzz import WRONG, Component

COMPONENTS = list(fuzz.framework_free())
if find_spec("mmpretrain"):
    from . import fuzz_mmpretrain

    COMPONENTS += fuzz_mmpretrain.components()
if find_spec("lightly"):
    from . import fuzz_lightly

    COMPONENTS += fuzz_lightly.components()

FREE = [c for c in COMPONENTS if "." not in c.name]
ACCEPTED = "accepted"
# A mask unit is the patch size unless it is given; old names are called by the new one.
ALIASES = {"patch_size": "mask_unit", "mixmask": "mixing", "mask_generator": "masking"}
every_component = pytest.mark.parametrize("component", COMPONENTS, ids=str)


def names(error: Exception, arguments: dict[str, Any]) -> bool:
    """Whether the message names an argument and its value."""
    message = str(error)
    if isinstance(error, TypeError) and has(message, "argument"):  # Python's own
        keys = [key for value in arguments.values() if isinstance(value, dict) for key in value]
        return any(has(message, name) for name in [*arguments, *keys])
    return any(
        (has(message, name) or has(message, ALIASES.get(name, name)))
        and any(has(message, shown) for shown in forms(value))
        for name, value in arguments.items()
    )


def has(message: str, part: str) -> bool:
    """Whether ``part`` stands in ``message`` by itself: 1 is not in 0.1, mask not in masks."""
    return bool(re.search(rf"(?<![\w.]){re.escape(part)}(?![\w])", message))


def forms(value: Any) -> set[str]:
    """How a message may show a value: as it is, or the entry of it that is wrong."""
    parts = list(value) if isinstance(value, (list, tuple, dict)) else []
    return {f(v) for v in [value, *parts] for f in (repr, str)}


def violation(component: Component, arguments: dict[str, Any], use: bool = True) -> str | None:
    """What is wrong with how the component takes these arguments; ``ACCEPTED`` if nothing is."""
    try:
        made = component.build(**{**component.base, **arguments})
    except (TypeError, ValueError) as error:
        clear = names(error, arguments)
        return None if clear else f"unclear at construction, {type(error).__name__}: {error}"
    except Exception as error:
        return f"at construction, {type(error).__name__}: {error}"
    if not use:
        return None
    try:
        component.use(made)
    except ValueError as error:
        return None if names(error, arguments) else f"unclear in use, ValueError: {error}"
    except Exception as error:
        return f"in use, {type(error).__name__}: {error}"
    return ACCEPTED


def tell(component: Component, found: dict[str, str | None]) -> None:
    wrong = [f"{given}: {what}" for given, what in found.items() if what not in (None, ACCEPTED)]
    assert not wrong, f"{component}\n" + "\n".join(wrong)


@every_component
def test_its_defaults_work(component: Component) -> None:
    tell(component, {"defaults": violation(component, {})})


@every_component
def test_one_argument_is_wrong(component: Component) -> None:
    if not component.arguments:
        pytest.skip("it has no arguments of its own")
    found = {}
    for name in component.arguments:
        used = 0
        for value in WRONG:
            result = violation(component, {name: value}, not component.slow or used < 2)
            found[f"{name}={value!r}"] = result
            used += result == ACCEPTED
    tell(component, found)


@pytest.mark.parametrize("component", FREE, ids=str)
@settings(derandomize=True, deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_several_arguments_are_wrong(component: Component, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(component.arguments)), max_size=3))
    arguments = {name: data.draw(st.sampled_from(WRONG), label=name) for name in sorted(chosen)}
    tell(component, {repr(arguments): violation(component, arguments)})
