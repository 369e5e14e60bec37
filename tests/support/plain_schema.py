"""Small JSON schemas, and whether a value obeys one, said in a few lines."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["a", "color", "seen", "n 1", "ß"])
SCALARS = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda least, more: {"type": "integer", "minimum": least, "maximum": least + more},
        st.integers(-30, 30),
        st.integers(0, 50),
    ),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    st.sampled_from(["[ab]{1,3}", "^x?y$", "(red|blue) [0-9]"]).map(
        lambda pattern: {"type": "string", "pattern": f"^(?:{pattern.strip('^$')})$"}
    ),
    st.lists(
        st.one_of(st.integers(-5, 5), st.booleans(), st.sampled_from(["yes", "é", 'q"'])),
        min_size=1,
        max_size=3,
        unique_by=repr,
    ).map(lambda values: {"enum": values}),
    st.sampled_from(["const", 7]).map(lambda value: {"const": value}),
)


def _arrays(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": 2}


def _objects(properties: dict[str, Any], required: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties)[:required],
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        inner.map(_arrays),
        st.builds(_objects, st.dictionaries(NAMES, inner, max_size=3), st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts}),
    ),
    max_leaves=4,
)


def obeys(value: Any, schema: dict[str, Any]) -> bool:
    """Of the keywords that SCHEMAS has."""
    if "anyOf" in schema:
        return any(obeys(value, part) for part in schema["anyOf"])
    if "enum" in schema:
        return any(_same(value, each) for each in schema["enum"])
    if "const" in schema:
        return _same(value, schema["const"])
    kind = schema["type"]
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and schema["minimum"] <= value <= schema["maximum"]
    if kind == "string":
        fits = isinstance(value, str)
        if fits and "pattern" in schema:
            return re.search(schema["pattern"], value) is not None
        return fits and schema["minLength"] <= len(value) <= schema["maxLength"]
    if kind == "array":
        fits = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return fits and all(obeys(each, schema["items"]) for each in value)
    known = schema["properties"]
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(known)
        and all(obeys(each, known[name]) for name, each in value.items())
    )


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other
