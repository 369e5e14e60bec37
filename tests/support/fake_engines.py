"""An engine set in plain NumPy: the contracts of the graphs, stated once more, on a random
model of toy size.

It lets the whole runtime be tested without weights, torch or a compiler, and it counts what it is
asked to do.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from vicort.runtime.devices.host import HostDevice
from vicort.runtime.manifest import (
    KV,
    Dimension,
    EmbeddingSpec,
    GraphSpec,
    Manifest,
    ModelSpec,
)

TOKENIZER = Path(__file__).parents[2] / "export" / "tiny" / "checkpoint"
SECTIONS, THETA = (1, 1, 2), 100.0


def toy_model(**changes) -> ModelSpec:
    facts = {
        "name": "toy",
        "layers": 2,
        "width": 16,
        "query_heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "vocabulary": 101,
        "patch": 2,
        "merge": 2,
        "window": 2,
        "fps": 2.0,
        "tokens_per_second": 1.0,
        "chunk_frames": 8,
        "page_tokens": 4,
        "max_rows": 32,
        "observed_rows": 8,
        "max_position": 1 << 20,
        "rotary_sections": SECTIONS,
        "rotary_theta": THETA,
        "eos_tokens": (),
        "video_token": _special_token("<|video_pad|>"),
    }
    grid = changes.pop("grid", (2, 2))  # None: sizes follow the source
    if grid:
        rows, columns = grid
        side = (facts | changes)["patch"] * (facts | changes)["merge"]
        height, width = rows * side, columns * side
        facts |= {"fixed_size": (height, width), "max_pixels": height * width}
    else:
        facts["fixed_size"] = None
    return ModelSpec(**(facts | changes))


class FakeEmbedding(np.ndarray):
    """[V,width] float32, with the interface of the runtime's `Embedding`."""

    def rows(self, ids, dtype):
        return np.asarray(self[ids], dtype)


class FakeEngine:
    """A graph as a function from named inputs to named outputs."""

    def __init__(self, function) -> None:
        self.function = function
        self.runs: list[dict[str, tuple[int, ...]]] = []  # shapes of each run's bindings

    @property
    def signature(self) -> GraphSpec:
        return GraphSpec(
            file="graph.onnx",
            inputs=(),
            outputs=(),
            dimensions={"C": Dimension(min=1, opt=8, max=32)},
        )

    def enqueue(self, bindings, stream):
        def work():
            self.runs.append({name: array.shape for name, array in bindings.items()})
            for name, value in self.function(**bindings).items():
                assert bindings[name].shape == value.shape, (
                    name,
                    bindings[name].shape,
                    value.shape,
                )
                bindings[name][...] = value

        return stream.run(work)


class FakeEngineSet:
    """What `EngineSet.open` gives, without files."""

    def __init__(self, seed: int = 0, kv: KV = "float", **model_changes) -> None:
        self.model = toy_model(**model_changes)
        self.folder, self.dtype = TOKENIZER, np.dtype(np.float32)
        self.pool_dtype = np.dtype(np.int8) if kv == "int8" else self.dtype
        random = np.random.default_rng(seed)
        m = self.model
        rows = random.normal(size=(m.vocabulary, m.width)).astype(np.float32)
        self.embedding = rows.view(FakeEmbedding)
        self._pixels = random.normal(size=(2 * m.token_pixels**2 * 3, m.width))
        self._layers = [
            {
                name: random.normal(size=(m.width, heads * m.head_dim)) / m.width**0.5
                for name, heads in _heads(m).items()
            }
            | {"o": random.normal(size=(m.query_heads * m.head_dim, m.width)) / m.width**0.5}
            for _ in range(m.layers)
        ]
        self.vision, self.tokens, self.llm, self.head = (
            FakeEngine(f) for f in (self._see, control_tokens, self._read, self._choose)
        )
        self.pruned = FakeEngine(self._see_some)
        self.manifest = Manifest(
            backend="onnxruntime",
            precision="fp32",
            kv=kv,
            model=m,
            graphs={
                "vision_pruned": GraphSpec(
                    file="vision_pruned.onnx", inputs=(), outputs=(), dimensions={}
                )
            },
            embedding=EmbeddingSpec(
                file="embedding.bin", offset=0, dtype="float32", rows=m.vocabulary, width=m.width
            ),
            checkpoint="",
            target="",
            versions={},
            build_command="",
        )

    def new_device(self, overlap=True):
        return HostDevice(threads=overlap)

    def _see(self, frames, places=None, **_):
        if places is not None:  # frames come as segments
            rows, columns = (places.max(axis=0) + 1) * self.model.patch
            frames = frames.reshape(len(frames), rows, columns, 3)
        return {"features": self.see(frames)}

    def see(self, frames):
        """[2U,height,width,3] -> [U,P,width]"""
        side, units = self.model.token_pixels, len(frames) // 2
        gh, gw = frames.shape[1] // side, frames.shape[2] // side
        cells = frames.reshape(units, 2, gh, side, gw, side, 3).astype(np.float64) / 255 - 0.5
        return cells.transpose(0, 2, 4, 1, 3, 5, 6).reshape(units, gh * gw, -1) @ self._pixels

    def engine(self, name):
        return {
            "vision": self.vision,
            "tokens": self.tokens,
            "llm": self.llm,
            "head": self.head,
            "vision_pruned": self.pruned,
        }[name]

    def _see_some(self, frames, kept, token_places=None, **_):
        places = None if token_places is None else token_places.reshape(-1, 2)
        seen = self._see(frames, places)["features"]
        return {
            "features": np.where(
                kept[..., None] >= 0,
                np.take_along_axis(seen, np.maximum(kept, 0)[..., None], axis=1),
                0,
            )
        }

    def _read(self, features, pos, segment, until, ends, pool, where, table, scales=None, **_):
        m = self.model
        assert table.shape[0] == 1  # as the runtime has it so far
        assert not segment.any()
        cells = pool if scales is None else pool * scales[..., None]
        x = features.astype(np.float64)
        real = pos[:, 0] >= 0
        keys, values, means, queries = [], [], [], []
        for layer, weights in enumerate(self._layers):
            q, k, v = (
                (x @ weights[name]).reshape(len(x), heads, m.head_dim)
                for name, heads in _heads(m).items()
            )
            x = (
                x
                + bounded_attention(q, k, v, pos, until, cells, where, table[0], layer).reshape(
                    len(x), -1
                )
                @ weights["o"]
            )
            keys.append(k)
            values.append(v)
            means.append(q[real].mean(axis=0))
            queries.append(
                np.concatenate([np.zeros((m.observed_rows, *q.shape[1:])), q[real]])[
                    -m.observed_rows :
                ]
            )
        assert real[ends].all()
        outputs = {"k": keys, "v": values, "q": means, "queries": queries}
        return {"hidden": x[ends]} | {name: np.array(layers) for name, layers in outputs.items()}

    def _choose(self, hidden, **_):
        return {"logits": np.asarray(hidden @ self.embedding.T)}


