"""The files that ONNX graphs name for their weights, compared with what the onnx package writes."""

import itertools
import re
import shutil

import onnx
import pytest
from onnx import TensorProto, helper

from vicort.runtime.engines.engine_set import EngineSet
from vicort.runtime.engines.external_data import external_files
from vicort.runtime.errors import EngineError
from vicort.runtime.manifest import fingerprint, read_manifest


def outside(name, location):
    """A tensor of four floats whose numbers lie in a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant(name, **value):
    return helper.make_node("Constant", [], [name], **value)


def graph(nodes=(), tensors=()):
    return helper.make_graph(list(nodes), "g", [], [], list(tensors))


def test_every_place_of_a_tensor_is_found(tmp_path):
    sparse = helper.make_sparse_tensor(outside("v", "sparse"), outside("i", "places"), [9])
    inner = graph([constant("b", value=outside("b", "inner node"))], [outside("c", "inner")])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=graph())
    outer = graph([node, constant("s", sparse_value=sparse)], [outside("a", "../a")])
    outer.sparse_initializer.append(sparse)
    function = helper.make_function(
        "own", "f", [], ["d"], [constant("d", value=outside("d", "/etc/d"))], []
    )
    model = helper.make_model(outer, functions=[function])
    model.training_info.add().algorithm.CopyFrom(graph(tensors=[outside("t", "training")]))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    expected = {"sparse", "places", "inner node", "inner", "../a", "/etc/d", "training"}
    assert external_files(tmp_path / "a.onnx") == expected


def nested(depth):
    found = graph(tensors=[outside("a", "deep")])
    for _ in range(depth):
        found = graph([helper.make_node("If", [], [], then_branch=found)])
    return helper.make_model(found).SerializeToString()


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 100, b"\x3a\xff\xff\xff\xff\x0f", b"not a graph", b"\x3b", nested(25)],
    ids=lambda content: str(content[:8]),
)
def test_what_is_no_graph_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(EngineError, match="is no ONNX graph") as caught:
        external_files(tmp_path / "a.onnx")
    assert str(caught.value).isprintable()


def all_tensors(model):
    return itertools.chain(
        model.graph.initializer,
        (each.t for node in model.graph.node for each in node.attribute if each.HasField("t")),
    )


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("../secret", "is not a file name in the engine folder"),
        ("/etc/passwd", "is not a file name in the engine folder"),
        ("a/../../secret", "is not a file name in the engine folder"),
        ("notes.txt", "lists no 'notes.txt'"),
        ("*/_ORT_MEM_ADDR_/*", "lists no"),
    ],
)
def test_weights_come_from_listed_files_alone(build_tiny, tmp_path, backend, location, reason):
    folder = tmp_path / "set"
    shutil.copytree(build_tiny(backend), folder)
    good = read_manifest(folder)
    name = good.graphs["llm"].file
    model = onnx.load(folder / name, load_external_data=False)
    entries = [entry for tensor in all_tensors(model) for entry in tensor.external_data]
    next(entry for entry in entries if entry.key == "location").value = location
    (folder / name).write_bytes(model.SerializeToString())
    for secret in (folder / "notes.txt", tmp_path / "secret"):
        secret.write_bytes((folder / "llm.bin").read_bytes())
    files = good.files | {name: fingerprint(folder / name)}
    good.model_copy(update={"files": files}).write(folder)
    with pytest.raises(EngineError, match=re.escape(name)) as caught:
        EngineSet.open(folder)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()
