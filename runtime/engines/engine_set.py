"""Engine sets: a folder that `vicort-build` made, opened to be run."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vicort.runtime.devices.device import Device, Event, Stream
from vicort.runtime.engines.bindings import Bindings, numpy_dtype
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import EmbeddingSpec, GraphName, GraphSpec, Manifest, read_manifest
from vicort.runtime.safe_text import shown

if TYPE_CHECKING:
    from vicort.runtime.engines.backend import OpenBackend

ALWAYS: tuple[GraphName, ...] = ("vision", "tokens", "llm")  # what every system needs
LLM_STREAMS = 2  # the stream of chunks, and a question beside it


class Engine(Protocol):
    @property
    def signature(self) -> GraphSpec: ...

    def enqueue(self, bindings: Bindings, stream: Stream) -> Event:
        """Run once on `stream`, which keeps the order. `bindings` names every input and output:
        contiguous arrays on the engine's device, of the shapes and types of `signature`, left alone
        until the event is done. Raises ValueError if they do not fit."""
        ...


class Embedding:
    """The model's token embeddings, as they lie on disk.

    `embedding[ids]` gives [n, width] float32 for [n] ids.
    """

    def __init__(self, folder: Path, spec: EmbeddingSpec) -> None:
        """Raises EngineError if the file does not hold what the manifest says."""
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
        return np.asarray(self._rows[ids], np.float32)


class EngineSet:
    """The engines of a model, its embeddings and its manifest."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        engines: dict[GraphName, Engine],
        backend: OpenBackend,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._backend = backend
        self.vision = engines["vision"]
        self.tokens = engines["tokens"]
        self.llm = engines["llm"]
        self._optional: dict[GraphName, Engine] = {}
        self.embedding = Embedding(folder, manifest.embedding)

    @classmethod
    def open(cls, folder: Path | str, *, threads: int = 1) -> EngineSet:
        """Load an engine set. threads: CPU threads that one run of an engine takes.

        Raises EngineError, naming the command that rebuilds, if the set is missing, damaged, of
        another schema, or not what its manifest says.
        """
        from vicort.runtime.engines.backend import open_backend

        folder = Path(folder)
        manifest = read_manifest(folder)
        backend = open_backend(manifest.backend, folder, threads=threads)
        return cls(
            folder,
            manifest,
            {name: _load(folder, manifest, backend, name) for name in ALWAYS},
            backend,
        )

    def engine(self, name: GraphName) -> Engine:
        """One by its name; an optional one is loaded when it is first asked for. Raises EngineError
        if the set has none."""
        if name in ALWAYS:
            return getattr(self, name)
        if name not in self._optional:
            self._optional[name] = _load(self.folder, self.manifest, self._backend, name)
        return self._optional[name]

    @property
    def dtype(self) -> np.dtype:
        """Of features, pool, k and v: float32, or bfloat16 in a bf16 set."""
        return next(
            numpy_dtype(spec.dtype)
            for spec in self.manifest.graphs["llm"].inputs
            if spec.name == "pool"
        )

    def new_device(self, overlap: bool = True) -> Device:
        """What these engines run on, with streams of its own. overlap=False: each stream's work
        runs in its caller."""
        return self._backend.new_device(overlap)

    def close(self) -> None:
        """Let go of engines and files."""
        del self.vision, self.tokens, self.llm, self.embedding, self._backend, self._optional

    def __enter__(self) -> EngineSet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _load(folder: Path, manifest: Manifest, backend: OpenBackend, name: GraphName) -> Engine:
    if name not in manifest.graphs:
        raise EngineError(f"{folder} has no {name} graph: rebuild with `{manifest.build_command}`")
    graph = manifest.graphs[name]
    try:
        return backend.load(folder / graph.file, graph, streams=LLM_STREAMS if name == "llm" else 1)
    except EngineError as error:
        raise EngineError(f"{error}: rebuild with `{manifest.build_command}`") from error
