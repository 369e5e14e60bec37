"""How the compiled kernels are read, chosen and launched: without a GPU, with a launcher that only
records."""

from __future__ import annotations

import io
import json
import math
import warnings
import zipfile
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.interpreter import stand_in
from support.sizes import examples

from vicort.runtime.devices.cuda.loaded_kernels import PARAMETERS, LoadedKernels
from vicort.runtime.errors import EngineError
from vicort.runtime.kernels import (
    INDEX,
    MAX_SCRATCH_BYTES,
    MAX_SHARES,
    ROTATED_FROM,
    SCRATCH_ALIGNMENT,
    Kernels,
    KernelSpec,
    Scratch,
    fitting_architecture,
)

TILES = {"wide": (128, 64), "narrow": (16, 64)}


class Recorder:
    """A launcher that notes what it was asked."""

    def __init__(self) -> None:
        self.constants: list[bytes] = []
        self.launches: list[dict[str, Any]] = []

    def load(self, cubin: bytes, function: str, shared_bytes: int) -> str:
        return function

    def launch(self, kernel, grid, threads, shared_bytes, stream_handle, args) -> None:
        self.launches.append(
            {
                "kernel": kernel,
                "grid": grid,
                "threads": threads,
                "stream": stream_handle,
                "args": list(args),
            }
        )

    def constant(self, data: bytes) -> int:
        self.constants.append(data)
        return 0xC0


