"""int8 products as onnxruntime's operators, beside the dequantised product in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from support.int8_product import product
from support.sizes import examples

from vicort.export.int8_products import Arithmetic, use_operators

EXACT = Arithmetic(many_rows=True)
IN_GROUPS = Arithmetic(many_rows=False)
BY_ROW = Arithmetic(many_rows=True, rounded=True)
DOWN = "encoder.blocks.0.mlp.down_proj.weight"


def replaced(model: onnx.ModelProto, arithmetic: Arithmetic) -> onnx.ModelProto:
    graph = onnx_ir.from_proto(model)
    assert use_operators(graph, arithmetic) == 1
    return onnx_ir.to_proto(graph)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})[0]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


shapes = st.tuples(st.integers(16, 300), st.integers(1, 40))


@settings(max_examples=examples(75), deadline=None)
@given(st.integers(0, 2**32 - 1), shapes, st.booleans())
def test_weights_of_a_column_keep_their_integers_and_scales(seed, shape, many_rows):
    random = np.random.default_rng(seed)
    model, weight = product(random, *shape, groups=None)
    written = replaced(model, Arithmetic(many_rows))
    assert operators(written) == ["MatMulNBits"]
    x = random.standard_normal((2, 3, shape[0]), np.float32)
    right = x @ weight
    allowed = 1e-5 if many_rows else 2e-2
    assert np.abs(run(written, x) - right).max() < allowed * np.abs(right).max()


@settings(max_examples=examples(45), deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 32, 64, 128]), st.integers(1, 4))
def test_weights_in_groups_keep_their_zero_points(seed, group, groups):
    random = np.random.default_rng(seed)
    model, weight = product(random, group * groups, 24, groups=groups)
    for arithmetic in (EXACT, BY_ROW):
        x = random.standard_normal((1, 5, group * groups), np.float32)
        right = x @ weight
        allowed = 1e-5 if groups > 1 or not arithmetic.rounded else 2e-2
        error = np.abs(run(replaced(model, arithmetic), x) - right).max()
        assert error < allowed * np.abs(right).max()


@settings(max_examples=examples(45), deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-4, 4))
def test_each_row_is_rounded_with_a_scale_of_its_own(seed, magnitude):
    random = np.random.default_rng(seed)
    model, weight = product(random, 160, 32, groups=None)
    written = replaced(model, BY_ROW)
    assert "MatMulIntegerToFloat" in operators(written)
    x = random.standard_normal((2, 4, 160), np.float32)
    alone = run(written, x[:1, :1])
    x[1] *= np.float32(10**magnitude)  # other rows do not count
    x[0, 1] = 0
    together = run(written, x)
    assert np.array_equal(together[:1, :1], alone)
    assert not together[0, 1].any()
    half_steps = np.abs(x).max(-1, keepdims=True) / 127 / 2  # the most that rounding moves an input
    most = half_steps * np.abs(weight).sum(0)
    assert (np.abs(together - x @ weight) <= 1.001 * most + 1e-30).all()


def test_weights_at_their_limits_do_not_overflow():
    model, _ = product(np.random.default_rng(0), 512, 8, groups=None)
    x = np.ones((1, 1, 512), np.float32)
    for value in (127, -128, 0):
        model.graph.initializer[0].raw_data = np.full((512, 8), value, np.int8).tobytes()
        scales = np.frombuffer(model.graph.initializer[1].raw_data, np.float32)
        right = 512 * value * scales
        assert np.allclose(run(replaced(model, BY_ROW), x)[0, 0], right, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [DOWN, "patch_embed.weight", "merger.mlp.0.weight", "lm_head.weight"]
)
def test_products_whose_inputs_have_outliers_and_those_outside_of_blocks_stay_exact(name: str):
    model, _ = product(np.random.default_rng(0), 64, 8, groups=None, name=name)
    assert operators(replaced(model, BY_ROW)) == ["MatMulNBits"]


def test_a_matrix_of_two_products_is_stored_once():
    model, weight = product(np.random.default_rng(0), 64, 64, groups=None)
    model.graph.node[1].output[0] = "h"
    model.graph.node.append(helper.make_node("MatMul", ["h", "w"], ["y"]))
    for arithmetic in (EXACT, BY_ROW):
        graph = onnx_ir.from_proto(model)
        assert use_operators(graph, arithmetic) == 2
        written = onnx_ir.to_proto(graph)
        big = [each for each in written.graph.initializer if np.prod(each.dims) >= 64 * 64]
        assert len(big) == 1
        x = np.random.default_rng(1).standard_normal((1, 2, 64), np.float32)
        right = x @ weight @ weight
        assert np.abs(run(written, x) - right).max() < 2e-2 * np.abs(right).max()
