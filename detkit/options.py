"""Options that one constructor hands on to others: listed once, where they are used, and in every signature.

A signature is a part's schema, so a constructor with ``**options`` says by ``takes`` whose options these are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_type_hints

Function = TypeVar("Function", bound=Callable[..., object])


def keyword_only(constructor: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a function or class, or all fields of a dataclass, with annotations resolved.

    An argument without a type has that of its default, if this is a number, a truth value or text.
    """
    whole = is_dataclass(constructor)
    owner = constructor.__init__ if isinstance(constructor, type) and not whole else constructor  # type: ignore[misc]
    hints = get_type_hints(owner)
    return {
        name: argument.replace(annotation=hints.get(name, _type_of(argument.default)))
        for name, argument in inspect.signature(constructor).parameters.items()
        if whole or argument.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _type_of(default: object) -> object:
    return type(default) if isinstance(default, (bool, int, float, str)) else inspect.Parameter.empty


def takes(*others: Callable[..., object]) -> Callable[[Function], Function]:
    """Decorates a function with ``**options``: its signature lists the keyword-only arguments of ``others`` instead.

    An argument that it has itself stays as it is there; of several ``others`` the first counts. Whose docstrings tell
    of the arguments stands in the function's ``__takes__``.
    """

    def decorate(function: Function) -> Function:
        own = inspect.signature(function).parameters
        listed = {name: argument for name, argument in own.items() if argument.kind is not argument.VAR_KEYWORD}
        for other in others:
            options = keyword_only(other)
            listed = {**listed, **options, **listed}
            hints = {name: argument.annotation for name, argument in options.items()}
            function.__annotations__ = hints | function.__annotations__
        vars(function).update(__signature__=inspect.Signature(list(listed.values())), __takes__=others)
        return function

    return decorate


def split(options: Mapping[str, object], *constructors: Callable[..., object]) -> list[dict[str, Any]]:
    """Of each constructor those of ``options`` that are its keyword-only arguments.

    Raises:
        TypeError: An option of none of them, as for any unknown keyword.
    """
    known = [keyword_only(constructor) for constructor in constructors]
    if unknown := set(options).difference(*known):
        raise TypeError(f"unexpected keyword argument {min(unknown)!r}")
    return [{name: value for name, value in options.items() if name in names} for names in known]
