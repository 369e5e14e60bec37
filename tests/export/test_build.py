"""vicort-build: what it builds, what it leaves alone, what it refuses."""

import errno
import os
import shutil
import socket
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.engine_sets import (
    BACKENDS,
    OPTIONS,
    built_model,
    built_options,
    checkpoint,
    chosen_set,
    damaged_copy,
    engine_set,
)
from support.reference_model import write_random_checkpoint
from support.sizes import is_thorough

from vicort.export import build, build_set, recipe
from vicort.export.build_set import candidates
from vicort.export.checkpoint import TINY, resolve
from vicort.export.engine_set_writer import building, seal
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.verify import compare, language_inputs
from vicort.runtime.engines import tensorrt
from vicort.runtime.errors import ConfigError
from vicort.runtime.manifest import FILE_NAME, ModelSpec, read_manifest
from vicort.runtime.session import Session
from vicort.runtime.set_folders import check_replaceable, publish


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def run(capfd, *arguments) -> tuple[int, str]:
    """Exit status, and what was said on stderr."""
    status = build.main([str(argument) for argument in arguments])
    return status, capfd.readouterr().err


def test_a_set_holds_its_graphs_its_tokenizer_and_one_copy_of_the_embeddings():
    folder = chosen_set()
    manifest = read_manifest(folder)
    weights = load_file(resolve(built_model()) / "model.safetensors")
    # of a set in fp32
    language = sum(4 * w.numel() for name, w in weights.items() if "visual" not in name)
    assert {path.name for path in folder.iterdir()} == {*manifest.files, FILE_NAME}
    assert {
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "generation_config.json",
    } <= set(manifest.files)
    embedding = manifest.files["embedding.bin"].bytes
    assert embedding == manifest.embedding.rows * manifest.embedding.width * 4
    assert (
        language * 0.9
        < embedding + manifest.files["llm.bin"].bytes + manifest.files["llm.expanded.onnx"].bytes
        < language + 300_000
    )
    assert (
        manifest.model.unit_tokens,
        manifest.model.chunk_frames,
        manifest.model.max_rows % 16,
    ) == ((6, 4, 0) if is_thorough() else (16, 16, 0))
    assert manifest.backend in BACKENDS


