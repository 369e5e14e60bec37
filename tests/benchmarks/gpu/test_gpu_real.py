"""The steps of gpu-check at real size, on a simulated GPU and with toy shapes: what they run, count
and say."""

import json
import re
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.simulated_cuda import SimulatedDriver
from support.simulated_tensorrt import SimulatedTensorRTSet
from support.tensorrt_sets import stored_runs

from vicort.benchmarks.common import first_token
from vicort.benchmarks.common.checkpoints import read_json
from vicort.benchmarks.common.spread import spread
from vicort.benchmarks.common.transformers_stream import (
    Variant,
    letterbox,
    letterbox_tensor,
    load_model,
)
from vicort.benchmarks.common.vicort_stream import Span
from vicort.benchmarks.common.workload import bench_system
from vicort.benchmarks.cpu import arithmetic
from vicort.benchmarks.gpu import layer_profile as gpu_profile
from vicort.benchmarks.gpu import pipeline_steps as gpu_real
from vicort.benchmarks.gpu import real_models as gpu_models
from vicort.benchmarks.gpu import transformers_steps as gpu_transformers
from vicort.benchmarks.gpu.gpu_report import tables
from vicort.benchmarks.gpu.lab import Lab, Skip
from vicort.benchmarks.gpu.layer_profile import covered, gaps, kind_of, summed
from vicort.benchmarks.gpu.pipeline_steps import PipelineAmount, reach, stage_rates
from vicort.benchmarks.gpu.real_models import SIZES, Place, Size, share_language, weight_count
from vicort.export.qwen2_5_vl.configuration import read_configuration
from vicort.export.qwen2_5_vl.weights import load_models
from vicort.export.random_checkpoint import INDEX, shards_of, write_random
from vicort.runtime.devices.cuda import Gpu
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import EmbeddingSpec, FileSpec, GraphSpec, Manifest, read_manifest

# of PyTorch without CUDA, and of one with it
NO_GPU = r"^torch \S+ (has no CUDA: install one that has|cannot use this GPU: see `nvidia-smi`)"
SIDE = 56  # pixels: four visual tokens a unit
TINY = Size(
    "toy",
    "qwen2.5-vl-3b",
    {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
    {
        "vocab_size": 101,
        "hidden_size": 128,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    | {"num_key_value_heads": 2, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    tied=True,
    theta=1e4,
    sections=(4, 6, 6),
    sides=(SIDE, 112),
    max_question_rows=128,
)
FEW = PipelineAmount(
    warmup=2,
    stages=2,
    unit_runs=2,
    chunks=2,
    repeats=2,
    encoded_chunks=1,
    encoded_repeats=2,
    filled=2,
    questions=2,
    answers=1,
    answer_tokens=3,
    width=64,
    height=36,
    device_mb=2,
    host_mb=1,
)


# ---- random weights


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random(
        tmp_path_factory.mktemp("toy") / "checkpoint", TINY.config, SIDE, shard_bytes=60_000
    )


def test_random_weights_are_a_checkpoint_for_both_sides(checkpoint: Path) -> None:
    vision, language, _, config = load_models(checkpoint, SIDE, SIDE, torch.bfloat16)
    theirs = load_model(checkpoint, Variant("bf16"))
    for ours, name in (
        (language.layers[1].mlp.up_proj.weight, "model.language_model.layers.1.mlp.up_proj.weight"),
    ):
        assert torch.equal(ours, theirs.get_parameter(name))
    assert torch.equal(vision.blocks[0].norm1.weight, torch.ones(64, dtype=torch.bfloat16))
    assert config.language.tied
    assert len(list(checkpoint.glob("*.safetensors"))) > 2
    assert read_json(checkpoint / INDEX)["metadata"]["total_size"] == 2 * sum(
        p.numel() for p in theirs.parameters()
    )
    spread_out = theirs.get_parameter("model.language_model.layers.0.mlp.down_proj.weight").float()
    assert spread_out.std().item() == pytest.approx(96**-0.5, rel=0.1)


def test_they_are_written_once(checkpoint: Path) -> None:
    before = (checkpoint / INDEX).stat().st_mtime_ns
    assert write_random(checkpoint, TINY.config, SIDE) == checkpoint
    assert (checkpoint / INDEX).stat().st_mtime_ns == before


def test_shards_hold_every_tensor_once_and_none_is_too_large() -> None:
    shapes = {"a": (10,), "b": (30,), "c": (5,), "d": (100,), "e": (1,)}
    assert list(shards_of(shapes, 80)) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_the_real_sizes_are_those_that_were_published(tmp_path: Path) -> None:
    for name, parameters, layers, width in (("3b", 3.75e9, 36, 2048), ("7b", 8.29e9, 28, 3584)):
        size = SIZES[name]
        assert weight_count(size.config) == pytest.approx(parameters, rel=0.005)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(size.config | {"model_type": "qwen2_5_vl"}))
        (folder / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [0.5] * 3, "image_std": [0.2] * 3})
        )
        language = read_configuration(folder).language
        assert (language.layers, language.width, language.head_dim, language.theta) == (
            layers,
            width,
            128,
            1e6,
        )
        assert language.tied == (name == "3b")


