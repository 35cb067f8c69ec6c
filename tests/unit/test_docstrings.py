"""Every public method says what it does, by its own docstring or by that of the method it overrides."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import draftrank


def undescribed(cls: type) -> Iterator[str]:
    for name, member in vars(cls).items():
        method = isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)
        described = any(getattr(vars(base).get(name), "__doc__", None) for base in cls.__mro__)
        if method and not name.startswith("_") and not described:
            yield f"{cls.__module__}.{cls.__qualname__}.{name}"


def test_methods_are_described() -> None:
    names = [info.name for info in pkgutil.walk_packages(draftrank.__path__, "draftrank.")]
    own = [name for name in names if "__main__" not in name and ".migrations" not in name]
    found = []
    for name in own:
        members = vars(importlib.import_module(name)).items()
        classes = [member for key, member in members if isinstance(member, type) and not key.startswith("_")]
        found += [line for cls in classes if cls.__module__ == name for line in undescribed(cls)]
    assert len(own) > 300
    assert found == []


def test_a_method_without_any_description_is_found() -> None:
    class Base:
        def described(self) -> None:
            """Does nothing."""

    class Child(Base):
        def described(self) -> None:
            return None

        def not_described(self) -> None:
            return None

    assert [name.rpartition(".")[2] for name in undescribed(Child)] == ["not_described"]