def test_the_set_keeps_the_op_with_its_function_body_beside_what_the_cpu_engines_load():
    """What a plugin takes later, on the same weights: one BoundedAttention a layer, equal to its
    expansion."""
    folder = chosen_set()
    graph = read_manifest(folder).graphs["llm"]
    model = onnx.load(folder / "llm.onnx", load_external_data=False)
    nodes = [node for node in model.graph.node if node.domain == "vicort"]
    assert [node.op_type for node in nodes] == ["BoundedAttention"] * graph.attention_layers
    assert {"layer", "scale", "sections", "frequencies", "interleaved"} == {
        attribute.name for attribute in nodes[0].attribute
    }
    assert "BoundedAttention" in {function.name for function in model.functions}
    assert not onnx.load(folder / graph.file, load_external_data=False).functions
    feed = language_inputs(
        read_manifest(folder).model, np.dtype(np.float32), 5, 3, np.random.default_rng(0)
    )
    kept, expanded = (
        onnxruntime.InferenceSession(folder / name).run(None, feed)
        for name in ("llm.onnx", graph.file)
    )
    for ours, theirs in zip(kept, expanded, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_building_again_does_nothing_and_says_so(capfd):
    before = {path.name: path.stat().st_mtime_ns for path in chosen_set().iterdir()}
    status, said = run(capfd, built_model(), "--out", chosen_set(), *built_options())
    assert status == 0
    assert "up to date" in said
    assert "exporting" not in said
    assert before == {path.name: path.stat().st_mtime_ns for path in chosen_set().iterdir()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_engines_equal_the_pytorch_model(backend):
    differences = list(compare(engine_set(backend), resolve(built_model())))
    assert {d.run for d in differences} == {
        "vision",
        "pruned",
        "tokens",
        "tokens since",
        "head",
        "llm prefill",
        "llm decode",
    }
    assert [str(d) for d in differences if not d.passed] == []
    assert any(d.absolute > 0 for d in differences)  # two programs, not one


def test_verify_prints_differences_and_passes(capfd):
    command = [built_model(), "--out", str(chosen_set()), *built_options(), "--verify"]
    assert build.main(command) == 0
    assert capfd.readouterr().out.count(" ok") == 21


def test_verify_fails_on_engines_of_other_weights(tmp_path, capfd):
    folder = tmp_path / "set"
    shutil.copytree(chosen_set(), folder)
    weights = bytearray((folder / "llm.bin").read_bytes())
    weights[-40_000:] = bytes(40_000)
    (folder / "llm.bin").write_bytes(weights)
    seal(folder, read_manifest(chosen_set()))
    assert build.main([built_model(), "--out", str(folder), *built_options(), "--verify"]) == 1
    assert "TOO LARGE" in capfd.readouterr().out


@pytest.mark.parametrize("change", ["file", "options", "exporter"])
def test_what_is_damaged_or_was_built_otherwise_is_not_up_to_date(
    change, tmp_path, monkeypatch, capfd
):
    class Building(Exception):
        pass

    def stop(*_):
        raise Building

    monkeypatch.setattr("vicort.export.build_set.write_engine_set", stop)
    folder = tmp_path / "set"
    versions = read_manifest(chosen_set()).versions
    damaged_copy(
        chosen_set(),
        folder,
        **({"versions": versions | {"exporter": "older"}} if change == "exporter" else {}),
    )
    if change == "file":
        (folder / "vision.bin").write_bytes(b"short")
    options = ("--chunk-frames", "8") if change == "options" else built_options()
    with pytest.raises(Building):
        build.main([built_model(), "--out", str(folder), *options])
    # no temporary folder is left, and the old set is
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_build_that_fails_leaves_nothing(tmp_path, capfd):
    model = tmp_path / "model"
    shutil.copytree(checkpoint(), model)
    weights = load_file(model / "model.safetensors")
    del weights[
        "model.norm.weight"
        if "model.norm.weight" in weights
        else "model.language_model.norm.weight"
    ]
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    (tmp_path / "out").mkdir()
    status, said = run(
        capfd, model, "--out", tmp_path / "out" / "set", *OPTIONS, "--backend", "onnxruntime"
    )
    assert status == 2
    assert "norm.weight" in said.splitlines()[-1]
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_build_of_the_same_process_id_left_is_no_obstacle(tmp_path):
    with building(tmp_path) as killed, building(tmp_path) as folder:
        assert killed != folder
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch, capfd):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vicort.export.engine_set_writer.export_graph", interrupt)
    assert build.main([str(checkpoint()), "--out", str(tmp_path / "set"), *OPTIONS]) == 130
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "bf16 of onnxruntime": (
        ["tiny", "--backend", "onnxruntime", "--precision", "bf16"],
        "no bf16 matrix product",
        "--backend openvino",
    ),
    "a flag of tensorrt": (["tiny", "--no-plugin"], "--no-plugin", "--backend tensorrt"),
    "another flag of tensorrt": (
        ["tiny", "--backend", "openvino", "--target", "sm_89"],
        "--target",
        "leave it out",
    ),
    "no gpu name": (["tiny", "--backend", "tensorrt", "--target", "hopper"], "'hopper'", "sm_89"),
    "unknown frontend": (
        ["tiny", "--backend", "tensorrt", "--frontend", "jax"],
        "'jax'",
        "torch-tensorrt",
    ),
    "int8 pages without the plugin": (
        ["tiny", "--backend", "tensorrt", "--kv", "int8", "--no-plugin"],
        "--kv int8",
        "leave one of the two out",
    ),
    "no folder": (["./no/such/folder"], "no/such/folder", "folder"),
    "odd frames": (["tiny", "--chunk-frames", "7"], "7", "multiple of 2"),
    "huge size": (["tiny", "--image-size", "9000x112"], "9000", "less than or equal to 4096"),
    "two sizes": (
        ["tiny", "--image-size", "56x56", "--max-pixels", "9000"],
        "--max-pixels",
        "give one of them",
    ),
    "small area": (["tiny", "--max-pixels", "3135"], "3135", "greater than or equal to 3136"),
    "no area": (["tiny", "--max-pixels", "all"], "'all'", "int"),
    "no size": (["tiny", "--image-size", "big"], "'big'", "308x308"),
    "unknown backend": (["tiny", "--backend", "cuda"], "'cuda'", "openvino"),
    "int8 plans without a clip": (
        ["tiny", "--backend", "tensorrt", "--weights", "int8"],
        "--weights int8",
        "with --calibration",
    ),
    "fp8 plans without a clip": (
        ["tiny", "--backend", "tensorrt", "--weights", "fp8"],
        "--weights fp8",
        "with --calibration",
    ),
    "fp8 on a CPU": (
        ["tiny", "--weights", "fp8", "--calibration", "testsrc:"],
        "--weights fp8",
        "take --backend tensorrt or --weights int8",
    ),
    "a clip for int8 on a CPU": (
        ["tiny", "--weights", "int8", "--calibration", "testsrc:"],
        "--calibration testsrc:",
        "leave it out",
    ),
    "fp8 without ONNX": (
        [
            *("tiny", "--backend", "tensorrt", "--frontend", "torch-tensorrt"),
            *("--weights", "fp8", "--calibration", "testsrc:"),
        ],
        "--weights fp8",
        "leave one of the two out",
    ),
    "stripped plans of integers": (
        ["tiny", "--backend", "tensorrt", "--weights", "int4", "--strip"],
        "--strip --weights int4",
        "leave one of the two out",
    ),
    "unknown weights": (["tiny", "--weights", "fp4"], "'fp4'", "int4"),
    "unknown precision": (["tiny", "--precision", "fp8"], "'fp8'", "bf16"),
}


