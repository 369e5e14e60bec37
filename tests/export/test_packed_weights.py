"""Quantised weights are read as the projects that pack them mean them; damaged ones are refused in
one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from support.plain_packing import drawn
from torch import Tensor

from vicort.export.qwen2_5_vl.checkpoint_quantisation import read_quantisation
from vicort.export.qwen2_5_vl.packed_weights import AwqLayout, GptqLayout, PackedWeight
from vicort.export.qwen2_5_vl.stored_tensors import CheckpointTensor, StoredModule, open_stored
from vicort.runtime.errors import EngineError

# written by make_packed_weights.py with the code of other projects
PACKED = Path(__file__).parents[1] / "fixtures" / "packed_weights.safetensors"
with safe_open(PACKED, framework="pt") as file:
    CONFIGS = {name: json.loads(config) for name, config in sorted(file.metadata().items())}
INTEGERS = [name for name in CONFIGS if not name.startswith("f")]
FLOATS = [name for name in CONFIGS if name.startswith("f")]
Tensors = dict[str, Tensor]


def case(name: str, role: str) -> Tensors:
    with safe_open(PACKED, framework="pt") as file:
        prefix = f"{name}/{role}."
        return {
            key.removeprefix(prefix): file.get_tensor(key)
            for key in file.keys()  # noqa: SIM118 (the file cannot be iterated)
            if key.startswith(prefix)
        }


def stored_module(tensors: Tensors, folder: Path) -> StoredModule:
    save_file({f"layer.{leaf}": tensor for leaf, tensor in tensors.items()}, folder / "weights")
    opened = open_stored(folder / "weights")
    return StoredModule("layer", {key.removeprefix("layer."): each for key, each in opened.items()})


def layout_of(config: object, folder: Path):
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return read_quantisation(folder)


def read(name: str, folder: Path, change: Callable[[Tensors], object] = lambda tensors: None):
    """The weight of a case, after its tensors were changed."""
    tensors = case(name, "stored")
    change(tensors)
    return layout_of(CONFIGS[name], folder).read(stored_module(tensors, folder), (32, 32))


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_those_that_others_packed(name, tmp_path):
    weight, expected = read(name, tmp_path), case(name, "expected")
    assert torch.equal(weight.values, expected["values"])
    assert torch.equal(weight.zeros, expected["zeros"])
    assert weight.zeros.shape == weight.scales.shape == (32, 32 // weight.group)
    assert weight.bits == CONFIGS[name].get("bits", 4 if name == "pack-quantized" else 8)
    assert (weight.values.dtype, weight.scales.dtype) == (torch.uint8, torch.float32)


def test_the_fixture_tells_orders_and_offsets_apart():
    """It would show an order that is not undone, and a zero point that is one too small."""
    assert {len(case(name, "expected")["values"].unique()) for name in INTEGERS} >= {16}
    assert case("gptq-v2", "expected")["zeros"].min() == 0
    assert case("gptq-v1-zero-0", "expected")["zeros"].min() == 0
    order = case("gptq-act-order", "stored")["g_idx"]
    assert not torch.equal(order, order.sort().values)
    assert {name for name in CONFIGS if CONFIGS[name].get("sym")} == {"gptq"}


@pytest.mark.parametrize("name", INTEGERS)
def test_each_number_is_value_minus_zero_times_scale(name, tmp_path):
    weight, stored = read(name, tmp_path), case(name, "stored")
    order = stored.get("g_idx", torch.arange(32) // weight.group).tolist()
    assert (weight.order is None) == (order == sorted(order))
    scales = stored["scales"].T if "scales" in stored else stored["weight_scale"]
    dequantised = weight.dequantised()
    assert dequantised.dtype == torch.float32
    for row, column in torch.cartesian_prod(torch.arange(32), torch.arange(32)).tolist():
        group = order[column]
        value = int(weight.values[row, column]) - int(weight.zeros[row, group])
        assert dequantised[row, column] == value * float(scales[row, group])


@pytest.mark.parametrize("name", FLOATS)
def test_8_bit_floats_are_what_their_own_project_makes_of_them(name, tmp_path):
    weight, expected = read(name, tmp_path), case(name, "expected")["weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight.to(expected.dtype), expected)
    assert weight.unique().numel() > 50


def test_blocks_that_the_weight_does_not_fill(tmp_path):
    """The vision encoder's 3,420 columns are no multiple of 128."""
    weight = torch.randn(40, 56).to(torch.float8_e4m3fn)
    scales = torch.rand(3, 4) + 0.5
    tensors = {"weight": weight, "weight_scale_inv": scales}
    read = layout_of(CONFIGS["fp8"], tmp_path).read(stored_module(tensors, tmp_path), (40, 56))
    for row, column in ((0, 0), (15, 16), (39, 55), (32, 47)):
        exact = float(weight[row, column].float()) * float(scales[row // 16, column // 16])
        assert read[row, column] == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((8,), {"strategy": "channel"}), ((), {"strategy": "tensor"}), ((1,), {"strategy": "tensor"})],
)
@pytest.mark.parametrize("number", ["int", "float"])
def test_scales_without_a_second_axis(shape, scales, number, tmp_path):
    """Older tools write [out] and [] as well as [out,1] and [1]."""
    kind = torch.int8 if number == "int" else torch.float8_e4m3fn
    weight = torch.randint(-8, 8, (8, 16)).to(kind)
    stored = {"weight": weight, "weight_scale": torch.rand(shape) + 0.5}
    arguments = {"type": number, "num_bits": 8, "symmetric": True} | scales
    config = {"quant_method": "compressed-tensors", "format": f"{number}-quantized"}
    config |= {"config_groups": {"group_0": {"weights": arguments}}}
    read = layout_of(config, tmp_path).read(stored_module(stored, tmp_path), (8, 16))
    read = read.dequantised() if isinstance(read, PackedWeight) else read
    assert torch.equal(read, weight.float() * stored["weight_scale"].reshape(-1, 1))


