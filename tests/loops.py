"""Many small cases in one test: `for_each` in place of `pytest.mark.parametrize`, where a name for each case costs more than the case."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

Test = Callable[..., None]


def for_each(names: str, values: Iterable[Any], *, label: Callable[[Any], str] = repr) -> Callable[[Test], Test]:
    """Call the test once for each value, to the end, and fail with all the cases that failed.

    `names` is one argument of the test, or several with commas between; each value is then a tuple. The cases share the test's
    fixtures, so what they do must not depend on the order.
    """
    arguments = [name.strip() for name in names.split(",")]
    cases = list(values)
    assert cases, f"no values for {names}"

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def run(*fixtures: Any, **more: Any) -> None:
            failed: list[Exception] = []
            for case in cases:
                try:
                    test(*fixtures, **more, **dict(zip(arguments, case if len(arguments) > 1 else (case,), strict=True)))
                except Exception as error:  # noqa: BLE001  # all of them are raised below
                    error.add_note(f"case {names} = {label(case)[:400]}")
                    failed.append(error)
            if len(failed) == 1:
                raise failed[0]
            if failed:
                raise ExceptionGroup(f"{len(failed)} of {len(cases)} cases of {names} failed", failed)

        signature = inspect.signature(test)
        rest = [parameter for name, parameter in signature.parameters.items() if name not in arguments]
        run.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]  # what pytest looks for fixtures in
        return run

    return decorate
