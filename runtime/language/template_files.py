"""The files of a model's folder that say how a conversation becomes text, found in the order of
transformers: processor_config.json, chat_template.json, chat_template.jinja with its folder of
other templates, tokenizer_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vicort.runtime.errors import EngineError
from vicort.runtime.safe_text import read_text, shown

TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates"
PROCESSOR_FILE, LEGACY_FILE = "processor_config.json", "chat_template.json"
CONFIG_FILE, TOKENS_FILE = "tokenizer_config.json", "special_tokens_map.json"
# what an engine set holds of them, besides the tokenizer; TEMPLATE_FOLDER is a folder
FILES = (PROCESSOR_FILE, LEGACY_FILE, TEMPLATE_FILE, CONFIG_FILE, TOKENS_FILE)
DEFAULT = "default"  # the template of a list that is used where no tools are given
MAX_BYTES = 16 << 20  # of a file
MAX_TEMPLATE = 1 << 20  # characters; published ones have up to about 30,000
STANDARD_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
QWEN_CLASSES = ("Qwen2Tokenizer", "Qwen2TokenizerFast", None)
QWEN_DEFAULT = "<|endoftext|>"


class MissingTemplateError(EngineError):
    """A folder has no chat template."""


def find_template(folder: Path) -> str:
    """The source of the folder's template. Raises EngineError if there is none, or one that cannot
    be used."""
    for path, found in (
        (folder / PROCESSOR_FILE, _value(folder / PROCESSOR_FILE)),
        (folder / LEGACY_FILE, _value(folder / LEGACY_FILE)),
        (folder / TEMPLATE_FILE, _template_files(folder)),
        (folder / CONFIG_FILE, _value(folder / CONFIG_FILE)),
    ):
        if found is not None:
            return _source(path, found)
    raise MissingTemplateError(
        f"{folder} has no chat template, without which a question cannot be asked: copy the "
        f"model's {TEMPLATE_FILE} there"
    )


def special_tokens(folder: Path) -> dict[str, str]:
    """The tokenizer's named special tokens, which a template uses as variables. Raises EngineError
    if a file is damaged."""
    config = _json(folder / CONFIG_FILE)
    given = _named(config)
    if config.get("tokenizer_class") in QWEN_CLASSES:
        defaults = dict.fromkeys((f"{name}_token" for name in ("unk", "eos", "pad")), QWEN_DEFAULT)
        given = defaults | given
    # names of the model's own, which the older file does not replace where they are stored as text
    own = {key: value for key, value in _named(config).items() if key not in STANDARD_TOKENS}
    own = {key: value for key, value in own.items() if isinstance(value, str)}
    own |= _dict(config.get("extra_special_tokens"))
    if "added_tokens_decoder" not in config:  # as before transformers 4.34
        older = _json(folder / TOKENS_FILE)
        given |= _named(older)
        own |= _dict(older.get("extra_special_tokens"))
    given |= own
    texts = {key: _token(value) for key, value in given.items()}
    return {key: text for key, text in texts.items() if text is not None}


def _named(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key.endswith("_token")}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _token(value: Any) -> str | None:
    """A token's text: it is stored as text, or as an object that says how it is matched."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _template_files(folder: Path) -> str | dict[str, str | None] | None:
    """The template in a file of its own, else the names of those in TEMPLATE_FOLDER."""
    for path in (folder / TEMPLATE_FILE, folder / TEMPLATE_FOLDER / f"{DEFAULT}.jinja"):
        if (default := _text(path)) is not None:
            return default
    names = [path.stem for path in (folder / TEMPLATE_FOLDER).glob("*.jinja")]
    return dict.fromkeys(names) or None


def _source(path: Path, found: Any) -> str:
    if isinstance(found, list):
        found = {
            each["name"]: each.get("template")
            for each in found
            if isinstance(each, dict) and isinstance(each.get("name"), str)
        }
    if isinstance(found, dict) and DEFAULT not in found:
        raise EngineError(
            f"{path} has no chat template named {DEFAULT!r}, only {shown(sorted(found))}: copy the "
            f"one to use to {TEMPLATE_FILE}"
        )
    source = found[DEFAULT] if isinstance(found, dict) else found
    if not isinstance(source, str):
        raise EngineError(
            f"{path} has a chat template that is no text but {shown(source)}: copy the model's "
            f"{TEMPLATE_FILE} there"
        )
    if len(source) > MAX_TEMPLATE:
        raise EngineError(
            f"{path} has a chat template of {len(source)} characters, at most {MAX_TEMPLATE} are "
            f"allowed: copy the model's {TEMPLATE_FILE} there"
        )
    return source


def _value(path: Path) -> Any:
    return _json(path).get("chat_template")


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no such file."""
    if (text := _text(path)) is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineError(
            f"{path} is not JSON: copy it from the model again, or build the engine set again"
        ) from error
    if not isinstance(content, dict):
        raise EngineError(f"{path} holds no JSON object: copy it from the model again")
    return content


def _text(path: Path) -> str | None:
    """None if there is no such file. Raises EngineError if it is not text, or too long."""
    if not path.is_file():
        return None
    try:
        return read_text(path, MAX_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(
            f"{path} cannot be read ({error}): copy it from the model again, or build the engine "
            "set again with vicort-build"
        ) from error
