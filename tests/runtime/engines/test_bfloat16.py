"""Whether bfloat16 engines are computed in bfloat16 on a CPU."""

import pytest

from vicort.runtime.engines.bfloat16 import computes_in_float32


@pytest.mark.parametrize(
    ("text", "float32"),
    [
        ("flags : fpu avx2 avx512_bf16\n", False),
        ("flags : fpu amx_bf16\n", False),
        ("flags : fpu avx avx2\n", True),
        ("Features : fp asimd bf16\n", False),
        ("Features : fp asimd\n", True),
        ("processor : 0\n", False),  # it says nothing about instructions
    ],
)
def test_the_processors_instructions_decide(tmp_path, text, float32):
    (tmp_path / "cpuinfo").write_text(text)
    for backend in ("openvino", "onnxruntime"):
        assert computes_in_float32(backend, "bf16", tmp_path / "cpuinfo") == float32
    assert not computes_in_float32("openvino", "fp32", tmp_path / "cpuinfo")
    assert not computes_in_float32("tensorrt", "bf16", tmp_path / "cpuinfo")


def test_where_nothing_is_known_nothing_is_said(tmp_path):
    assert not computes_in_float32("openvino", "bf16", tmp_path / "none")
