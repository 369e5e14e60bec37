"""Decoded pictures over the real cuda.core and a stand-in for NVIDIA's driver, and the names of the
real PyNvVideoCodec."""

import enum
import importlib.util
import subprocess

import numpy as np
import pytest
from support import videos
from support.c_programs import compiler
from support.nvdec import StandIn
from support.stand_in_driver.child import StandInChild
from support.stand_in_driver.decoding import decoded, real_module

# PyNvVideoCodec asks the driver's encoder for its version when it is imported: 13.0
ENCODER = "int NvEncodeAPIGetMaxSupportedVersion(unsigned *v) { *v = 13 << 4; return 0; }"


@pytest.fixture
def child():
    opened = StandInChild()
    yield opened
    opened.close()


def test_pictures_are_copied_out_of_the_decoders_device_memory(child, tmp_path):
    videos.write_video(tmp_path / "a.mp4", 12)
    gpu, cpu, refusals = child.call(decoded, tmp_path / "a.mp4", 120, 160)
    assert len(gpu) == len(cpu) == 12
    assert np.abs(gpu.astype(int) - cpu).mean() < 2
    assert not refusals


def test_the_stand_in_for_nvdec_has_the_names_of_the_real_one(child, tmp_path):
    if importlib.util.find_spec("PyNvVideoCodec") is None:
        pytest.skip("PyNvVideoCodec is not installed")
    name = "libnvidia-encode.so.1"
    command = [*compiler(".c"), "-shared", f"-Wl,-soname,{name}", "-x", "c", "-"]
    subprocess.run([*command, "-o", str(tmp_path / name)], input=ENCODER, text=True, check=True)
    real = child.call(real_module, str(tmp_path))
    for name, value in vars(StandIn).items():
        if isinstance(value, enum.EnumType):
            assert {each.name for each in value} <= set(real["members"][name]), name
    for argument in ("gpuid", "codec", "usedevicememory", "outputColorType", "latency"):
        assert f"{argument}: " in real["signatures"]["CreateDecoder"]
    assert "gpuid: int" in real["signatures"]["GetDecoderCaps"]
    assert "-> Dict[str, int]" in real["signatures"]["GetDecoderCaps"]
    assert "-> List[" in real["signatures"]["Decode"]
    assert "-> List[CAIMemoryView]" in real["signatures"]["cuda"]
    assert "-> int" in real["signatures"]["getPTS"]
    assert {"bsl", "bsl_data", "pts", "decode_flag", "format"} <= set(real["attributes"])
    assert all(real["errors"])
