"""The output head as a graph of its own, and the file of the token embedding: what is stored once,
and in which type."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engine_sets import TOKENIZER
from support.reference_model import write_random_checkpoint
from torch import Tensor

from vicort.export.engine_set_writer import PlanOptions, draft_manifest
from vicort.export.graphs import Written, export_graph, signatures, write_embedding, write_graph
from vicort.export.qwen2_5_vl.adapter import Adapter, LowRank
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.language import OutputHead
from vicort.export.qwen2_5_vl.weights import load_language, stores_bfloat16_embedding
from vicort.export.recipe import load_recipe, model_spec
from vicort.export.weight_compression import TYPES, Scheme, compress
from vicort.runtime.engines.embedding import Embedding
from vicort.runtime.manifest import EmbeddingSpec

VOCABULARY, WIDTH = 96, 128
STRIPPED = PlanOptions("tensorrt_rtx", strip=True)
PLANS = PlanOptions("tensorrt_rtx")


def made(folder: Path, tied: bool, stored: torch.dtype) -> Path:
    folder.mkdir()
    small = {"text": {"num_hidden_layers": 1}, "vision": {"depth": 1, "fullatt_block_indexes": [0]}}
    write_random_checkpoint(folder, "tiny", seed=4, tied=tied, **small)
    shutil.copy(TOKENIZER, folder)
    path = folder / "model.safetensors"
    save_file({name: tensor.to(stored) for name, tensor in load_file(path).items()}, path)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "tied": made(root / "tied", True, torch.bfloat16),
        "own head": made(root / "own", False, torch.bfloat16),
        "float16": made(root / "float16", False, torch.float16),
    }


def embedding_of(folder: Path, precision="fp32", **changes) -> EmbeddingSpec:
    spec = model_spec("m", read_configuration(folder), load_recipe("m"))
    backend = "tensorrt" if changes.get("options") else "openvino"
    return draft_manifest(folder, spec, backend, precision, "", **changes).embedding


@pytest.mark.parametrize(
    ("kind", "precision", "changes", "dtype"),
    [
        ("tied", "fp32", {}, "float32"),  # of which head.onnx has a part
        ("own head", "fp32", {}, "bfloat16"),
        ("tied", "fp32", {"weights": "int8"}, "bfloat16"),
        ("own head", "fp32", {"weights": "int4"}, "bfloat16"),
        ("tied", "bf16", {}, "bfloat16"),
        ("tied", "fp32", {"options": PLANS}, "bfloat16"),
        ("tied", "fp32", {"options": STRIPPED}, "float32"),
        ("float16", "fp32", {}, "float32"),
        ("float16", "fp32", {"weights": "int8"}, "float32"),
        ("float16", "bf16", {}, "bfloat16"),
    ],
)
def test_the_embedding_keeps_the_checkpoints_bfloat16_where_no_head_refers_to_it(
    kind, precision, changes, dtype, checkpoints
):
    assert embedding_of(checkpoints[kind], precision, **changes).dtype == dtype


def test_an_embedding_that_an_adapter_changes_is_no_bfloat16_of_the_checkpoint(checkpoints):
    update = LowRank(torch.ones(1, WIDTH), torch.ones(VOCABULARY, 1), 1.0)
    adapter = Adapter(checkpoints["tied"], {"model.embed_tokens.weight": update})
    assert stores_bfloat16_embedding(checkpoints["tied"])
    assert not stores_bfloat16_embedding(checkpoints["tied"], adapter)


def written(
    folder: Path, checkpoint: Path, scheme: Scheme | None, kept: str
) -> tuple[OutputHead, Tensor]:
    """Write embedding.bin and head.onnx as a build does. Returns the module, and the rows of the
    embedding."""
    config = read_configuration(checkpoint)
    language = load_language(checkpoint, config, as_stored=scheme is not None)
    graph = signatures(model_spec("m", config, load_recipe("m")), "fp32")["head"]
    files: Written = {}
    write_embedding(language.embed_tokens.weight, folder, getattr(torch, kept), files)
    exported, _ = export_graph(OutputHead(language).eval(), graph, keep_weights=True)
    if scheme:
        assert compress(exported, scheme) == {"int8": 1}
    list(write_graph(exported, folder / "head.onnx", files))
    return OutputHead(language), language.embed_tokens.weight.detach()


INT8 = Scheme(True, True, TYPES["fp32"])


@pytest.mark.parametrize(
    ("kind", "scheme", "kept", "files"),
    [
        ("tied", None, "float32", {"embedding.bin"}),
        ("own head", None, "bfloat16", {"embedding.bin", "head.bin"}),
        ("tied", INT8, "bfloat16", {"embedding.bin", "head.bin"}),
    ],
)
def test_the_heads_weight_is_stored_once(kind, scheme, kept, files, checkpoints, tmp_path):
    head, rows = written(tmp_path, checkpoints[kind], scheme, kept)
    assert {path.name for path in tmp_path.glob("*.bin")} == files
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*.bin")}
    item = {"float32": 4, "bfloat16": 2}[kept]
    assert sizes["embedding.bin"] == VOCABULARY * WIDTH * item
    if "head.bin" in sizes:
        assert sizes["head.bin"] < VOCABULARY * WIDTH * (1.5 if scheme else 4) + 1
    hidden = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(
        tmp_path / "head.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"hidden": hidden.numpy()})
    right = head(hidden).detach().numpy()
    assert np.abs(logits - right).max() < (5e-2 if scheme else 1e-5) * np.abs(right).max()
    spec = EmbeddingSpec(file="embedding.bin", offset=0, dtype=kept, rows=VOCABULARY, width=WIDTH)
    ids = np.array([0, VOCABULARY - 1, 3])
    # lossless, and equal to what a set in float32 has
    assert np.array_equal(Embedding(tmp_path, spec)[ids], rows[ids].float().numpy())