def test_arithmetic_is_what_the_goals_were_set_with() -> None:
    """About 0.28 TFLOP a frame in the ViT and 0.09 in the LLM, at about 300x300 with 30 % kept."""
    operations = arithmetic.of_chunk(SIZES["3b"].config, 308, 16, bench_system())
    assert operations.vision / 16e12 == pytest.approx(0.28, rel=0.15)
    assert operations.prefill / 16e12 == pytest.approx(0.09, rel=0.25)


# ---- the steps


class SimulatedMaker:
    """Engines of toy shapes on the lab's simulated GPU; what is built is a note of it."""

    def build(self, lab, size, checkpoint, folder, side, shared):
        folder.mkdir()
        (folder / "note").write_text(str(shared))
        return {"shares": shared.name if shared else None}

    @contextmanager
    def open(self, folder):
        assert (folder / "note").is_file()
        engines = SimulatedTensorRTSet(0, 3, chunk_frames=16, page_tokens=4, max_rows=64)
        # races are other tests' matter, and looking for them takes long
        engines.driver.watched = False
        yield engines


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(gpu_models, "SIZES", {"toy": TINY})
    monkeypatch.setattr(gpu_models, "maker", lambda backend: SimulatedMaker())
    monkeypatch.setattr(gpu_real, "AMOUNT", FEW)
    monkeypatch.setattr(gpu_profile, "AMOUNT", FEW)
    monkeypatch.setattr(gpu_profile, "CHUNKS", 3)
    monkeypatch.setattr(gpu_profile, "REPLAYS", 2)
    monkeypatch.setattr(gpu_profile, "LAYER_RUNS", 2)
    monkeypatch.setattr(gpu_transformers, "AMOUNT", FEW)
    monkeypatch.setattr(first_token, "RATE_S", 0.1)
    lab = Lab(tmp_path, Gpu(SimulatedDriver()))
    with lab.trying_tensorrt():  # it runs
        pass
    return lab


@pytest.fixture
def built(lab: Lab) -> Lab:
    gpu_models.build(lab, "toy", SIDE)
    return lab


def test_a_build_makes_what_the_other_steps_start_from(lab: Lab) -> None:
    with pytest.raises(Skip, match="run step toy-build first"):
        gpu_real.stages(lab, "toy", SIDE)
    found = [gpu_models.build(lab, "toy", side) for side in TINY.sides]
    assert found[0]["parameters"] == weight_count(TINY.config) + norms_and_biases()
    assert [
        each["sets"][str(side)]["shares"] for each, side in zip(found, TINY.sides, strict=True)
    ] == [None, f"tensorrt-{SIDE}"]
    assert (lab.folder / "toy" / "checkpoint" / "tokenizer.json").is_file()


