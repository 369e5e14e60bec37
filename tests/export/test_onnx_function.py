"""The ONNX function body of BoundedAttention, in both CPU engines, against the PyTorch form."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_ir import serde
from support.row_trees import attention_in_one_place, path, random_tree, with_any_padding
from support.sizes import examples

from vicort.export import onnx_function
from vicort.export.graphs import expand, export_graph
from vicort.runtime.manifest import Dimension, GraphSpec, TensorSpec

LAYERS, HEADS, GROUP, TOKENS, DIM = 3, 2, 3, 4, 16
SECTIONS, THETA, SCALE = [2, 3, 3], 1e4, 0.3
VARYING = ("C", "P", "S", "N", "where_layers", "where_heads", "table_layers", "table_heads")
# pool and rotary embedding of a graph
FORMS = {"float": (False, False), "int8": (True, False), "interleaved": (False, True)}


class AllLayers(torch.nn.Module):
    """The op for every layer at once, on the same new tokens: [L,C,Hq,D]."""

    def __init__(self, interleaved=False):
        super().__init__()
        self.how = (SCALE, SECTIONS, THETA, interleaved)

    def forward(self, q, k, v, pos, segment, until, pool, where, table, scales=None):
        op = torch.ops.vicort.bounded_attention
        inputs = (q, k, v, pos, segment, until, pool, where, table, scales)
        return torch.stack([op(*inputs, layer, *self.how) for layer in range(LAYERS)])


def graph(quantised: bool) -> GraphSpec:
    def spec(name, dtype, *shape):
        return TensorSpec(name=name, dtype=dtype, shape=shape)

    kind, cells = "float32", ("P", LAYERS, HEADS, 2, TOKENS)
    inputs = (
        spec("q", kind, "C", HEADS * GROUP, DIM),
        spec("k", kind, "C", HEADS, DIM),
        spec("v", kind, "C", HEADS, DIM),
        spec("pos", "int32", "C", 3),
        spec("segment", "int32", "C"),
        spec("until", "int32", "C"),
        spec("pool", "int8" if quantised else kind, *cells, DIM),
        spec("where", "int32", "P", "where_layers", "where_heads", TOKENS, 3),
        spec("table", "int32", "S", "table_layers", "table_heads", "N"),
        *((spec("scales", "float32", *cells),) if quantised else ()),
    )
    output = spec("o", kind, LAYERS, "C", HEADS * GROUP, DIM)
    return GraphSpec(
        file="attention.onnx",
        inputs=inputs,
        outputs=(output,),
        dimensions={n: Dimension(min=1, opt=9, max=99) for n in VARYING},
    )


@pytest.fixture(scope="module", params=FORMS)
def form(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def expanded(form) -> onnx.ModelProto:
    quantised, interleaved = FORMS[form]
    model, count = export_graph(AllLayers(interleaved), graph(quantised))
    assert count == LAYERS
    expand(model)
    return serde.serialize_model(model)


@pytest.fixture(scope="module")
def engines(expanded, tmp_path_factory):
    path = tmp_path_factory.mktemp("attention") / "attention.onnx"
    onnx.save(expanded, path)
    session = onnxruntime.InferenceSession(path)
    compiled = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    return {
        "onnxruntime": lambda feed: session.run(None, feed)[0],
        "openvino": lambda feed: compiled(feed)[0],
    }


def sample(case, quantised=False) -> dict[str, np.ndarray]:
    """Random input; what must not be read holds NaN, in an int8 pool as its scale."""
    random = np.random.default_rng(case.seed)
    q, k, v = (
        random.standard_normal((case.rows, heads, DIM), np.float32)
        for heads in (HEADS * GROUP, HEADS, HEADS)
    )
    pos = random.integers(0, case.reach, (case.rows, 3)).astype(np.int32)
    padding = random.random(case.rows) < case.holes
    pos[padding] = -1
    cells = (case.pages, LAYERS, HEADS, 2, TOKENS)
    if quantised:
        pool = random.integers(-127, 128, (*cells, DIM)).astype(np.int8)
        numbers = {"scales": random.uniform(0, 0.02, cells).astype(np.float32)}
    else:
        pool = random.standard_normal((*cells, DIM), np.float32)
        numbers = {"pool": pool}
    where = random.integers(
        0, case.reach, (case.pages, case.where[0], case.where[1], TOKENS, 3)
    ).astype(np.int32)
    empty = random.random(where.shape[:-1]) < case.holes
    where[empty] = -1
    table = random.integers(-1, case.pages, (case.segments, *case.table, case.slots)).astype(
        np.int32
    )
    segment = random.integers(0, case.segments, case.rows).astype(np.int32)
    until = with_any_padding(random, random_tree(random, case.rows), pos)
    if case.poison:
        for array in (q, k, v):
            array[padding] = np.nan
        everywhere = np.broadcast_to(empty, (case.pages, LAYERS, HEADS, TOKENS))
        next(iter(numbers.values())).swapaxes(3, 4)[everywhere] = np.nan
    new = {"q": q, "k": k, "v": v, "pos": pos, "segment": segment, "until": until}
    return new | {"pool": pool, "where": where, "table": table} | numbers


def reference(feed: dict[str, np.ndarray], interleaved: bool = False) -> np.ndarray:
    tensors = {name: torch.from_numpy(array) for name, array in feed.items()}
    return AllLayers(interleaved)(**tensors).numpy()


# one for all, one a layer, one a layer and head
kept_by = st.tuples(st.sampled_from([1, LAYERS]), st.sampled_from([1, HEADS]))
cases = st.builds(
    SimpleNamespace,
    rows=st.integers(1, 9),
    pages=st.integers(1, 6),
    slots=st.integers(1, 7),
    segments=st.integers(1, 3),
    where=kept_by,
    table=kept_by,
    holes=st.sampled_from([0.0, 0.3, 1.0]),
    reach=st.sampled_from([8, 2000, 120_000]),
    poison=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


def with_engines(count: int):
    return settings(
        max_examples=examples(count),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@with_engines(60)
@given(case=cases)
def test_the_function_body_equals_the_torch_form_in_both_engines(engines, form, case):
    quantised, interleaved = FORMS[form]
    feed = sample(case, quantised)
    want = reference(feed, interleaved)
    assert np.isfinite(want).all()
    for name, run in engines.items():
        np.testing.assert_allclose(run(feed), want, rtol=0, atol=5e-6, err_msg=name)


@with_engines(15)
@given(case=cases)
def test_a_row_of_a_tree_sees_what_the_rule_in_numpy_says(engines, form, case):
    case.where = case.table = (1, 1)
    feed = sample(case, FORMS[form][0])
    for name in ("pos", "where"):
        feed[name][feed[name][..., 0] >= 0] = 7
    for name in ("q", "k", "v", "pool", "scales"):
        if name in feed:
            feed[name] = np.nan_to_num(feed[name])
    for name, run in engines.items():
        found = run(feed)
        for layer in range(LAYERS):
            wanted = attention_in_one_place(feed, layer, SCALE)
            np.testing.assert_allclose(found[layer], wanted, rtol=0, atol=1e-5, err_msg=name)


@with_engines(15)
@given(case=cases)
def test_a_node_of_a_tree_among_the_others_is_its_path_alone(engines, form, case):
    """With a table for each of the path's rows, and padding inside blocks."""
    feed = sample(case, FORMS[form][0])
    for name, run in engines.items():
        together = run(feed)
        for row in range(case.rows)[-2:]:
            mine = path(feed["until"], row)
            alone = feed | {each: feed[each][mine] for each in ("q", "k", "v", "pos", "segment")}
            alone["until"] = np.full(len(mine), len(mine), np.int32)
            if feed["pos"][row, 0] >= 0:
                found = run(alone)[:, -1]
                np.testing.assert_allclose(together[:, row], found, rtol=0, atol=5e-6, err_msg=name)