def bounded_attention(q, k, v, pos, until, pool, where, table, layer):
    """The language graph's attention, one query and one head at a time: each row sees the cells of
    the table that hold a token, and of the rows up to itself those whose `until` is after it."""
    out = np.zeros(q.shape)
    group = q.shape[1] // k.shape[1]
    rows = np.flatnonzero(pos[:, 0] >= 0)
    hidden = until[rows] <= rows[:, None]  # [query row, row]
    for head in range(q.shape[1]):
        kv = head // group
        if head % group == 0:  # the first that reads this KV head
            slots = table[min(layer, len(table) - 1), min(kv, table.shape[1] - 1)]
            slots = slots[slots >= 0]
            places = where[slots, min(layer, where.shape[1] - 1), min(kv, where.shape[2] - 1)]
            is_filled = places[..., 0] >= 0  # [slots, T]
            cached_k, cached_v = (pool[slots, layer, kv, side][is_filled] for side in (0, 1))
            keys = np.concatenate(
                [rotate(cached_k, places[is_filled]), rotate(k[rows, kv], pos[rows])]
            )
            values = np.concatenate([cached_v, v[rows, kv]]).astype(np.float64)
        queries = rotate(q[rows, head], pos[rows])
        for count, (row, query) in enumerate(zip(rows, queries, strict=True), len(cached_k) + 1):
            scores = keys[:count] @ query / q.shape[2] ** 0.5
            number = count - len(cached_k)
            scores[len(cached_k) :][hidden[number - 1, :number]] = -np.inf
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values[:count] / weights.sum()
    return out


def rotate(x, position, sections=SECTIONS, theta=THETA):
    """x: [..., D] at positions [..., 3]."""
    half = x.shape[-1] // 2
    axis, frequency = _rotary_axes(half, tuple(sections), theta)
    angle = position[..., axis] * frequency
    a, b, cos, sin = x[..., :half], x[..., half:], np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@functools.cache
def _rotary_axes(half, sections, theta):
    """Of each of D / 2 frequencies: the index of its position in (t, h, w), and itself."""
    return np.repeat(np.arange(3), sections), theta ** -(np.arange(half) / half)


def control_tokens(features, threshold, positions, kept, before=None, mode=(0,), **_):
    """ViCoStream's chunk-intra rule, or TimeChat-Online's from unit to unit, in words."""
    units, tokens, width = features.shape
    norm = features / np.linalg.norm(features, axis=-1, keepdims=True)
    least = (norm[1:] * norm[:-1]).sum(-1).min(axis=0) if units > 1 else np.full(tokens, 2.0)
    hot = least < threshold[0]
    hot[np.argsort(least, kind="stable")[: positions[0]]] = True
    keep = np.tile(hot, (units, 1))
    keep[0] = True
    if mode[0]:
        whole = norm if mode[0] == 1 else np.concatenate([[before], features])
        whole = whole / np.linalg.norm(whole, axis=-1, keepdims=True)
        changed = (whole[1:] * whole[:-1]).sum(-1) <= threshold[0]
        keep = np.concatenate([[np.ones(tokens, bool)], changed]) if mode[0] == 1 else changed
    chosen = np.flatnonzero(keep.reshape(-1))
    rows = features.reshape(-1, width)[chosen]
    padding = units * tokens - len(chosen)
    return {
        "kept": np.concatenate([chosen, np.full(padding, -1)]).astype(np.int32),
        "count": np.array([len(chosen)], np.int32),
        "compact": np.concatenate([rows, np.zeros((padding, width), np.float32)]),
        "mean": rows.sum(axis=0) / max(len(chosen), 1),
    }


def _heads(m: ModelSpec) -> dict[str, int]:
    return {"q": m.query_heads, "k": m.kv_heads, "v": m.kv_heads}


def _special_token(text: str) -> int:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(TOKENIZER / "tokenizer.json")).token_to_id(text)