def norms_and_biases() -> int:
    d, width, heads, kv_heads, dim = 64, 128, 4, 2, 32
    vision = 2 * (2 * d + 3 * d + d + 2 * 96 + d) + d + 4 * d + width
    return vision + 2 * (2 * width + (heads + 2 * kv_heads) * dim) + width


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_models.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(Skip, match=r"toy takes .* GB in .*, 0 are free"):
        gpu_models.build(lab, "toy", SIDE)
    assert not list((lab.folder / "toy").iterdir())


def test_stages_are_timed_one_by_one(built: Lab) -> None:
    found = gpu_real.stages(built, "toy", SIDE)
    assert set(found["stage_ms"]) == {"preprocess", "vision", "tokens", "prefill"}
    assert all(each["n"] == FEW.stages for each in found["stage_ms"].values())
    assert {each["n"] for each in found["vision_ms_a_unit"].values()} == {FEW.unit_runs}
    assert found["ceiling"].keys() == {"skipped"}
    assert re.search(NO_GPU, found["ceiling"]["skipped"])
    assert found["rates"]["vision"].keys() == {"tflop_s"}
    assert list(found["device_gb"]) == ["before", "engines loaded", "session warm"]
    assert found["system"]["memory"]["device_mb"] == FEW.device_mb


def test_rates_are_arithmetic_over_time() -> None:
    ms = {stage: spread([value]) for stage, value in (("vision", 10.0), ("prefill", 4.0))}
    found = stage_rates(ms, {"vision": 4000.0, "prefill": 800.0}, {"tflop_s": 800.0})
    assert found == {
        "vision": {"tflop_s": 400.0, "share_of_matrix_ceiling": 0.5},
        "prefill": {"tflop_s": 200.0, "share_of_matrix_ceiling": 0.25},
    }


def test_the_whole_pipeline_overlapped_and_sequential(built: Lab) -> None:
    found = gpu_real.pipeline(built, "toy", SIDE)
    assert found["chunks_of_each"] == 4
    assert all(each["n"] == FEW.repeats for each in found["ms_a_chunk"].values())
    assert found["frames_a_second"]["overlapped"] == pytest.approx(
        16e3 / found["ms_a_chunk"]["overlapped"]["median"], abs=0.1
    )
    assert found["published"]["frames_a_second"] == 134
    assert "share_of_matrix_ceiling" not in found  # nothing was measured to share


def test_a_thousand_chunks_of_each_mode_unless_told_otherwise() -> None:
    assert PipelineAmount().chunks * PipelineAmount().repeats >= 1000


def test_reach_is_a_share_of_what_the_ceiling_allows() -> None:
    ms = {"overlapped": spread([20.0]), "sequential": spread([40.0])}
    found = reach(ms, 8000.0, {"tflop_s": 800.0})  # a chunk of 8 TFLOP takes 10 ms at least
    assert found["frames_a_second"] == {"overlapped": 800.0, "sequential": 400.0}
    assert (
        found["ceiling_allows_frames_a_second"],
        found["share_of_matrix_ceiling"],
        found["goal_reached"],
    ) == (1600.0, 0.5, False)
    assert reach(ms, 8000.0, {"tflop_s": 600.0})["goal_reached"]


def test_decoding_is_reported_apart(built: Lab) -> None:
    found = gpu_real.encoded(built, "toy", SIDE, "cpu")
    assert (found["source"], found["chunks"]) == ("H.264 file, decoded on the CPU", 2)
    assert found["frames_a_second"] > 0
    assert [path.name for path in built.folder.glob("*.mp4")] == ["stream-64x36-16.mp4"]


