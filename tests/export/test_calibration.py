"""int4 weights that a clip chooses: folding changes nothing, the choice is never worse than none,
and a set has the integers that were chosen."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.engine_sets import graph_of, talking_checkpoint
from support.plain_packing import write_quantised
from support.tiny_sets import tiny_set

from vicort.export import build, build_set, engine_set_writer, verify
from vicort.export.activation_statistics import InputStatistics, activation_statistics
from vicort.export.calibration import (
    ProductSearch,
    TriedChoice,
    choices_of,
    search,
    search_layer,
)
from vicort.export.calibration_clip import read_clip
from vicort.export.checkpoint import TINY, resolve
from vicort.export.product_choice import (
    CHOICES_FILE,
    DATA_FREE,
    ProductChoice,
    fold_norms,
    folded_norm,
    read_choices,
    write_choices,
)
from vicort.export.qwen2_5_vl.adapter import read_adapter
from vicort.export.qwen2_5_vl.combined_products import combine
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.layers import JoinedLinear, Linear
from vicort.export.qwen2_5_vl.weights import integer_parameters, load_language
from vicort.export.recipe import embedded_adapter, load_recipe, model_spec
from vicort.export.verify import language_inputs
from vicort.export.weight_compression import (
    GROUP,
    SHRUNK,
    TYPES,
    Scheme,
    dequantise_parameters,
    quantise_int4,
)
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import read_manifest

CLIP = "testsrc:seconds=3"
seeds = st.integers(0, 2**32 - 1)
SCHEME = Scheme(int4=True, int8=True, type=TYPES["fp32"])


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def statistics_of(x: torch.Tensor) -> InputStatistics:
    return InputStatistics(x.abs().amax(0), x.square().mean(0), x)


def drawn(seed: int, groups: int = 1, columns: int = 5, rows: int = 40, spread: float = 1.5):
    """Inputs of channels of very different size (of one size: spread 0), and a matrix."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.randn(groups * GROUP, generator=random).mul(spread).exp()
    x = torch.randn(rows, groups * GROUP, generator=random) * sizes
    return x, torch.randn(groups * GROUP, columns, generator=random) * 0.05


def language_of(adapter: bool = False):
    checkpoint, folder = resolve(TINY), embedded_adapter("tiny-live")[1]
    merged = read_adapter(folder) if adapter else None
    language = load_language(checkpoint, read_configuration(checkpoint), adapter=merged)
    combine(language)
    return language


def tiny_spec():
    return model_spec(TINY, read_configuration(resolve(TINY)), load_recipe(TINY))


def run(language):
    inputs = language_inputs(
        tiny_spec(), np.dtype(np.float32), 9, 3, np.random.default_rng(5), "float"
    )
    with torch.no_grad():
        return language(**{name: torch.from_numpy(each) for name, each in inputs.items()})


def factors(seed: int, count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).exp()