def test_asymmetric_int8(tmp_path):
    weight, zero = torch.randint(-128, 128, (8, 16)), torch.randint(-128, 128, (8, 1))
    scale = torch.rand(8, 1)
    stored = {"weight": weight.to(torch.int8), "weight_zero_point": zero.to(torch.int8)}
    arguments = {"type": "int", "num_bits": 8, "symmetric": False, "strategy": "channel"}
    config = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    config |= {"config_groups": {"group_0": {"weights": arguments}}}
    module = stored_module(stored | {"weight_scale": scale}, tmp_path)
    read = layout_of(config, tmp_path).read(module, (8, 16))
    assert torch.equal(read.dequantised(), (weight - zero).float() * scale)


@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    group=st.sampled_from([8, 16, 24]),
    bits=st.sampled_from([4, 8]),
    act_order=st.booleans(),
    subtracted=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_gptq_of_any_shape(
    tmp_path_factory, rows, groups, group, bits, act_order, subtracted, seed
):
    plain = drawn(8 * rows, group * groups, group, seed, bits, act_order)
    module = stored_module(plain.gptq(subtracted), tmp_path_factory.mktemp("gptq"))
    weight = GptqLayout(group, bits, act_order, subtracted).read(module, plain.values.shape)
    assert torch.equal(weight.values, torch.from_numpy(plain.values).to(torch.uint8))
    assert torch.equal(weight.zeros, torch.from_numpy(plain.zeros).to(torch.uint8))
    assert torch.equal(weight.dequantised(), plain.dequantised())