def make_spec(**changes: Any) -> KernelSpec:
    parts: dict[str, Any] = {
        "kv_heads": 2,
        "groups": 8,
        "head_dim": 128,
        "page_tokens": 16,
        "dtype": "bfloat16",
        "sections": (16, 24, 24),
    }
    parts |= changes
    return KernelSpec(
        frequencies=tuple(np.linspace(1, 0, parts["head_dim"] // 2, dtype=np.float32).tolist()),
        **parts,
    )


def make_kernels(
    spec: KernelSpec | None = None, architectures: tuple[int, ...] = (80, 86, 89, 90, 120)
) -> Kernels:
    return Kernels.parse(stand_in(spec or make_spec(), TILES, architectures))


def load(kernels: Kernels, multiprocessors: int = 132) -> tuple[LoadedKernels, Recorder]:
    recorder = Recorder()
    return LoadedKernels(
        kernels, capability=(9, 0), multiprocessors=multiprocessors, launcher=recorder
    ), recorder


def attend(loaded: LoadedKernels, **changes: Any) -> None:
    pointers = {
        "q": 1,
        "k": 2,
        "v": 3,
        "pos": 4,
        "segment": 5,
        "until": 6,
        "pool": 1 << 40,
        "where": 1 << 20,
        "table": 1 << 10,
        "out": 8,
        "workspace": 9,
    }
    shapes = {
        "pool_shape": (50, 4, 2, 2, 16, 128),
        "where_shape": (50, 1, 1, 16, 3),
        "table_shape": (1, 1, 1, 7),
    }
    loaded.attention(
        **(pointers | shapes | {"rows": 1, "layer": 2, "scale": 0.125, "stream": 77} | changes)
    )


specs = st.builds(
    make_spec,
    kv_heads=st.integers(1, 8),
    groups=st.sampled_from([1, 2, 4, 7, 8]),
    head_dim=st.sampled_from([32, 128]),
    page_tokens=st.sampled_from([4, 8, 16, 32]),
)


@settings(max_examples=examples(300))
@given(
    spec=specs,
    rows=st.integers(1, 2048),
    pages=st.integers(0, 4096),
    multiprocessors=st.integers(1, 200),
    segments=st.integers(1, 4),
    spare=st.tuples(st.integers(0, 500), st.integers(0, 500), st.integers(0, 4)),
    capability=st.sampled_from([(8, 0), (9, 0), (12, 0)]),
)
def test_programs_cover_all_queries_and_the_workspace_has_a_bound(
    spec, rows, pages, multiprocessors, segments, spare, capability
):
    kernels = make_kernels(spec)
    plan = kernels.plan(rows, pages, multiprocessors, capability, segments)
    tiles, heads, shares = plan.grid
    block_m, block_n = TILES[plan.form or "wide"]
    assert (tiles - 1) * block_m < rows * spec.groups <= tiles * block_m
    assert heads == spec.kv_heads
    key_tiles = math.ceil(segments * pages * spec.page_tokens / block_n) + math.ceil(rows / block_n)
    assert 1 <= shares <= min(MAX_SHARES, key_tiles)
    needed = shares * rows * spec.groups * heads * (spec.head_dim + 2) * 4 if shares > 1 else 0
    needed += plan.scratch.bytes if plan.scratch else 0
    assert plan.workspace_bytes == needed
    more_rows, more_pages, more_segments = spare
    largest = rows + more_rows, pages + more_pages, segments + more_segments
    assert needed <= kernels.workspace_bytes(*largest)


@settings(max_examples=examples(200))
@given(
    spec=specs,
    rows=st.integers(1, 2048),
    pages=st.integers(0, 600),
    segments=st.integers(1, 4),
    blocks=st.sampled_from([(128, 64), (64, 32), (16, 16)]),
)
def test_scratch_memory_holds_each_part_and_none_overlap(spec, rows, pages, segments, blocks):
    scratch = Scratch.of(spec, blocks, rows, pages, segments)
    sizes = scratch.sizes
    assert sizes["cached"] == segments * sizes["segment_tokens"]
    assert 0 <= sizes["segment_tokens"] - pages * spec.page_tokens < blocks[1]
    assert 0 <= sizes["new_tokens"] - rows < blocks[1]
    assert 0 <= sizes["vectors"] - rows * spec.groups < blocks[0]
    assert sizes["segment_tokens"] % blocks[1] == sizes["new_tokens"] % blocks[1] == 0
    token = spec.kv_heads * spec.head_dim * spec.item_bytes
    tokens = sizes["cached"] + sizes["new_tokens"]
    ends = {"queries": sizes["vectors"] * token, "keys": tokens * token, "values": tokens * token}
    ends["bias"] = sizes["cached"] * spec.kv_heads * 4
    starts = [*scratch.offsets.values(), scratch.bytes]
    for (name, start), following in zip(scratch.offsets.items(), starts[1:], strict=True):
        assert start % SCRATCH_ALIGNMENT == 0
        assert start + ends[name] <= following


@pytest.mark.parametrize(
    ("rows", "pages", "first"),
    [
        (1, 40_000, False),  # decoding, however long the table
        (16, 64, False),  # a question's few rows over little
        (40, 512, True),
        (289, 80, True),  # a chunk of 3B
        (512, 512, True),
        (512, 0, False),  # little to rotate twice
        (512, 5_000, False),  # more than scratch memory may take
    ],
)
def test_keys_are_rotated_first_where_many_rows_read_many(rows, pages, first):
    assert (make_kernels().plan(rows, pages, 132, (9, 0)).scratch is not None) == first


def test_in_float32_keys_are_rotated_as_they_are_read():
    assert make_kernels(make_spec(dtype="float16")).plan(289, 80, 132, (9, 0)).scratch
    assert not make_kernels(make_spec(dtype="float32")).plan(289, 80, 132, (9, 0)).scratch


def test_more_multiprocessors_take_more_work_before_keys_are_rotated_first():
    scores = 40 * 16 * (40 + 100 * 16)
    at = scores // ROTATED_FROM
    assert make_kernels().plan(40, 100, at, (9, 0)).scratch
    assert not make_kernels().plan(40, 100, at + 1, (9, 0)).scratch


def test_one_row_fills_the_gpu():
    tiles, heads, shares = make_kernels().plan(1, 2048, 132, (9, 0)).grid
    assert 100 <= tiles * heads * shares <= 264


def test_the_workspace_is_bounded_however_large_the_table():
    kernels = make_kernels()
    assert kernels.workspace_bytes(2048, 1 << 20, 64) <= MAX_SCRATCH_BYTES + (35 << 20)
    assert kernels.workspace_bytes(1, 4) < kernels.workspace_bytes(1, 4096)


def test_arguments_are_those_of_the_cubin_with_hidden_ones_zero():
    loaded, recorder = load(make_kernels())
    attend(loaded, rows=2, table_shape=(1, 1, 1, 900))
    loaded.scatter_tokens(k=1, v=2, slots=3, cells=4, pool=5, count=6, rows=7, layers=8, stream=9)
    loaded.set_places(slots=1, places=2, where=3, count=4, stream=5)
    assert [launch["kernel"] for launch in recorder.launches] == [
        "bounded_attention",
        "combine",
        "scatter_tokens",
        "set_places",
    ]
    index = {each.kernel: each for each in loaded.kernels.compiled if each.architecture == 90}
    for launch in recorder.launches:
        assert tuple(kind for kind, _ in launch["args"]) == index[launch["kernel"]].arguments
        assert [value for _, value in launch["args"][-2:]] == [0, 0]
        assert launch["threads"] == 32 * index[launch["kernel"]].warps
    assert [launch["grid"] for launch in recorder.launches[2:]] == [(6, 8, 1), (4, 1, 1)]
    assert [launch["stream"] for launch in recorder.launches] == [77, 77, 9, 5]


def test_keys_that_are_rotated_first_stay_in_the_workspace():
    loaded, recorder = load(make_kernels())
    table, workspace = (2, 1, 1, 300), 1 << 30
    attend(loaded, rows=100, table_shape=table, workspace=workspace)
    plan = loaded.kernels.plan(100, 300, 132, (9, 0), 2)
    assert plan.scratch
    names = ["rotate_tokens", "rotated_attention", "combine"]
    assert [launch["kernel"] for launch in recorder.launches] == names
    index = {each.kernel: each for each in loaded.kernels.compiled if each.architecture == 90}
    given = {}
    for launch in recorder.launches[:2]:
        kernel = launch["kernel"]
        assert tuple(kind for kind, _ in launch["args"]) == index[kernel].arguments
        assert launch["stream"] == 77
        values = (value for _, value in launch["args"])
        given[kernel] = dict(zip(PARAMETERS[kernel], values, strict=False))
    first, second = given["rotate_tokens"], given["rotated_attention"]
    for name, offset in plan.scratch.offsets.items():
        assert first[name] == second[name] == workspace + offset
    for name, size in plan.scratch.sizes.items():
        assert first[name] == second[name] == size
    assert second["partial"] == workspace + plan.scratch.bytes
    assert (second["segments"], first["pages"], second["scale"]) == (
        2,
        300,
        pytest.approx(0.125 / math.log(2)),
    )
    blocks, heads, _ = recorder.launches[0]["grid"]
    sizes = plan.scratch.sizes
    assert blocks * 16 == sizes["cached"] + sizes["new_tokens"] + sizes["vectors"]
    assert heads == 2
    assert recorder.launches[1]["grid"] == plan.grid
    assert recorder.launches[2]["args"][0] == ("pointer", second["partial"])


@pytest.mark.parametrize(
    ("where_shape", "table_shape", "where_first", "table_first", "where_head", "table_head"),
    [
        ((50, 1, 1, 16, 3), (1, 1, 1, 7), 0, 0, 0, 0),
        ((50, 4, 1, 16, 3), (1, 1, 2, 7), 2 * 48 * 4, 0, 0, 7),
        ((50, 4, 2, 16, 3), (1, 4, 1, 7), 2 * 2 * 48 * 4, 2 * 7 * 4, 48, 0),
        ((50, 1, 2, 16, 3), (3, 4, 2, 7), 0, 2 * 2 * 7 * 4, 48, 7),
    ],
)
def test_a_dimension_of_one_serves_all_layers_or_heads(
    where_shape, table_shape, where_first, table_first, where_head, table_head
):
    loaded, recorder = load(make_kernels())
    attend(loaded, where_shape=where_shape, table_shape=table_shape)
    values = [value for _, value in recorder.launches[0]["args"]]
    assert values[:6] == [1, 2, 3, 4, 5, 6]
    assert values[6] == (1 << 40) + 2 * 2 * 2 * 16 * 128 * 2
    assert values[8:10] == [(1 << 20) + where_first, (1 << 10) + table_first]
    rows, pages, segments, slot_cells, where_slot = values[13:18]
    assert (rows, pages, segments, slot_cells) == (1, 7, table_shape[0], 4 * 2)
    assert where_slot == math.prod(where_shape[1:])
    assert values[18:21] == [where_head, math.prod(table_shape[1:]), table_head]
    assert values[21] == pytest.approx(0.125 / math.log(2))


def test_an_int8_pool_has_items_of_a_byte_and_scales_of_four():
    loaded, recorder = load(make_kernels(make_spec(kv="int8")))
    attend(loaded, scales=1 << 30)
    values = [value for _, value in recorder.launches[0]["args"]]
    assert values[6:8] == [
        (1 << 40) + 2 * 2 * 2 * 16 * 128,
        (1 << 30) + 2 * 2 * 2 * 16 * 4,
    ]


@pytest.mark.parametrize(("kv", "scales"), [("float", 1 << 30), ("int8", None)])
def test_scales_without_an_int8_pool_are_refused_and_the_reverse(kv, scales):
    loaded, recorder = load(make_kernels(make_spec(kv=kv)))
    with pytest.raises(EngineError, match=f"for pages of {kv}"):
        attend(loaded, scales=scales)
    assert not recorder.launches


@pytest.mark.parametrize(
    "changes",
    [
        {"pool_shape": (50, 4, 2, 2, 8, 128)},
        {"pool_shape": (50, 4, 3, 2, 16, 128)},
        {"where_shape": (50, 3, 1, 16, 3)},
        {"table_shape": (1, 1, 4, 7)},
    ],
)
def test_shapes_that_are_not_the_kernels_are_refused(changes):
    loaded, recorder = load(make_kernels())
    with pytest.raises(EngineError, match="does not fit the kernels"):
        attend(loaded, **changes)
    assert not recorder.launches


def test_nothing_to_do_launches_nothing():
    loaded, recorder = load(make_kernels())
    attend(loaded, rows=0)
    loaded.scatter_tokens(k=1, v=2, slots=3, cells=4, pool=5, count=0, rows=7, layers=8, stream=9)
    loaded.set_places(slots=1, places=2, where=3, count=0, stream=5)
    assert not recorder.launches


def test_frequencies_go_to_the_gpu_once_as_they_are():
    loaded, recorder = load(make_kernels())
    attend(loaded)
    assert recorder.constants == [np.array(loaded.spec.frequencies, np.float32).tobytes()]
    assert recorder.launches[0]["args"][12] == ("pointer", 0xC0)


def test_tables_hold_cos_and_then_sin_of_each_position():
    cos, sin = make_spec(positions=30).rotary()
    frequencies = np.array(make_spec().frequencies)
    np.testing.assert_allclose(cos, np.cos(np.arange(30)[:, None] * frequencies), atol=2e-6)
    np.testing.assert_allclose(sin[29], np.sin(29 * frequencies), atol=2e-6)


FAMILIES = (80, 86, 89, 90, 100, 103, 110, 120, 121)


@pytest.mark.parametrize(
    ("capability", "available", "architecture"),
    [
        ((8, 0), FAMILIES, 80),
        ((8, 7), FAMILIES, 86),  # binaries run on later minor versions
        ((8, 7), (80, 86, 87, 89), 87),
        ((8, 9), (80, 86), 86),
        ((9, 0), FAMILIES, 90),  # from here on they use features of one version
        ((10, 0), FAMILIES, 100),
        ((10, 3), FAMILIES, 103),
        ((10, 3), (100, 110), None),
        ((11, 0), FAMILIES, 110),
        ((12, 0), FAMILIES, 120),
        ((12, 1), FAMILIES, 121),
        ((12, 1), (120,), None),
        ((8, 0), (86, 89), None),  # never an older one
        ((7, 5), FAMILIES, None),
    ],
)
def test_the_nearest_older_cubin_of_the_same_generation_serves(capability, available, architecture):
    assert fitting_architecture(available, capability) == architecture


@pytest.mark.parametrize("capability", [(7, 5), (10, 0), (12, 1)])
def test_a_gpu_without_a_cubin_is_named(capability):
    with pytest.raises(
        EngineError,
        match=rf"for sm_{capability[0]}{capability[1]}, only for sm_80, .*sm_120: .*--target",
    ):
        make_kernels(architectures=(80, 90, 120)).architecture(capability)


def edited(change: str, value: object) -> bytes:
    """A kernels.zip whose index says something else."""
    source = zipfile.ZipFile(io.BytesIO(stand_in(make_spec(), TILES)))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            archive.writestr(
                name, json.dumps(json.loads(data) | {change: value}) if name == INDEX else data
            )
    return target.getvalue()


def with_members(*members: tuple[str, bytes]) -> bytes:
    """A good archive with more in it."""
    target = io.BytesIO(stand_in(make_spec(), TILES))
    with warnings.catch_warnings(), zipfile.ZipFile(target, "a") as archive:
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(name, data)
    return target.getvalue()


def with_kernel(**changes: object) -> bytes:
    """A good archive of which the first kernel says something else."""
    with zipfile.ZipFile(io.BytesIO(stand_in(make_spec(), TILES))) as archive:
        kernels = json.loads(archive.read(INDEX))["kernels"]
    return edited("kernels", [kernels[0] | changes, *kernels[1:]])


def with_spec(**changes: object) -> bytes:
    return edited("spec", make_spec().model_dump() | changes)


def without(name: str) -> bytes:
    source = zipfile.ZipFile(io.BytesIO(stand_in(make_spec(), TILES)))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for each in source.namelist():
            if each != name:
                archive.writestr(each, source.read(each))
    return target.getvalue()


def flipped() -> bytes:
    data = bytearray(stand_in(make_spec(), TILES))
    data[len(data) // 4] ^= 0xFF
    return bytes(data)


def bomb(size: int) -> bytes:
    """A good archive with `size` zeros, whole MiB, packed into a thousandth of them."""
    packer = zlib.compressobj(wbits=-15)
    unit = bytes(1 << 20)
    start, repeated = (packer.compress(unit) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    count = size // len(unit)
    checksum = 0
    for _ in range(count):
        checksum = zlib.crc32(unit, checksum)
    target = io.BytesIO(stand_in(make_spec(), TILES))
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("bomb", start + repeated * (count - 1) + packer.flush())
        member = archive.getinfo("bomb")
        member.compress_type = zipfile.ZIP_DEFLATED
        member.file_size, member.CRC = size, checksum
    return target.getvalue()


def test_a_bomb_is_a_good_archive():
    """A reader may look at its local header, which says another size than the directory."""
    with zipfile.ZipFile(io.BytesIO(bomb(2 << 20))) as archive:
        assert archive.read("bomb") == bytes(2 << 20)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: b"", "is damaged"),
        (lambda: b"not a zip", "is damaged"),
        (lambda: stand_in(make_spec(), TILES)[:-50], "is damaged"),
        (flipped, "is damaged"),
        (lambda: without(INDEX), "is damaged"),
        (lambda: without("sm_90/combine"), "is damaged"),
        (lambda: edited("schema_version", 99), "schema version 99"),
        (lambda: edited("kernels", [{"kernel": "other"}]), "kernels.0"),
        (lambda: edited("schema_version", [[[]]] * 10_000), "schema version"),
        (lambda: with_members(("kernels.json", b"{}")), "comes twice"),
        (lambda: with_members(("../secret", b"")), "no name of a file"),
        (lambda: with_members(("/etc/passwd", b"")), "no name of a file"),
        (lambda: with_members(*((str(i), b"") for i in range(4096))), "more than"),
        (lambda: bomb(513 << 20), "at most 536870912"),
        (lambda: edited("versions", {"x": "y" * (5 << 20)}), "at most 4194304"),
        (lambda: edited("versions", {"x": "HERE"}).replace(b"HERE", b"H\nRE"), "is damaged"),
        (lambda: with_spec(positions=10**9), "spec.positions"),
        (lambda: with_spec(kv_heads=10**30), "spec.kv_heads"),
        (lambda: with_spec(frequencies=[1.0] * 10_000), "spec.frequencies"),
        (lambda: with_kernel(warps=-1), "kernels.0.warps"),
        (lambda: with_kernel(constants={"BLOCK_M": 0, "BLOCK_N": 16}), "BLOCK_M is 0"),
        (lambda: with_kernel(constants={}), "BLOCK_M is None"),
    ],
)
def test_damage_is_one_line_with_what_to_do(tmp_path, make, words):
    path = tmp_path / "kernels.zip"
    path.write_bytes(make())
    with pytest.raises(EngineError, match=words) as raised:
        Kernels.read(path)
    assert str(path) in str(raised.value)
    assert "rebuild" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EngineError, match=r"kernels\.zip cannot be read .*rebuild"):
        Kernels.read(tmp_path / "kernels.zip")


def test_an_archive_without_one_of_the_kernels_is_refused():
    kernels = make_kernels()
    fewer = Kernels(
        kernels.name,
        kernels.spec,
        {},
        tuple(each for each in kernels.compiled if each.form != "wide"),
        kernels.cubins,
    )
    with pytest.raises(EngineError, match="no bounded_attention wide for sm_90"):
        load(fewer)