def factors_of_groups(seed: int, count: int) -> torch.Tensor:
    """Powers of two, the same for all inputs that share a scale."""
    exponents = torch.randn(count // GROUP, generator=torch.Generator().manual_seed(seed)) * 3
    return 2.0 ** exponents.round().repeat_interleave(GROUP)


def random_choices(language, seed: int, factors=factors) -> dict[str, ProductChoice]:
    """Every product that can be divided is."""
    found = []
    for index in range(len(language.layers)):
        for name in ("self_attn.joined", "mlp.joined", "mlp.down_proj"):
            key = f"layers.{index}.{name}"
            inputs = factors(seed + len(found), language.get_submodule(key).weight.shape[1])
            choice = ProductChoice(torch.ones_like(inputs), inputs)
            found.append(ProductSearch(f"{key}.weight", {"awq": TriedChoice(choice, 0.0)}))
    return choices_of(found)


@pytest.mark.parametrize("adapter", [False, True], ids=["base", "with an adapter"])
@pytest.mark.parametrize("seed", [0, 100])
def test_folding_leaves_the_model_as_it_is(seed, adapter):
    language = language_of(adapter)
    before = run(language)
    choices = random_choices(language, seed)
    fold_norms(language, choices)
    assert (run(language)[0] - before[0]).abs().max() > 0.05  # norms alone are another model
    for name, layer in language.named_modules():
        if isinstance(layer, Linear | JoinedLinear) and name.startswith("layers."):
            folded = choices.get(f"{name}.weight", DATA_FREE).folded(layer.weight.T).T
            layer.weights = torch.nn.ParameterList([torch.nn.Parameter(folded)])
            if isinstance(layer, Linear):
                layer.weight = torch.nn.Parameter(folded)
    for real, wanted in zip(run(language), before, strict=True):
        torch.testing.assert_close(real, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@given(seeds)
def test_factors_of_a_norm_fold_exactly_in_its_type(seed):
    from vicort.export.calibration import _foldable

    for kind in (torch.float32, torch.bfloat16):
        weight = (factors(seed, 64) * (torch.arange(64) % 5 - 1)).to(kind)  # zeros and negatives
        wanted = factors(seed + 1, 64)
        found = _foldable(weight, wanted)
        divided = folded_norm(weight, found)
        assert divided.dtype == kind
        torch.testing.assert_close(divided.float() * found, weight.float(), rtol=3e-7, atol=0)
        near = (found / wanted - 1).abs()
        assert near[weight != 0].max() < (2**-8 if kind == torch.bfloat16 else 1e-6)
        assert (found[weight == 0] == 1).all()


@given(seeds, st.integers(1, 2))
def test_the_weighted_scale_has_the_least_weighted_error_of_those_tried(seed, groups):
    _, matrix = drawn(seed, groups)
    importance = factors(seed + 1, groups * GROUP).square()
    found = quantise_int4(matrix, mean_square=importance)
    for group in range(groups):
        rows = slice(group * GROUP, (group + 1) * GROUP)
        for column in range(matrix.shape[1]):
            w, weight = matrix[rows, column].numpy(), importance[rows].numpy()
            largest = w[np.abs(w).argmax()]
            errors = []
            for ratio in SHRUNK:
                scale = largest / -8 * np.float32(ratio)
                rounded = np.clip(np.round(w / scale), -8, 7) * scale
                errors.append((weight * (rounded - w) ** 2).sum())
            real = found.dequantised()[rows, column].numpy()
            assert (weight * (real - w) ** 2).sum() <= min(errors) * 1.0001


def test_equal_weights_are_no_weights():
    _, matrix = drawn(3, groups=2)
    plain, weighted = quantise_int4(matrix), quantise_int4(matrix, mean_square=torch.ones(256))
    assert torch.equal(plain.values, weighted.values)
    assert torch.equal(plain.scales, weighted.scales)


def product_error(matrix, x, choice: ProductChoice) -> float:
    """By the definition."""
    integers = quantise_int4(choice.folded(matrix), mean_square=choice.mean_square).dequantised()
    divided = x if choice.inputs is None else x / choice.inputs
    exact = (x @ matrix).numpy()
    return float(np.linalg.norm((divided @ integers).numpy() - exact) / np.linalg.norm(exact))


@given(seeds, st.integers(1, 2), st.sampled_from([0.0, 0.2, 1.5]))
def test_the_choice_is_never_worse_than_data_free_on_the_sample(seed, groups, spread):
    x, matrix = drawn(seed, groups, spread=spread)
    found = search("p", matrix, statistics_of(x), torch.float32, lambda wanted: wanted)
    assert found.candidates.keys() == {"data-free", "weighted", "awq"}
    for tried in found.candidates.values():
        assert tried.error == pytest.approx(product_error(matrix, x, tried.choice), rel=1e-3)
        assert found.best.error <= tried.error
    assert found.best.choice.rule in found.candidates


def test_inputs_of_very_different_size_gain_from_the_clip():
    x, matrix = drawn(1, groups=4, columns=64, rows=128)
    found = search("p", matrix, statistics_of(x), torch.float32, lambda wanted: wanted).candidates
    assert found["weighted"].error < 0.95 * found["data-free"].error
    assert found["awq"].error < 0.8 * found["data-free"].error


def test_data_free_stays_where_nothing_is_better():
    on_grid = torch.randint(-7, 8, (GROUP, 5), generator=torch.Generator().manual_seed(0)).float()
    on_grid[0] = -8
    x = torch.ones(4, GROUP)
    found = search("p", on_grid, statistics_of(x), torch.float32, lambda wanted: wanted)
    assert found.best.choice is DATA_FREE
    assert found.best.error == 0


@pytest.mark.parametrize("inputs", [torch.zeros(6, GROUP), torch.eye(6, GROUP)])
def test_channels_that_a_clip_does_not_use_keep_their_weights_unless_others_crowd_them_out(inputs):
    _, matrix = drawn(2)
    found = search("p", matrix, statistics_of(inputs), torch.float32, lambda wanted: wanted)
    for rule, tried in found.candidates.items():
        back = quantise_int4(
            tried.choice.folded(matrix), mean_square=tried.choice.mean_square
        ).dequantised()
        back = back if tried.choice.inputs is None else back / tried.choice.inputs[:, None]
        assert back.isfinite().all()
        if rule != "awq" or not inputs.any():
            assert ((back - matrix).norm() / matrix.norm()) < 0.5


@pytest.fixture(scope="module")
def tiny_statistics():
    checkpoint, spec = resolve(TINY), tiny_spec()
    return activation_statistics(read_clip(CLIP, spec, checkpoint), checkpoint, spec)["llm"]


def searched(statistics, packed=()):
    layer = language_of().layers[0]
    return {each.name: each for each in search_layer(layer, "layers.0", statistics, SCHEME, packed)}


def test_all_int4_products_of_a_layer_are_searched_and_the_attention_output_is_not_divided(
    tiny_statistics,
):
    found = searched(tiny_statistics)
    divided = {name for name, each in found.items() if "awq" in each.candidates}
    parts = ("self_attn.joined", "self_attn.o_proj", "mlp.joined", "mlp.down_proj")
    assert found.keys() == {f"layers.0.{part}.weight" for part in parts}
    assert found.keys() - divided == {"layers.0.self_attn.o_proj.weight"}


def test_what_a_quantised_checkpoint_brings_is_neither_searched_nor_divided(tiny_statistics):
    before = "layers.0.mlp.joined.weight"
    found = searched(tiny_statistics, {before})
    assert before not in found
    assert "awq" not in found["layers.0.mlp.down_proj.weight"].candidates


@pytest.mark.parametrize("seed", [0, 100])
def test_a_folded_model_with_its_integers_is_the_rounded_one_where_factors_are_of_groups(seed):
    """Scales of groups take such factors up, so that rounding is the same."""
    language, wanted = language_of(), language_of()
    choices = random_choices(language, seed, factors_of_groups)
    assert {each.rule for each in choices.values()} == {"awq"}
    dequantise_parameters(wanted, SCHEME)
    dequantise_parameters(language, replace(SCHEME, choices=choices))
    assert (run(language)[0] - run(wanted)[0]).abs().max() > 0.05  # without norms: another model
    fold_norms(language, choices)
    for real, expected in zip(run(language), run(wanted), strict=True):
        close = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(real, expected, rtol=1e-4, atol=close)


def test_choices_are_stored_and_read_back(tmp_path):
    choices = random_choices(language_of(), 1) | {"o.weight": DATA_FREE}
    write_choices(choices, tmp_path)
    read = read_choices(tmp_path)
    assert read.keys() == choices.keys() - {"o.weight"}  # which has nothing to store
    for name, each in read.items():
        assert each.rule == choices[name].rule == "awq"
        assert torch.equal(each.inputs, choices[name].inputs)
    (tmp_path / CHOICES_FILE).write_bytes(b"no tensors")
    with pytest.raises(EngineError, match="is damaged"):
        read_choices(tmp_path)
    assert read_choices(tmp_path / "nowhere") == {}


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A set of the embedded model, built without tracing it again."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("calibrated") / "set"
    with mock.patch.object(engine_set_writer, "export_graph", partial(graph_of, tiny_set())):
        assert build.main(command(folder)) == 0
    return folder


def command(folder, *more, clip=CLIP):
    options = ["--weights", "int4", "--backend", "openvino", "--out", str(folder)]
    return [TINY, *options, *(("--calibration", clip) if clip else ()), *more]


def test_a_calibrated_set_equals_the_model_with_the_same_integers(calibrated):
    differences = list(verify.compare(calibrated, resolve(TINY)))
    assert [str(each) for each in differences if not each.passed] == []
    rules = {each.rule for each in read_choices(calibrated).values()}
    assert "awq" in rules


def test_verify_finds_other_integers_and_unfolded_norms(calibrated, monkeypatch):
    for broken in ("read_choices", "fold_norms"):
        with monkeypatch.context() as patched:
            patched.setattr(verify, broken, lambda *_: {})
            failed = [each for each in verify.compare(calibrated, resolve(TINY)) if not each.passed]
            assert {"llm prefill", "llm decode"} == {each.run for each in failed}


def test_a_set_of_the_same_clip_is_up_to_date_and_one_of_another_is_not(
    calibrated, monkeypatch, capfd
):
    class Building(Exception):
        pass

    def stop(*_):
        raise Building

    monkeypatch.setattr(build_set, "write_engine_set", stop)
    assert build.main(command(calibrated)) == 0
    assert "up to date" in capfd.readouterr().err
    for clip in ("testsrc:seconds=2", None):
        with pytest.raises(Building):
            build.main(command(calibrated, clip=clip))
    assert f"--calibration {CLIP}" in read_manifest(calibrated).build_command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--calibration", CLIP], "--calibration testsrc:seconds=3 with no --weights"),
        (["--calibration", CLIP, "--weights", "int8"], "with --weights int8: a clip chooses int4"),
        (["--calibration", "/no/such.mp4", "--weights", "int4"], "no such file /no/such.mp4"),
        (["--calibration", "-", "--weights", "int4"], "live source"),
        (["--calibration", "", "--weights", "int4"], "the source is empty"),
    ],
)
def test_what_is_refused_before_anything_is_built(arguments, says, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(build_set, "write_engine_set", None)
    assert build.main([TINY, *arguments, "--out", str(tmp_path / "set")]) == 2
    said = capfd.readouterr().err.splitlines()
    assert says in said[-1]
    assert len(said) == 1


def test_a_checkpoint_that_brings_all_integers_is_refused(tmp_path, monkeypatch, capfd):
    packed = tmp_path / "packed"
    write_quantised(talking_checkpoint(), packed, tmp_path / "plain", "awq")
    monkeypatch.setattr(build_set, "write_engine_set", None)
    arguments = [str(packed), "--weights", "int4", "--calibration", CLIP]
    assert build.main([*arguments, "--out", str(tmp_path / "set")]) == 2
    assert "it is quantised already" in capfd.readouterr().err
    assert len(integer_parameters(packed)) == 7 * read_configuration(packed).language.layers
    assert integer_parameters(tmp_path / "plain") == set()


@pytest.mark.slow
def test_vicort_build_of_the_embedded_model_with_a_clip_verifies(tmp_path, capfd):
    folder = tmp_path / "set"
    assert build.main(command(folder, "--verify", clip="tests/fixtures/shapes.mp4")) == 0
    assert "chose for 16 int4 products" in capfd.readouterr().err