NEEDS_GPU = {
    "verify": ("--verify", "build without --verify"),
    "strip": ("--strip", "leave --strip out"),
}


@pytest.mark.parametrize(("flag", "hint"), NEEDS_GPU.values(), ids=NEEDS_GPU.keys())
def test_what_takes_a_gpu_is_refused_at_once_where_there_is_none(
    flag, hint, tmp_path, monkeypatch, capfd
):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setattr("vicort.export.tensorrt_plans.missing_gpu", lambda: "no driver")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    status, said = run(capfd, "tiny", "--backend", "tensorrt", flag, "--out", tmp_path / "set")
    assert status == 2
    assert len(said.splitlines()) == 1
    assert all(words in said for words in (flag, "no driver", hint))
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_tensorrt_cannot_be_told_to_build_for_is_refused_at_once(
    tmp_path, monkeypatch, capfd
):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    status, said = run(
        capfd, "tiny", "--backend", "tensorrt", "--target", "sm_89,sm_90", "--out", tmp_path / "set"
    )
    assert status == 2
    assert len(said.splitlines()) == 1
    assert "--target sm_90" in said
    assert "sm_89, sm_120" in said


def test_a_gpu_that_kernels_are_not_compiled_for_is_refused_at_once(tmp_path, monkeypatch, capfd):
    """TensorRT for RTX does take it."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    given = ["--backend", "tensorrt", "--target", "sm_86,sm_75", "--out", tmp_path / "set"]
    status, said = run(capfd, "tiny", *given)
    assert status == 2
    assert len(said.splitlines()) == 1
    assert "--target sm_75: attention kernels are compiled for sm_80, sm_86" in said
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_without_fp8_is_refused_at_once(tmp_path, monkeypatch, capfd):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    given = ["--weights", "fp8", "--calibration", "testsrc:", "--target", "sm_89,sm_80"]
    out = ["--out", tmp_path / "set"]
    status, said = run(capfd, "tiny", "--backend", "tensorrt", *given, *out)
    assert status == 2
    assert len(said.splitlines()) == 1
    assert "--target sm_80" in said
    assert "sm_89 or newer" in said
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_folder_is_not_replaced(tmp_path):
    """As `--out` to a device would be."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe is not an engine set"):
        check_replaceable(tmp_path / "pipe")


def test_without_tensorrt_its_backend_names_the_pip_command(tmp_path, monkeypatch, capfd):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(tensorrt, "_load", tensorrt._load.__wrapped__)
    status, said = run(capfd, "tiny", "--backend", "tensorrt", "--out", tmp_path / "set")
    assert status == 2
    assert len(said.splitlines()) == 1
    assert "pip install tensorrt-rtx" in said


