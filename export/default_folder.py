"""Whose engine set is in a default folder: two checkpoints may have the same last name."""

from __future__ import annotations

import shlex
from pathlib import Path

from vicort.export.recipe import embedded_adapter
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import Manifest
from vicort.runtime.safe_text import shown
from vicort.runtime.set_folders import manifest_content

TINY = "tiny"
SOURCES = ("--adapter",)  # options of a build command that name a part of the model


def check_same_model(folder: Path, manifest: Manifest) -> None:
    """Before `folder`, which nobody named, is replaced by a set of that manifest.

    Raises ConfigError if it holds a set of another model: neither the same files, nor built from
    the same place.
    """
    found = manifest_content(folder)
    if found is None or found.get("checkpoint") == manifest.checkpoint:
        return
    before, now = _sources(found["build_command"]), _sources(manifest.build_command)
    if before != now:
        raise ConfigError(
            f"{folder} holds the engine set of another model, built from "
            f"{shown(' with '.join(before))}, and is not overwritten: name a folder with --out, or "
            "that one to replace it"
        )


def located(model: str) -> str:
    """A model or adapter, of which a folder is named from the root, so that two folders of one name
    differ wherever a command is typed."""
    if model == TINY or embedded_adapter(model) or not model or not Path(model).is_dir():
        return model
    return str(Path(model).resolve())


def _sources(command: str) -> list[str]:
    """The model and the adapter of a build command."""
    try:
        words = shlex.split(command)[1:]
    except ValueError:
        return [command]
    after = [words[i + 1] for i, word in enumerate(words[:-1]) if word in SOURCES]
    return words[:1] + after