@given(
    words=st.integers(1, 5),
    groups=st.integers(1, 4),
    group=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_awq_of_any_shape(tmp_path_factory, words, groups, group, seed):
    plain = drawn(8 * words, group * groups, group, seed)
    module = stored_module(plain.awq(), tmp_path_factory.mktemp("awq"))
    weight = AwqLayout(group).read(module, plain.values.shape)
    assert torch.equal(weight.values, torch.from_numpy(plain.values).to(torch.uint8))
    assert torch.equal(weight.zeros, torch.from_numpy(plain.zeros).to(torch.uint8))
    assert torch.equal(weight.dequantised(), plain.dequantised())


@pytest.mark.parametrize("layout", [AwqLayout(None), GptqLayout(None, 4, False, True)])
def test_one_group_for_a_whole_row(layout, tmp_path):
    plain = drawn(16, 40, 40, seed=0)
    tensors = plain.awq() if isinstance(layout, AwqLayout) else plain.gptq()
    weight = layout.read(stored_module(tensors, tmp_path), (16, 40))
    assert (weight.group, weight.order) == (40, None)
    assert torch.equal(weight.dequantised(), plain.dequantised())


def test_gptq_without_g_idx(tmp_path):
    """Groups of columns in a row need none."""
    expected = read("gptq", tmp_path)
    weight = read("gptq", tmp_path, lambda tensors: tensors.pop("g_idx"))
    assert torch.equal(weight.dequantised(), expected.dequantised())


def cut(leaf: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({leaf: tensors[leaf][:-1].clone()})


def stored_as(leaf: str, kind: torch.dtype) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({leaf: tensors[leaf].to(kind)})


def value(leaf: str, new: list) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({leaf: torch.tensor(new, dtype=tensors[leaf].dtype)})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("awq", cut("qweight"), "'layer.qweight' has shape [31, 4], config.json implies [32, 4]"),
        ("awq", cut("qzeros"), "'layer.qzeros' has shape [1, 4], config.json implies [2, 4]"),
        ("awq", lambda t: t.pop("scales"), "'layer' has qweight, qzeros but no scales"),
        ("awq", lambda t: t.pop("qweight"), "'layer' has qzeros, scales but no qweight"),
        ("awq", stored_as("qweight", torch.int64), "'layer.qweight' is stored as I64"),
        ("gptq", cut("qweight"), "'layer.qweight' has shape [3, 32], config.json implies [4, 32]"),
        ("gptq", cut("scales"), "'layer.scales' has shape [1, 32], config.json implies [2, 32]"),
        ("gptq-act-order", lambda t: t.pop("g_idx"), "has qweight, qzeros, scales but no g_idx"),
        ("gptq-act-order", value("g_idx", [*[0] * 31, 2]), "names groups 0 to 2, there are 0 to 1"),
        ("gptq-act-order", value("g_idx", [-1] * 32), "names groups -1 to -1, there are 0 to 1"),
        ("pack-quantized", lambda t: t.pop("weight_zero_point"), "but no weight_zero_point"),
        ("pack-quantized", lambda t: t.pop("weight_shape"), "but no weight_shape"),
        ("pack-quantized", value("weight_shape", [32, 31]), "is [32, 31], config.json implies"),
        ("pack-quantized", cut("weight_packed"), "'layer.weight_packed' has shape [31, 4]"),
        (
            "pack-quantized",
            lambda t: t.update(weight_g_idx=torch.zeros(32, dtype=torch.int32)),
            "weight_g_idx (actorder 'group'), which is not supported",
        ),
        ("int-quantized", stored_as("weight", torch.uint8), "is stored as U8"),
        ("int-quantized", cut("weight_scale"), "'layer.weight_scale' has shape [31, 1]"),
        ("float-quantized", lambda t: t.pop("weight_scale"), "has weight but no weight_scale"),
        ("float-quantized", stored_as("weight", torch.bfloat16), "is stored as BF16"),
        ("float-quantized-block", cut("weight_scale"), "has shape [1, 2]"),
        ("fp8", stored_as("weight_scale_inv", torch.uint8), "is stored as U8"),
    ],
)
def test_what_does_not_fit_is_named(name, change, message, tmp_path):
    with pytest.raises(EngineError) as caught:
        read(name, tmp_path, change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "shape", "message"),
    [
        (AwqLayout(32), (8, 40), "has 40 inputs, which groups of 32 do not divide"),
        (AwqLayout(8), (12, 40), "has 12 rows or columns, which words of 8 numbers do not divide"),
        (GptqLayout(4, 4, False, True), (8, 12), "has 12 rows or columns"),
    ],
)
def test_shapes_that_cannot_be_packed(layout, shape, message, tmp_path):
    plain = drawn(8, 8, 8, seed=0)
    tensors = plain.awq() if isinstance(layout, AwqLayout) else plain.gptq()
    with pytest.raises(EngineError, match=message):
        layout.read(stored_module(tensors, tmp_path), shape)


def test_a_file_that_was_cut_short(tmp_path):
    plain = drawn(8, 8, 8, seed=0)
    stored_module(plain.awq(), tmp_path)
    whole = (tmp_path / "weights").read_bytes()
    (tmp_path / "weights").write_bytes(whole[:-4])
    with pytest.raises(EngineError, match="is damaged"):
        open_stored(tmp_path / "weights")


def test_a_tensor_that_a_file_has_not(tmp_path):
    stored = stored_module(drawn(8, 8, 8, seed=0).awq(), tmp_path).tensors["scales"]
    with pytest.raises(EngineError, match="is damaged"):
        CheckpointTensor(stored.path, "other", stored.file).read()