def test_without_triton_the_tensorrt_backend_names_the_pip_command(tmp_path, monkeypatch, capfd):
    found = build.find_spec
    monkeypatch.setattr(build, "find_spec", lambda name: None if name == "triton" else found(name))
    status, said = run(capfd, "tiny", "--backend", "tensorrt", "--out", tmp_path / "set")
    assert status == 2
    assert len(said.splitlines()) == 1
    assert "pip install triton" in said


def test_the_torch_tensorrt_frontend_wants_the_full_tensorrt(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    status, said = run(
        capfd,
        "tiny",
        "--backend",
        "tensorrt",
        "--frontend",
        "torch-tensorrt",
        "--out",
        tmp_path / "set",
    )
    assert status == 2
    assert "pip install tensorrt`" in said


def test_auto_never_chooses_tensorrt_and_the_precision_suits_the_backend():
    assert candidates("auto", "fp32") == ["openvino", "onnxruntime"]
    assert candidates("auto", "bf16") == ["openvino"]
    assert candidates("tensorrt", "bf16") == ["tensorrt"]
    assert recipe.load_recipe("tiny").precision is None
    assert recipe.DEFAULT_PRECISION == {
        "onnxruntime": "fp32",
        "openvino": "fp32",
        "tensorrt": "bf16",
    }


def test_the_build_command_in_a_manifest_builds_the_same_set_again():
    words = [
        "m",
        "--backend",
        "tensorrt",
        "--no-plugin",
        "--strip",
        "--target",
        "sm_89,sm_120",
        "--precision",
        "fp32",
    ]
    options = build._parse([*words, "--image-size", "56x84", "--kv", "int8", "--weights", "int4"])
    command = options.command("tensorrt").split()
    assert command[0] == "vicort-build"
    assert build._parse(command[1:]) == options


@pytest.mark.slow
def test_int8_pages_are_in_the_manifest_and_the_engines_equal_the_model(tmp_path, capfd):
    folder = tmp_path / "set"
    words = (TINY, "--backend", "onnxruntime", "--kv", "int8", "--verify")
    assert build.main([*words, "--out", str(folder)]) == 0
    assert "llm prefill" in capfd.readouterr().out
    manifest = read_manifest(folder)
    assert manifest.kv == "int8"
    types = {spec.name: spec.dtype for spec in manifest.graphs["llm"].inputs}
    assert (types["pool"], types["scales"], types["features"]) == ("int8", "float32", "float32")
    assert "--kv int8" in manifest.build_command
    with Session.open(folder, "vicostream") as session:
        assert session.inspect().memory.pool.data.dtype == np.int8


@pytest.mark.parametrize(("arguments", "value", "allowed"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_built_is_refused_in_one_line(arguments, value, allowed, tmp_path, capfd):
    status, said = run(capfd, *arguments, "--out", tmp_path / "set")
    assert status == 2
    assert len(said.splitlines()) == 1
    assert value in said
    assert allowed in said
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_engine_set_is_never_overwritten(tmp_path, capfd):
    (tmp_path / "holiday.jpg").write_bytes(b"dear")
    status, said = run(capfd, checkpoint(), "--out", tmp_path, *OPTIONS)
    assert status == 2
    assert "not overwritten" in said
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("kind", ["file", "pipe", "socket", "link to nothing", "link to a pipe"])
def test_what_is_no_folder_is_never_replaced(kind, tmp_path, capfd):
    """Such as /dev/null, of which a build as root would otherwise make an engine set."""
    target = tmp_path / "target"
    match kind:
        case "file":
            target.write_bytes(b"dear")
        case "pipe":
            os.mkfifo(target)
        case "socket":
            socket.socket(socket.AF_UNIX).bind(str(target))
        case _:
            target.symlink_to(tmp_path / "other")
    if kind == "link to a pipe":
        os.mkfifo(tmp_path / "other")
    before = target.lstat()
    (tmp_path / "built").mkdir()
    with pytest.raises(ConfigError, match="not overwritten"):
        publish(tmp_path / "built", target)
    status, said = run(capfd, checkpoint(), "--out", target, *OPTIONS)
    assert (status, said.count("\n")) == (2, 1)
    assert f"--out {target} is not an engine set and is not overwritten" in said
    assert target.lstat() == before


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path, capfd):
    (tmp_path / "file").write_bytes(b"dear")
    status, said = run(capfd, checkpoint(), "--out", tmp_path / "file" / "set", *OPTIONS)
    assert (status, said.count("\n")) == (2, 1)
    assert f"--out {tmp_path / 'file' / 'set'} cannot be written (Not a directory)" in said


WEB_APP = '{"name": "my web app", "schema_version": 4, "files": {}}'
IMPOSSIBLE = {
    "below a device": ("/dev/null/set", "Not a directory"),
    "in a place that makes no folders": ("/proc/set", "/proc"),
    "a name too long": ("x" * 300, "File name too long"),
    "empty": ("", "name one"),
    "the root": ("/", "not overwritten"),
    "a zero byte": ("a\0b", "null"),
    "a web app": ("webapp", "not overwritten"),
    "below a file": ("file/a/b/set", "Not a directory"),
}


@pytest.mark.parametrize(("out", "why"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_impossible_place_is_refused_before_the_model_is_looked_at(
    out, why, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "webapp" / "src").mkdir(parents=True)
    (tmp_path / "webapp" / "manifest.json").write_text(WEB_APP)
    (tmp_path / "webapp" / "src" / "precious.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    status, said = run(capfd, "no/such/model", "--out", out)
    assert (status, said.count("\n")) == (2, 1)
    assert "--out" in said
    assert why in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_read_only_place_is_refused_at_once(tmp_path, capfd):
    """As another user, because root may write everywhere."""
    place = tmp_path / "place"
    place.mkdir(mode=0o555)
    if os.access(place, os.W_OK):
        pytest.skip("this user may write everywhere")
    status, said = run(capfd, "no/such/model", "--out", place / "set")
    assert (status, said.count("\n")) == (2, 1)
    assert "Permission denied" in said


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES]
)
@pytest.mark.parametrize("step", ["write_engine_set", "seal_last"])
def test_a_disk_that_fails_is_one_line_and_leaves_the_old_set(
    number, step, tmp_path, monkeypatch, capfd
):
    def fail(folder, *_, **__):
        (folder / "llm.onnx").write_bytes(b"half")
        raise OSError(number, os.strerror(number), str(folder / "llm.onnx"))

    def half(folder, *_, **__):
        with pytest.raises(OSError, match="llm"):
            fail(folder)

    monkeypatch.setattr(build_set, "write_engine_set", fail if step != "seal_last" else half)
    monkeypatch.setattr(build_set, "_finished", fail)
    changed = {"versions": read_manifest(chosen_set()).versions | {"exporter": "older"}}
    damaged_copy(chosen_set(), tmp_path / "set", **changed)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status, said = run(capfd, built_model(), "--out", tmp_path / "set", *built_options())
    assert status == 2
    assert os.strerror(number) in said.splitlines()[-1]
    assert "Traceback" not in said
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_configuration_that_is_nested_too_deeply_is_refused(tmp_path, capfd):
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert build.main([str(tmp_path), "--out", str(tmp_path / "set")]) == 2
    said = capfd.readouterr().err
    assert f"{tmp_path / 'config.json'} is not JSON" in said
    assert said.count("\n") == 1


def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path, capfd):
    model = tmp_path / "model"
    shutil.copytree(checkpoint(), model, ignore=shutil.ignore_patterns("tokenizer.json"))
    status, said = run(capfd, model, "--out", tmp_path / "set", *OPTIONS)
    assert status == 2
    assert "tokenizer.json" in said


def test_recipes_are_known_by_the_beginning_of_a_name_and_flags_go_over_them():
    assert recipe.known_models() == ["qwen2.5-vl-3b", "qwen2.5-vl-7b", "tiny", "tiny-live"]
    assert recipe.load_recipe("Qwen2.5-VL-3B-Instruct").page_tokens == 16
    assert recipe.load_recipe("tiny", chunk_frames=4, image_width=None).chunk_frames == 4
    assert recipe.load_recipe("tiny").image_width == 112
    assert recipe.load_recipe("tiny", max_pixels=50_000).image_width is None
    assert recipe.load_recipe("qwen2.5-vl-3b").image_width is None
    assert recipe.load_recipe("qwen2.5-vl-3b", image_width=56, image_height=84).image_width == 56
    assert recipe.load_recipe("something-else") == recipe.BuildRecipe()


def spec_of(**changes) -> ModelSpec:
    config = read_configuration(resolve(TINY))
    return recipe.model_spec("m", config, recipe.load_recipe("other", **changes))


@pytest.mark.parametrize(
    ("width", "height", "rounded"),
    [(100, 112, (112, 112)), (28, 1, (28, 28)), (41, 43, (56, 28)), (308, 308, (308, 308))],
)
def test_the_sides_of_a_fixed_size_are_rounded_to_whole_tokens(width, height, rounded):
    spec = spec_of(image_width=width, image_height=height)
    assert spec.fixed_size == rounded
    assert spec.max_pixels == rounded[0] * rounded[1]
    assert spec.grid(9, 160).pixels(28) == rounded


def test_a_fixed_size_with_one_side_is_refused():
    with pytest.raises(ConfigError, match="give both"):
        spec_of(image_width=112)


def test_the_default_limit_is_the_area_of_308_by_308_pixels():
    spec = spec_of()
    assert (spec.fixed_size, spec.max_pixels, spec.unit_tokens) == (None, 308 * 308, 121)
    assert spec.max_rows == 976  # eight units of 121 tokens, in steps of 16
    assert spec_of(max_pixels=50_000).unit_tokens == 63


def test_a_size_that_is_rounded_is_said():
    lines = []
    typed = ("tiny", "--backend", "onnxruntime", "--image-size", "100x120")
    options = build._parse(typed)
    drafts = build_set._drafts(options, build_set._source(options), None, lines.append)
    assert drafts[0].manifest.model.fixed_size == (112, 112)
    assert lines == ["--image-size 100x120 is rounded to 112x112: sides are multiples of 28 pixels"]


def test_an_unknown_key_in_a_recipe_is_refused():
    with pytest.raises(ConfigError, match="chunk_size"):
        recipe.load_recipe("tiny", chunk_size=4)


@pytest.mark.slow
def test_bf16_engines_equal_the_bf16_model(tmp_path, capfd):
    folder = tmp_path / "set"
    status, _ = run(
        capfd, checkpoint(), "--out", folder, *OPTIONS, "--precision", "bf16", "--verify"
    )
    assert status == 0
    assert read_manifest(folder).backend == "openvino"


@pytest.mark.slow
def test_the_widths_and_the_vocabulary_of_the_3b_model(tmp_path, capfd):
    model = tmp_path / "model"
    write_random_checkpoint(model, "3b-widths", seed=5)
    shutil.copy(checkpoint() / "tokenizer.json", model)
    status, said = run(
        capfd,
        model,
        "--out",
        tmp_path / "set",
        "--backend",
        "openvino",
        "--image-size",
        "112x84",
        "--verify",
    )
    assert status == 0, said
    assert read_manifest(tmp_path / "set").files["embedding.bin"].bytes == 151936 * 2048 * 4


SMALLEST = {
    "one layer": ({"num_hidden_layers": 1}, ()),
    "one head of keys and values": ({"num_key_value_heads": 1}, ()),
    "chunks of one unit": ({}, ("--chunk-frames", "2")),
    "one visual token": ({}, ("--image-size", "28x28")),
    "all of it": (
        {"num_hidden_layers": 1, "num_key_value_heads": 1},
        ("--chunk-frames", "2", "--image-size", "28x28"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("text", "options"), SMALLEST.values(), ids=SMALLEST.keys())
def test_the_smallest_models_and_sizes(text, options, tmp_path, capfd):
    model = tmp_path / "model"
    write_random_checkpoint(model, "tiny", seed=1, text=text)
    shutil.copy(checkpoint() / "tokenizer.json", model)
    size = () if "--image-size" in options else ("--image-size", "56x56")
    words = (model, "--out", tmp_path / "set", "--backend", "onnxruntime", *size, *options)
    status, said = run(capfd, *words, "--verify")
    assert status == 0, said
