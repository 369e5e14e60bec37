"""Traces that are kept from one test run to the next (`support.traces`): found again where all is
equal, and nowhere else."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir
import pytest
import torch
from support import traces
from torch import nn
from torch.export import Dim

ROOT = Path(__file__).parents[1]
LIMITS = (8, 16)


class Product(nn.Module):
    def __init__(self, seed: int = 0, scale: float = 2.0, extra: object = None) -> None:
        super().__init__()
        random = np.random.default_rng(seed)
        weight = random.normal(size=(4, 3)).astype(np.float32)
        self.weight = nn.Parameter(torch.from_numpy(weight))
        self.scale, self.extra = scale, extra

    def forward(self, x):
        return self.scale * (x @ self.weight)


class Other(Product):
    pass


@pytest.fixture
def export(tmp_path, monkeypatch):
    """torch.onnx.export as tests have it, over an empty folder; calls: what was traced."""
    monkeypatch.setattr(traces, "FOLDER", tmp_path / "traces")
    calls = []

    def traced(module, inputs, **options):
        calls.append(module)
        value = onnx_ir.Value(name="weight", const_value=onnx_ir.tensor(module.weight.detach()))
        graph = onnx_ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 21})
        return SimpleNamespace(model=onnx_ir.Model(graph, ir_version=10))

    def asked(module=None, rows=2, most=LIMITS[0], **options):
        dims = ({0: Dim("C", min=1, max=most)},)
        kept = traces._kept(traced)
        return kept(module or Product(), (torch.zeros(rows, 4),), dynamic_shapes=dims, **options)

    asked.calls = calls
    return asked


def test_what_is_equal_is_traced_once(export):
    first, second = export(), export()
    assert len(export.calls) == 1
    found = [each.model.graph.initializers["weight"].const_value for each in (first, second)]
    assert np.array_equal(found[0].numpy(), found[1].numpy())
    assert found[1].numpy().flags.writeable
    assert second.model_proto.graph.initializer[0].name == "weight"


@pytest.mark.parametrize(
    "changed",
    [
        {"module": Product(seed=1)},
        {"module": Product(scale=3.0)},
        {"module": Product(extra=(1, "a"))},
        {"module": Product().bfloat16()},
        {"module": Product().eval()},
        {"module": Other()},
        {"rows": 3},
        {"most": LIMITS[1]},
        {"opset_version": 20},
    ],
    ids=lambda changed: "-".join(changed),
)
def test_another_weight_setting_class_or_argument_is_another_trace(export, changed):
    export()
    export(**changed)
    assert len(export.calls) == 2


def test_another_version_or_source_is_another_trace(export, monkeypatch, tmp_path):
    export()
    monkeypatch.setattr(traces, "version", lambda name: "9")
    export()
    source = tmp_path / "source.py"
    source.write_text("a = 1")
    monkeypatch.setattr(traces, "_with_imports", lambda files: {source})
    export()
    source.write_text("a = 2")
    export()
    export()
    assert len(export.calls) == 4


def test_the_source_of_all_that_is_imported_counts():
    found = traces._with_imports(frozenset({ROOT / "export" / "graphs.py"}))
    wanted = {"export/onnx_function.py", "runtime/manifest.py", "runtime/vision_windows.py"}
    assert wanted < {str(path.relative_to(ROOT)) for path in found}


def test_a_module_with_something_unknown_is_traced_each_time(export):
    for _ in range(2):
        export(module=Product(extra=object()))
    assert len(export.calls) == 2
