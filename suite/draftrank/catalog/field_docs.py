"""The docstrings below the fields of a class, for JSON Schemas."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

from pydantic import BaseModel


def described(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON Schema whose fields have the docstrings below them in the source as descriptions.

    pydantic can do so itself, but when a class is made, which would cost every command a third of a second.
    """
    models = {model.__name__: model for model in _models(BaseModel)}
    for definition in (schema, *schema.get("$defs", {}).values()):
        model, properties = models.get(definition.get("title", "")), definition.get("properties", {})
        if model is not None:
            for name, text in _field_docstrings(model).items():
                if name in properties:
                    properties[name] = dict(sorted({"description": text, **properties[name]}.items()))
    return schema


def _models(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in base.__subclasses__():
        if model.__module__.startswith("draftrank."):
            yield model
        yield from _models(model)


def _field_docstrings(model: type[BaseModel]) -> dict[str, str]:
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not one.__module__.startswith("draftrank."):
            continue
        (of_class,) = ast.parse(dedent(inspect.getsource(one))).body
        assert isinstance(of_class, ast.ClassDef)
        for field, text in zip(of_class.body, of_class.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found.pop(field.target.id, None)
                match text:
                    case ast.Expr(ast.Constant(str(docstring))):
                        found[field.target.id] = inspect.cleandoc(docstring)
    return found
