"""Whether a checkpoint's output head is its token embedding, by what its files hold. It takes no
torch, so that `vicort-info` and `vicort-build` go by the same rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vicort.export.qwen2_5_vl.configuration import Configuration
from vicort.export.safetensors_headers import StoredTensor, read_header, weight_files
from vicort.runtime.errors import EngineError

HEAD_MODULE = "lm_head"
HEAD = f"{HEAD_MODULE}.weight"
EMBEDDING = "embed_tokens.weight"
BLOCK = 1 << 24  # bytes that are compared at a time


def has_tied_head(folder: Path, config: Configuration) -> bool:
    """As in transformers, a head that config.json ties is separate if the checkpoint has it with
    other values. Raises EngineError if a file is missing or damaged, or there is no head at all."""
    if config.language.tied:
        return not _has_own_head(folder)
    names = [tensor.name for path in weight_files(folder) for tensor in read_header(path)]
    if not any(name.startswith(f"{HEAD_MODULE}.") for name in names):
        raise EngineError(
            f"{folder} has no {HEAD}, and config.json does not tie the output head to the token "
            "embedding: download the checkpoint again, or set tie_word_embeddings to true if the "
            "model was trained so"
        )
    return False


def as_stored(folder: Path, config: Configuration) -> Configuration:
    """The configuration, tied as the files have it."""
    return replace(config, language=replace(config.language, tied=has_tied_head(folder, config)))


def _has_own_head(folder: Path) -> bool:
    """Whether there is a head of other bytes than the token embedding, or a quantised one."""
    found = [(path, tensor) for path in weight_files(folder) for tensor in read_header(path)]
    heads = [each for each in found if each[1].name == HEAD]
    embeddings = [each for each in found if each[1].name.endswith(EMBEDDING)]
    if heads and embeddings:
        return not _are_equal(heads[-1], embeddings[-1])
    return any(
        tensor.name.startswith(f"{HEAD_MODULE}.") and tensor.name != HEAD for _, tensor in found
    )


def _are_equal(one: tuple[Path, StoredTensor], other: tuple[Path, StoredTensor]) -> bool:
    (path, tensor), (other_path, like) = one, other
    if (tensor.dtype, tensor.shape) != (like.dtype, like.shape):
        return False
    with path.open("rb") as file, other_path.open("rb") as other_file:
        file.seek(tensor.start)
        other_file.seek(like.start)
        sizes = (min(BLOCK, tensor.bytes - done) for done in range(0, tensor.bytes, BLOCK))
        return all(file.read(size) == other_file.read(size) for size in sizes)