def test_without_nvdec_its_step_is_skipped(built: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PyNvVideoCodec", None)
    with pytest.raises(Skip, match="pip install PyNvVideoCodec"):
        gpu_real.encoded(built, "toy", SIDE, "gpu")


@pytest.mark.slow
def test_questions_idle_and_while_ingesting(built: Lab) -> None:
    found = gpu_real.questions(built, "toy", SIDE)
    loads = ["idle", "1x real time, 30 frames/s", first_token.FULL_RATE]
    assert list(found["freshness"]) == ["complete", "now"]
    for measured in found["freshness"].values():
        assert list(measured["loads"]) == loads
        assert all(load["answers"] == FEW.questions for load in measured["loads"].values())
        assert measured["between_tokens_ms"]["idle"]["median"] > 0
    for goal in found["goals"]:
        p99 = found["freshness"][goal["freshness"]]["loads"][goal["load"]]["ttft_ms"]["p99"]
        assert goal["reached"] == (p99 <= goal["p99_ms"] == 15)
    assert len(found["goals"]) == 3
    # at full rate an answer that waits for all frames waits for a queue, which no GPU shortens
    assert ("complete", loads[2]) not in [(g["freshness"], g["load"]) for g in found["goals"]]


def test_every_number_of_units_is_run_before_a_question_counts(built: Lab, monkeypatch) -> None:
    units: dict[str, set[int]] = {"vision": set(), "tokens": set()}

    def note(enqueue, graph):
        def noted(bindings, stream):
            units[graph].add(bindings["features"].shape[0])
            return enqueue(bindings, stream)

        return noted

    with gpu_real.pipeline_setup(built, "toy", SIDE) as work, work.stream(overlap=True) as stream:
        for graph in units:
            engine = work.engines.engine(graph)
            monkeypatch.setattr(engine, "enqueue", note(engine.enqueue, graph))
        first_token.ask_at_every_unit(stream)
        chunks = [event.frames for event in stream.watch.chunks]
    assert units == {"vision": set(range(1, 9)), "tokens": set(range(1, 9))}
    assert set(chunks) == {16}


class Talker:
    """A session with a clock of its own, whose first token takes 5 ms, and each other one as long
    as it says."""

    def __init__(self, between: float, tokens: int) -> None:
        self.between, self.tokens, self.now = between, tokens, 0.0

    def perf_counter(self) -> float:
        return self.now

    def ask(self, question, *, sampling):
        self.now += 0.005 + self.between * (self.tokens - 1)
        return SimpleNamespace(ttft_ms=5.0, tokens=self.tokens)


def test_the_time_between_tokens_leaves_the_first_one_out(monkeypatch) -> None:
    talker = Talker(0.004, 6)
    monkeypatch.setattr(gpu_real, "time", talker)
    assert gpu_real.between_tokens(talker, 2, 6)["median"] == pytest.approx(4)
    assert gpu_real.between_tokens(Talker(0.0, 1), 1, 6).startswith("every answer had fewer")


# ---- the profile


def test_the_profile_says_where_the_time_goes(built: Lab) -> None:
    found = gpu_profile.profile(built, "toy", SIDE)
    assert list(found["runs"]) == [
        "vision, a chunk",
        "tokens, three units",
        "prefill, a chunk",
        "decode, a token",
        "output head",
    ]
    assert found["runs"]["vision, a chunk"]["layers"]["top_layers"] == [
        {"layer": "all of vision", "ms": 1.0}
    ]
    costs = [(cost["run"], cost["kind"]) for cost in found["top"]]
    assert costs == [("vision, a chunk", "all of vision"), ("prefill, a chunk", "all of llm")]
    assert set(found["pipeline"]["busy_share"]) >= {"preprocess", "vision", "tokens", "prefill"}
    assert json.loads(Path(found["trace"]).read_text())["traceEvents"]


def test_engines_that_tell_no_layers_are_named(built: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("vicort.runtime.engines.tensorrt.TensorRTEngine.layer_times")
    found = gpu_profile.profile(built, "toy", SIDE)
    assert (
        found["runs"]["decode, a token"]["layers"]
        == "engines of tensorrt do not report the times of their layers"
    )
    assert found["top"] == []


def test_layers_that_differ_in_numbers_are_one_kind() -> None:
    found = summed({"blocks.0.mlp": [1.0, 3.0, 2.0], "blocks.11.mlp": [4.0], "head": [5.0]})
    assert found["top_kinds"] == [
        {"kind": "blocks.#.mlp", "layers": 2, "ms": 6.0},
        {"kind": "head", "layers": 1, "ms": 5.0},
    ]
    assert found["top_layers"][0] == {"layer": "head", "ms": 5.0}
    assert found["sum_ms"] == 11.0
    assert kind_of("a1b22_333") == "a#b#_#"


def test_gaps_are_where_no_span_is_open() -> None:
    ms = 1_000_000
    spans = {
        "vision": [Span(0, 0, 4 * ms), Span(1, 6 * ms, 10 * ms)],
        "prefill": [Span(0, 3 * ms, 5 * ms), Span(1, 7 * ms, 8 * ms)],
    }
    found = gaps(spans)
    assert found["wall_ms"] == 10
    assert found["busy_share"] == {"vision": 0.8, "prefill": 0.3}
    assert found["idle_share"] == pytest.approx(0.1)  # from 5 to 6
    assert {stage: each["median"] for stage, each in found["gap_ms"].items()} == {
        "vision": 2.0,
        "prefill": 2.0,
    }


def test_what_lies_within_counts_once() -> None:
    assert covered([Span(0, 0, 10), Span(1, 2, 4), Span(2, 9, 12), Span(3, 20, 21)]) == 13


# ---- transformers


def test_transformers_does_the_job_on_the_same_weights(
    built: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WARMUP", 2), ("CHUNKS", 2), ("REPEATS", 2), ("QUESTIONS_ASKED", 2)):
        monkeypatch.setattr(gpu_transformers, name, value)
    found = gpu_transformers.measure(Place.of(built, "toy"), SIDE, Variant("bf16"))
    assert (found["variant"], found["chunks"], found["ttft_ms"]["idle"]["n"]) == (
        "bf16 1t batched windows",
        4,
        2,
    )
    assert found["ms_a_chunk"]["n"] == 2
    with pytest.raises(Skip, match=NO_GPU):
        gpu_transformers.transformers(built, "toy", SIDE, False)


def test_letterboxing_on_a_device_gives_what_pil_gives() -> None:
    images = torch.randint(
        0, 256, (2, 45, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    smooth = (
        torch.nn.functional.avg_pool2d(images.permute(0, 3, 1, 2).float(), 5, 1, 2)
        .permute(0, 2, 3, 1)
        .round()
        .to(torch.uint8)
    )
    ours = letterbox_tensor(smooth, 112, 112)
    for index in range(2):
        wanted = torch.from_numpy(letterbox(smooth[index].numpy(), 112, 112)).float()
        assert (ours[index] - wanted).abs().max() <= 2
        assert (ours[index] - wanted).abs().mean() < 0.2


# ---- tables


@pytest.mark.slow
def test_tables_hold_what_passed_and_nothing_else(
    built: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_token, "ask_at_every_unit", lambda stream: None)  # which takes long
    steps = {
        "3b-stages": gpu_real.stages(built, "toy", SIDE),
        "3b-pipeline": gpu_real.pipeline(built, "toy", SIDE),
        "3b-questions": gpu_real.questions(built, "toy", SIDE),
        "3b-profile": gpu_profile.profile(built, "toy", SIDE),
    }
    outcomes = {
        name: {"outcome": "passed", **found}
        for name, found in json.loads(json.dumps(steps)).items()
    }
    outcomes["3b-decode-gpu"] = {"outcome": "skipped", "reason": "no NVDEC"}
    text = "\n".join(line for table in tables(outcomes) for line in table.text())
    rate = outcomes["3b-pipeline"]["frames_a_second"]["overlapped"]
    assert f"{rate:,.1f}" in text
    assert "134 frames/s on one A100: 16 frames / the slowest stage's 119 ms" in text
    assert "vision, a chunk: all of vision" in text
    assert "NVDEC" not in text
    assert not list(tables({name: {"outcome": "failed", "reason": "?"} for name in steps}))


def test_a_language_engine_is_shared_only_if_it_is_the_same(tmp_path: Path) -> None:
    model = SimulatedTensorRTSet(0).manifest.model
    graph = GraphSpec(
        file="llm.plan", inputs=(), outputs=(), dimensions={}, layer_types={"PLUGIN_V3": 2}
    )
    common = {
        "backend": "tensorrt",
        "flavour": "tensorrt_rtx",
        "precision": "bf16",
        "model": model,
        "checkpoint": "",
        "target": "",
    }
    embedding = EmbeddingSpec(file="embedding.bin", offset=0, dtype="bfloat16", rows=1, width=1)
    manifest = Manifest(
        **common,
        graphs={"llm": graph},
        embedding=embedding,
        versions={},
        build_command="vicort-build x",
    )
    mine, other = tmp_path / "mine", tmp_path / "other"
    head = GraphSpec(file="head.plan", inputs=(), outputs=(), dimensions={})
    language = {"llm": graph, "head": head}
    for folder, graphs in ((mine, {}), (other, language)):
        folder.mkdir()
        manifest.model_copy(update={"graphs": graphs}).write(folder)
    for name in ("llm.plan", "head.plan", "embedding.bin"):
        (other / name).write_bytes(b"weights")
    with pytest.raises(EngineError, match="another language graph"):
        share_language(
            mine, other, language | {"llm": graph.model_copy(update={"file": "other.plan"})}
        )
    share_language(mine, other, language | {"llm": graph.model_copy(update={"layer_types": {}})})
    found = read_manifest(mine)
    assert found.graphs == language
    for name in ("llm.plan", "head.plan"):
        assert isinstance(found.files[name], FileSpec)
        assert (mine / name).samefile(other / name)


@pytest.mark.slow
def test_tensorrt_builds_both_sizes_of_frames_with_one_language_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real, which takes no GPU."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(gpu_models, "SIZES", {"toy": TINY})
    lab = Lab(tmp_path, Gpu(SimulatedDriver()))
    with lab.trying_tensorrt():
        pass
    built = {side: gpu_models.build(lab, "toy", side)["sets"][str(side)] for side in TINY.sides}
    first, second = (read_manifest(tmp_path / "toy" / f"tensorrt-{side}") for side in TINY.sides)
    assert first.graphs["llm"] == second.graphs["llm"]
    assert first.graphs["llm"].plugin_layers == TINY.text["num_hidden_layers"]
    assert [manifest.model.fixed_size[0] for manifest in (first, second)] == list(TINY.sides)
    assert (tmp_path / "toy" / f"tensorrt-{SIDE}" / "llm.plan").samefile(
        tmp_path / "toy" / "tensorrt-112" / "llm.plan"
    )
    assert "building llm.plan" in built[SIDE]["phase_seconds"]
    assert "building llm.plan" not in built[112]["phase_seconds"]
    for side in TINY.sides:
        runs = stored_runs(tmp_path / "toy" / f"tensorrt-{side}")
        assert {run.graph for run in runs} == {"vision", "tokens", "head", "llm"}
    again = [gpu_models.build(lab, "toy", side)["sets"] for side in TINY.sides]
    assert [each["built"] for sets in again for each in sets.values()] == ["earlier", "earlier"]


def test_seconds_are_of_the_phase_that_was_begun() -> None:
    times = iter([0.0, 1.0, 4.0, 9.0])
    phases = gpu_models.Phases(lambda: next(times))
    for line in ("export", "build", ""):
        phases.begin(line)
    assert phases.seconds == {"export": 3.0, "build": 5.0}


def test_sizes_are_told_apart_by_their_tokens_a_chunk() -> None:
    larger = arithmetic.of_chunk(SIZES["3b"].config, 448, 16, bench_system())
    smaller = arithmetic.of_chunk(SIZES["3b"].config, 308, 16, bench_system())
    assert 1.9 < larger.vision / smaller.vision < 2.6
    assert replace(TINY, tied=False).config["tie_word_embeddings"] is False
