"""Engine sets that another version of vicort built, and that this one cannot read: named before a
run refuses one of them or builds it again."""

from __future__ import annotations

from pathlib import Path

from vicort.runtime.errors import ConfigError, EngineError
from vicort.runtime.locations import engines_root
from vicort.runtime.manifest import SCHEMA_VERSION, is_other_schema, read_manifest, schema_of


def refuse_other_schema(folder: Path) -> None:
    """Raises EngineError for a set of another schema, which also names the other such sets."""
    if is_other_schema(folder):
        try:
            read_manifest(folder)
        except EngineError as error:
            raise EngineError(f"{error}{_others(folder)}") from error


def outdated_text(folder: Path) -> str:
    """That this set is of another schema, and which others are."""
    return (
        f"another version of vicort built {folder}: its schema version is {schema_of(folder)}, "
        f"this one reads {SCHEMA_VERSION}{_others(folder)}"
    )


def _others(folder: Path) -> str:
    try:
        root = engines_root()
        found = sorted(root.iterdir()) if root.is_dir() else []
    except (ConfigError, OSError):  # this user has none, or may not look there
        return ""
    names = [
        path.name for path in found if path.resolve() != folder.resolve() and is_other_schema(path)
    ]
    if not names:
        return ""
    return f"; the same holds for {', '.join(names)} in {root}: see `vicort-engines list`"
