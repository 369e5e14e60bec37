"""What the exporter is given as it was traced, and what it decomposes."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from torch import nn

from vicort.export.traced_program import trace

ROWS = torch.export.Dim("rows", min=1, max=9)


class Plain(nn.Module):
    """Everything that a trace replaces."""

    def forward(self, x, kept):
        exact = x.float()
        first, second, last = exact.square().chunk(3, dim=-1)
        mask = (kept > 0) & (kept < 4) | (kept == 7)
        sums = 1 - (first.mean(-1) + second.mean(-1)) * mask.float()
        return sums, last.double().float(), mask.to(torch.int32), exact.float()


class InPlace(nn.Module):
    def forward(self, x, kept):
        rows = x.clone()
        view = rows[:, :2]
        view += 1
        return rows, kept


class Similar(nn.Module):
    """Has an operator that only its decomposition translates."""

    def forward(self, x, kept):
        return torch.cosine_similarity(x, x + 1, dim=-1), kept


def traced(module: nn.Module):
    inputs = torch.zeros(3, 7), torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        return trace(module.eval(), inputs, ({0: ROWS}, {0: ROWS}))


@pytest.mark.parametrize("module", [Plain(), InPlace(), Similar()])
def test_the_file_computes_what_the_module_does(module):
    program = torch.onnx.export(traced(module), dynamo=True, verbose=False, optimize=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    for rows in (1, 5):
        x, kept = torch.randn(rows, 7), torch.arange(rows) * 2 - 1
        found = session.run(None, dict(zip(names, (x.numpy(), kept.numpy()), strict=True)))
        for real, expected in zip(found, module(x, kept), strict=True):
            torch.testing.assert_close(torch.from_numpy(real), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("module", "kept"), [(Plain(), True), (InPlace(), False)])
def test_only_what_changes_nothing_in_place_is_kept_as_it_is(module, kept):
    program = traced(module)
    assert (program.run_decompositions({}) is program) == kept


def test_an_operator_of_the_table_is_decomposed():
    program = traced(Similar())
    table = torch.export.default_decompositions()
    assert program.run_decompositions({}) is program
    assert program.run_decompositions(table) is not program
