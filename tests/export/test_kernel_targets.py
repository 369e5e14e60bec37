"""Which GPUs the kernels of a set are compiled for."""

from __future__ import annotations

import pytest
from support.tensorrt_sets import tiny_checkpoint, tiny_model

from vicort.export import engine_set_writer, tensorrt_plans
from vicort.export.engine_set_writer import PlanOptions, draft_manifest
from vicort.export.kernels.architectures import DEFAULT
from vicort.export.tensorrt_plans import kernel_architectures
from vicort.runtime.errors import ConfigError


@pytest.fixture
def gpu(monkeypatch):
    """A function that says which GPU this machine has."""
    return lambda capability: monkeypatch.setattr(
        tensorrt_plans, "gpu_capability", lambda: capability
    )


def test_plans_for_many_gpus_come_with_kernels_for_them(gpu):
    gpu((11, 0))
    assert kernel_architectures("tensorrt_rtx", ()) == DEFAULT
    assert kernel_architectures("tensorrt_rtx", ("sm_121", "sm_86")) == (121, 86)


@pytest.mark.parametrize(
    ("capability", "compiled"),
    [((8, 7), (87,)), ((8, 8), (87,)), ((11, 0), (110,)), ((12, 1), (121,)), (None, DEFAULT)],
)
def test_plans_for_this_gpu_alone_come_with_its_kernels(gpu, capability, compiled):
    gpu(capability)
    assert kernel_architectures("tensorrt", ()) == compiled


@pytest.mark.parametrize("capability", [(7, 5), (12, 9)])
def test_a_gpu_of_this_machine_without_kernels_is_named_with_those_that_have_some(gpu, capability):
    gpu(capability)
    said = rf"this GPU is sm_{capability[0]}{capability[1]}, .* sm_80, .* sm_121: .*--no-plugin"
    with pytest.raises(ConfigError, match=said):
        kernel_architectures("tensorrt", ())


@pytest.mark.parametrize(("targets", "compiled"), [((), DEFAULT), (("sm_86", "sm_120"), (86, 120))])
def test_a_build_compiles_kernels_for_its_targets_alone(monkeypatch, tmp_path, targets, compiled):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    asked = []
    monkeypatch.setattr(
        "vicort.export.kernels.compile.compile_kernels",
        lambda spec, architectures, progress: asked.append(architectures) or b"cubins",
    )
    options = PlanOptions("tensorrt_rtx", targets=targets)
    model = tiny_model()
    manifest = draft_manifest(tiny_checkpoint(), model, "tensorrt", "bf16", "", options)
    engine_set_writer._write_kernels(tmp_path, tiny_checkpoint(), manifest, print, options)
    assert asked == [compiled]
    assert (tmp_path / "kernels.zip").read_bytes() == b"cubins"
