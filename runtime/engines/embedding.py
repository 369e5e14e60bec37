"""The model's token embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from vicort.runtime.engines.bindings import numpy_dtype
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import EmbeddingSpec
from vicort.runtime.safe_text import shown


class Embedding:
    """The model's token embeddings, memory-mapped: `embedding[ids]` is [n,width] float32 for [n]
    ids.

    The language graph has no copy of them: `LanguageRun` uploads the rows of text.
    """

    def __init__(self, folder: Path, spec: EmbeddingSpec) -> None:
        """Raises EngineError if the file is shorter than the manifest says."""
        try:
            dtype = numpy_dtype(spec.dtype)
            self._rows = np.memmap(
                folder / spec.file, dtype, "r", offset=spec.offset, shape=(spec.rows, spec.width)
            )
        except (OSError, TypeError, ValueError, OverflowError) as error:
            what = f"{spec.rows} rows of {spec.width} {shown(spec.dtype)} from byte {spec.offset}"
            raise EngineError(
                f"{folder / spec.file} does not hold {what}: build the engine set again with "
                "vicort-build"
            ) from error

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        return self.rows(ids, np.float32)

    def rows(self, ids: np.ndarray, dtype: DTypeLike) -> np.ndarray:
        """[n,width] of `dtype` for [n] ids, converted once at most."""
        return np.asarray(self._rows[ids], dtype)
