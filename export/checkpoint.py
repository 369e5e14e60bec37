"""Where a model comes from: the embedded default, a folder, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import shlex
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from vicort.export.qwen2_5_vl.adapter import CONFIG_FILE, WEIGHTS_FILE
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import FILE_NAME, fingerprint

TINY = "tiny"
DOWNLOADED = ("*.json", "*.jinja", "*.txt", "*.safetensors")
ADAPTER_FILES = (CONFIG_FILE, WEIGHTS_FILE)
HASHED = ("*.json", "*.jinja", "*.txt", "*.safetensors")


def resolve(model: str) -> Path:
    """The checkpoint folder of MODEL: `tiny`, a folder in Hugging Face layout, or a hub id, which
    is downloaded with a progress bar. Raises EngineError if there is none.
    """
    return resolve_here(model) or _checked(_download(model), model)


def resolve_here(model: str) -> Path | None:
    """As `resolve`; None for a hub id."""
    if model == TINY:
        return _checked(Path(__file__).parent / "tiny" / "checkpoint", model)
    if model and Path(model).is_dir():
        return _checked(Path(model), model)
    if model.endswith(".gguf"):
        raise EngineError(
            f"model {model!r} is a GGUF file, of llama.cpp: name the checkpoint in Hugging Face "
            "layout that it was made from"
        )
    if Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise EngineError(
            f"no model folder {model!r}: give {TINY!r}, a folder in Hugging Face layout, or a "
            "hub id such as Qwen/Qwen2.5-VL-3B-Instruct"
        )
    return None


def checkpoint_hash(folder: Path, adapter: Path | None = None) -> str:
    """SHA-256 over the names, sizes and fingerprints of a checkpoint's weights, configuration and
    tokenizer, and of an adapter's files."""
    digest = hashlib.sha256()
    paths = sorted({path for pattern in HASHED for path in folder.glob(pattern)})
    for path in [*paths, *((adapter / name for name in ADAPTER_FILES) if adapter else ())]:
        file = fingerprint(path)
        digest.update(f"{path.name} {file.bytes} {file.fingerprint}\n".encode())
    return digest.hexdigest()


def _download(hub_id: str) -> Path:
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(DOWNLOADED)))
    except GatedRepoError as error:
        raise EngineError(
            f"model {hub_id!r} is gated: accept its terms on the hub, then `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise EngineError(
            f"no model {hub_id!r} on the hub and no folder of that name: check the spelling, or "
            f"give {TINY!r}"
        ) from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(
            f"model {hub_id!r} cannot be downloaded ({reason}): check the connection, or give a "
            "local folder"
        ) from error


def _checked(folder: Path, model: str) -> Path:
    if (folder / FILE_NAME).is_file():
        raise EngineError(
            f"model {model!r}: {folder} is an engine set already: run it with `vicort-run SOURCE "
            f"--engine-dir {shlex.quote(str(folder))}`, or name the checkpoint it was built from"
        )
    if (folder / CONFIG_FILE).is_file() and not (folder / "config.json").is_file():
        raise EngineError(
            f"model {model!r}: {folder} is an adapter: name the model that it was trained on, and "
            f"the adapter with --adapter {shlex.quote(str(folder))}"
        )
    if not (folder / "config.json").is_file():
        raise EngineError(
            f"model {model!r}: {folder} has no config.json: name a folder in Hugging Face "
            "layout, or a hub id"
        )
    return folder