def test_work_that_all_layers_share_is_there_once(expanded):
    kinds = [node.op_type for node in expanded.graph.node]
    assert not expanded.functions
    assert kinds.count("Softmax") == LAYERS
    # of the new tokens, and of the cached ones
    assert kinds.count("Cos") == kinds.count("Sin") == 2
    assert kinds.count("GatherND") == 1  # the cached tokens' positions


@pytest.mark.parametrize("quantised", [False, True])
def test_the_file_is_valid_and_runs_with_the_function_kept(quantised):
    names = [*onnx_function.INPUTS, *([onnx_function.SCALES] if quantised else [])]
    case = SimpleNamespace(
        rows=5,
        pages=4,
        slots=3,
        segments=2,
        where=(LAYERS, 1),
        table=(1, HEADS),
        holes=0.3,
        reach=500,
        poison=True,
        seed=1,
    )
    feed = sample(case, quantised)
    program = torch.onnx.export(
        AllLayers().eval(),
        tuple(torch.from_numpy(feed[name]) for name in names),
        dynamo=True,
        opset_version=onnx_function.OPSET,
        input_names=names,
        custom_translation_table=onnx_function.translation_table(),
        verbose=False,
    )
    onnx_function.add_function_body(program.model)
    model = program.model_proto
    onnx.checker.check_model(model)
    assert sum(node.op_type == "BoundedAttention" for node in model.graph.node) == LAYERS
    real = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    np.testing.assert_allclose(real, reference(feed), rtol=0, atol=5e-6)


@pytest.mark.parametrize(("theta", "count"), [(1e6, 64), (1e4, 16)])
def test_rotary_frequencies_are_those_of_transformers_to_the_last_bit(theta, count):
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": [count - 2, 1, 1]}
    config = Qwen2_5_VLTextConfig(
        hidden_size=4 * count, num_attention_heads=2, rope_parameters=rope
    )
    assert (
        onnx_function.rotary_frequencies(theta, count)
        == Qwen2_5_VLRotaryEmbedding(config).inv_freq.tolist()
    )
