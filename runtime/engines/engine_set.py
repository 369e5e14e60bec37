"""Engine sets: a folder that `vicort-build` wrote, opened to run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import TracebackType

import numpy as np

from vicort.runtime.argument_kinds import checked_path
from vicort.runtime.devices.device import Device
from vicort.runtime.devices.machine_cores import checked_threads
from vicort.runtime.devices.machine_memory import MachineMemory
from vicort.runtime.engines.backend import OpenBackend, open_backend
from vicort.runtime.engines.bindings import numpy_dtype
from vicort.runtime.engines.embedding import Embedding
from vicort.runtime.engines.engine import Engine
from vicort.runtime.engines.external_data import check_external_data
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import GraphName, Manifest, check_all_listed, read_manifest

logger = logging.getLogger(__name__)

# every system needs these; the largest first
REQUIRED: tuple[GraphName, ...] = ("llm", "vision", "head", "tokens")
LLM_STREAMS = 2  # one for chunks, one for questions
LANGUAGE: tuple[GraphName, ...] = ("llm", "head")  # which these streams run


class EngineSet:
    """The engines, embeddings and manifest of a model."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        engines: dict[GraphName, Engine],
        backend: OpenBackend,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._process = os.getpid()
        self._closed = False
        self._backend = backend
        self.vision = engines["vision"]
        self.tokens = engines["tokens"]
        self.llm = engines["llm"]
        self.head = engines["head"]
        self._optional: dict[GraphName, Engine] = {}
        self.embedding = Embedding(folder, manifest.embedding)

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        threads: int | None = None,
        check: Callable[[Manifest, MachineMemory], object] = lambda manifest, machine: None,
        progress: Callable[[int, int], object] = lambda loaded, total: None,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> EngineSet:
        """Load an engine set. threads: CPU threads per run of an engine; None = all that the
        process may use. check: refuses, by an exception, what these engines cannot serve, before
        they are loaded. progress: called with the number of engines loaded so far, and of all.
        meanwhile: other work of opening, done beside the largest engine where a backend loads
        several at once.

        Raises ConfigError for a number of threads that the process may not use, and EngineError,
        which names the command that rebuilds the set, if it is missing, damaged or of another
        schema, or differs from its manifest.
        """
        folder = checked_path(folder, "the engine set", "the folder that vicort-build made")
        manifest = read_manifest(folder)
        check_all_listed(folder, manifest)
        check_external_data(folder, manifest)
        threads = checked_threads(threads)
        backend = open_backend(manifest.backend, folder, threads=threads)
        check(manifest, backend.memory())
        logger.info(
            "%s: %s in %s on %s, threads of a run on a CPU: %d",
            folder,
            manifest.model.name,
            manifest.precision,
            manifest.backend,
            threads,
        )
        engines = _load_all(folder, manifest, backend, progress, meanwhile)
        return cls(folder, manifest, engines, backend)

    def engine(self, name: GraphName) -> Engine:
        """An engine by name; optional ones are loaded on first use. Raises EngineError if the set
        has none."""
        if name in REQUIRED:
            return getattr(self, name)
        if name not in self._optional:
            self._optional[name] = _load(self.folder, self.manifest, self._backend, name)
        return self._optional[name]

    @property
    def dtype(self) -> np.dtype:
        """The type of features, k and v: float32, or bfloat16 in a bf16 set."""
        return feature_dtype(self.manifest)

    @property
    def pool_dtype(self) -> np.dtype:
        """The type of keys and values in pages."""
        return pool_dtype(self.manifest)

    def new_device(self, overlap: bool = True) -> Device:
        """A new device for these engines. overlap=False: the work of each stream runs in its
        caller. Raises EngineError after `close`, and in a forked child, which has none of the
        engines' threads."""
        if self._closed:
            raise EngineError(f"the engine set {self.folder} is closed: open it again")
        if os.getpid() != self._process:
            raise EngineError(
                f"the engine set {self.folder} belongs to process {self._process}, of which this "
                "is a forked child: open it in the child, or start the child by spawn"
            )
        return self._backend.new_device(overlap)

    def close(self) -> None:
        """Release engines and files. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        del self.vision, self.tokens, self.llm, self.head, self.embedding
        del self._backend, self._optional

    def __enter__(self) -> EngineSet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def feature_dtype(manifest: Manifest) -> np.dtype:
    """float32, or bfloat16 in a bf16 set."""
    return _input_dtype(manifest, "features")


def pool_dtype(manifest: Manifest) -> np.dtype:
    """float32, bfloat16 in a bf16 set, or int8."""
    return _input_dtype(manifest, "pool")


def _input_dtype(manifest: Manifest, name: str) -> np.dtype:
    """Of an input of the language graph."""
    return next(
        numpy_dtype(spec.dtype) for spec in manifest.graphs["llm"].inputs if spec.name == name
    )


def _load_all(
    folder: Path,
    manifest: Manifest,
    backend: OpenBackend,
    progress: Callable[[int, int], object],
    meanwhile: Callable[[], object],
) -> dict[GraphName, Engine]:
    """The required engines, several at once where the backend allows it: each is loaded by one
    thread. The largest, which takes longest, is first."""
    engines: dict[GraphName, Engine] = {}
    progress(0, len(REQUIRED))
    for name, engine in _loaded(folder, manifest, backend, meanwhile):
        engines[name] = engine
        progress(len(engines), len(REQUIRED))
    return engines


def _loaded(
    folder: Path, manifest: Manifest, backend: OpenBackend, meanwhile: Callable[[], object]
) -> Iterator[tuple[GraphName, Engine]]:
    if backend.loading_threads == 1:  # by the caller: a GPU's context belongs to a thread
        for name in REQUIRED:
            yield name, _load(folder, manifest, backend, name)
        return
    with ThreadPoolExecutor(backend.loading_threads) as pool:
        loading = {pool.submit(_load, folder, manifest, backend, name): name for name in REQUIRED}
        beside = pool.submit(meanwhile)
        for future in as_completed(loading):
            yield loading[future], future.result()
        beside.result()


def _load(folder: Path, manifest: Manifest, backend: OpenBackend, name: GraphName) -> Engine:
    if name not in manifest.graphs:
        raise EngineError(f"{folder} has no {name} graph: rebuild with `{manifest.build_command}`")
    graph = manifest.graphs[name]
    began = time.perf_counter()
    try:
        engine = backend.load(
            folder / graph.file, graph, streams=LLM_STREAMS if name in LANGUAGE else 1
        )
    except EngineError as error:
        raise EngineError(f"{error}: rebuild with `{manifest.build_command}`") from error
    logger.info("loaded %s in %.2f s", folder / graph.file, time.perf_counter() - began)
    return engine
