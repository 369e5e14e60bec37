"""`vicort::BoundedAttention` as an ONNX operator with a function body, which the CPU engines run.

`vicort.export.bounded_attention` documents semantics and shapes. The input `scales` comes last and
is optional: a node with it has another body. The attribute `frequencies` replaces `theta`, because
engines round powers differently. Positions, angles and masks are the same
for every layer: their expressions do not depend on `layer`, so common subexpression elimination
leaves one copy. Only the pages in the table are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir
import onnxscript
import torch
from onnx_ir import serde
from onnxscript import FLOAT, INT64
from onnxscript import opset21 as op

from vicort.export import bounded_attention  # noqa: F401 -- registers the torch operator

DOMAIN = "vicort"
NAME = "BoundedAttention"
VERSION = 1
OPSET = 21
INPUTS = ("q", "k", "v", "pos", "segment", "until", "pool", "where", "table")
SCALES = "scales"  # the last input where the pool is int8

_vicort = onnxscript.values.Opset(DOMAIN, VERSION)


@onnxscript.script(_vicort, default_opset=op)
def RotaryAngles(pos, sections: Sequence[int], frequencies: Sequence[float], interleaved: int):
    """Angles of the multimodal rotary embedding: pos [..., 3] int32 -> [..., D/2] float32."""
    inverse = op.Constant(value_floats=frequencies)  # [D/2]
    half = op.Squeeze(op.Shape(inverse))
    number = op.Range(op.Constant(value_int=0), half, op.Constant(value_int=1))  # [D/2] 0, 1, …
    ends = op.CumSum(op.Constant(value_ints=sections), op.Constant(value_int=0))  # [3]
    passed = op.Cast(
        op.GreaterOrEqual(op.Unsqueeze(number, op.Constant(value_ints=[1])), ends), to=INT64.dtype
    )
    by_section = op.ReduceSum(passed, op.Constant(value_ints=[1]), keepdims=0)  # [D/2]
    three = op.Constant(value_int=3)
    turn = op.Mod(number, three)
    limit = op.Mul(op.Gather(op.Constant(value_ints=sections), turn), three)
    in_turn = op.Where(op.Less(number, limit), turn, op.Constant(value_int=0))  # [D/2]
    mixed = op.Equal(op.Constant(value_int=interleaved), op.Constant(value_int=1))
    axis = op.Where(mixed, in_turn, by_section)  # [D/2] which of t, h, w
    return op.Mul(op.Cast(op.Gather(pos, axis, axis=-1), to=FLOAT.dtype), inverse)


@onnxscript.script(_vicort, default_opset=op)
def Rotate(x, cos, sin):
    """x [...,D] rotated by angles [...,D/2] in float32; the result has x's type."""
    first, second = op.Split(op.Cast(x, to=FLOAT.dtype), axis=-1, num_outputs=2)
    turned = op.Concat(
        op.Sub(op.Mul(first, cos), op.Mul(second, sin)),
        op.Add(op.Mul(second, cos), op.Mul(first, sin)),
        axis=-1,
    )
    return op.CastLike(turned, x)


@onnxscript.script(_vicort, default_opset=op)
def PagePlaces(where, table):
    """Positions of the cached tokens in the table's pages, and which cells are filled.

    table: [L|1,Hkv|1,M]. A and R are the larger of the two inputs' layer and head dimensions. ->
    [A,R,M*T,3] int32, [A,R,M*T] bool
    """
    zero = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    last = op.Constant(value_ints=[-1])
    layers_heads = op.Max(op.Shape(table, end=2), op.Shape(where, start=1, end=3))  # [2]
    # [A,R,M]
    slots = op.Cast(
        op.Expand(table, op.Concat(layers_heads, op.Shape(table, start=2), axis=0)), to=INT64.dtype
    )
    layers = op.Range(zero, op.Squeeze(op.Slice(layers_heads, [0], [1])), one)
    heads = op.Range(zero, op.Squeeze(op.Slice(layers_heads, [1], [2])), one)
    where_layer = op.Min(layers, op.Sub(op.Squeeze(op.Shape(where, start=1, end=2)), one))
    where_head = op.Min(heads, op.Sub(op.Squeeze(op.Shape(where, start=2, end=3)), one))
    index = op.Concat(
        op.Unsqueeze(op.Max(slots, zero), last),
        op.Unsqueeze(op.Expand(op.Reshape(where_layer, [-1, 1, 1]), op.Shape(slots)), last),
        op.Unsqueeze(op.Expand(op.Reshape(where_head, [-1, 1]), op.Shape(slots)), last),
        axis=-1,
    )
    places = op.GatherND(where, index)  # [A,R,M,T,3]
    time = op.Squeeze(op.Slice(places, [0], [1], [-1]), last)
    taken = op.GreaterOrEqual(time, op.CastLike(zero, time))
    filled = op.And(taken, op.Unsqueeze(op.GreaterOrEqual(slots, zero), last))
    return op.Reshape(places, op.Concat(layers_heads, [-1, 3], axis=0)), op.Reshape(
        filled, op.Concat(layers_heads, [-1], axis=0)
    )


@onnxscript.script(_vicort, default_opset=op)
def AllTables(table):
    """The tables [S,L|1,Hkv|1,N] of all segments one after another: [L|1,Hkv|1,S*N]."""
    layers_heads = op.Shape(table, start=1, end=3)
    return op.Reshape(op.Transpose(table, perm=[1, 2, 0, 3]), op.Concat(layers_heads, [-1], axis=0))


@onnxscript.script(_vicort, default_opset=op)
def Visible(pos, segment, until, table, filled):
    """Which columns each new row may attend to, [A,R,C,S*N*T+C] bool, the cached tokens first; and
    which rows are not padding, [C] bool.

    table: [S,…]; filled: [A,R,S*N*T] bool.
    """
    rows = op.Shape(pos, end=1)
    layers_heads = op.Shape(filled, end=2)
    tables = op.Shape(table, end=1)
    # no row's segment, and before every row
    none = op.CastLike(op.Constant(value_int=-2147483648), segment)
    number = op.CastLike(
        op.Range(op.Constant(value_int=0), op.Squeeze(tables), op.Constant(value_int=1)), segment
    )
    # [A,R,S,N*T] the segment that sees a cell
    owner = op.Where(
        op.Reshape(filled, op.Concat(layers_heads, tables, [-1], axis=0)),
        op.Unsqueeze(number, [1]),
        none,
    )
    mine = op.Unsqueeze(segment, [1])  # [C,1]
    columns = op.Reshape(owner, op.Concat(layers_heads, [1, -1], axis=0))  # [A,R,1,S*N*T]
    cached = op.Equal(columns, mine)
    real = op.GreaterOrEqual(
        op.Squeeze(op.Slice(pos, [0], [1], [-1]), [-1]),
        op.Constant(value=onnx.helper.make_tensor("zero", 6, [], [0])),
    )
    row = op.Range(op.Constant(value_int=0), op.Squeeze(rows), op.Constant(value_int=1))
    causal = op.And(
        op.GreaterOrEqual(op.Unsqueeze(row, [1]), row),
        op.Less(op.Unsqueeze(op.CastLike(row, until), [1]), op.Where(real, until, none)),
    )  # [C,C]
    new = op.Expand(causal, op.Concat(layers_heads, rows, rows, axis=0))
    return op.Concat(cached, new, axis=-1), real


@onnxscript.script(_vicort, default_opset=op)
def LayerCells(array, table, layer: int):
    """Of an array [P,L,Hkv,2,…], what one layer's table [L|1,Hkv|1,M] names: [Hkv,M,2,…].

    Where a dimension of the table is 1, it serves all layers or heads.
    """
    one = op.Constant(value_int=1)
    heads = op.Shape(array, start=2, end=3)  # [1] Hkv
    per_slot = op.Mul(op.Shape(array, start=1, end=2), heads)  # cells in a slot
    # [P*L*Hkv,2,…]
    cells = op.Reshape(array, op.Concat([-1], op.Shape(array, start=3), axis=0))
    head = op.Unsqueeze(op.Range(op.Constant(value_int=0), op.Squeeze(heads), one), [1])  # [Hkv,1]
    # [L|1,Hkv,M]
    first_cell = op.Add(
        op.Mul(op.Max(op.Cast(table, to=INT64.dtype), op.Constant(value_int=0)), per_slot), head
    )
    layer_id = op.Constant(value_int=layer)
    table_layer = op.Min(layer_id, op.Sub(op.Squeeze(op.Shape(table, end=1)), one))
    # [Hkv,M]
    layer_cells = op.Add(op.Gather(first_cell, table_layer, axis=0), op.Mul(layer_id, heads))
    return op.Gather(cells, layer_cells, axis=0)


@onnxscript.script(_vicort, default_opset=op)
def AttendTo(
    q,
    k,
    v,
    pos,
    segment,
    until,
    where,
    table,
    cached_k,
    cached_v,
    layer: int,
    scale: float,
    sections: Sequence[int],
    frequencies: Sequence[float],
    interleaved: int,
):
    """Attention over one layer's cached keys, not rotated, and values, [Hkv,S*N*T,D] each, and over
    the new ones."""
    one = op.Constant(value_int=1)
    heads = op.Shape(k, start=1, end=2)  # [1] Hkv
    rows = op.Shape(q, end=1)  # [1] C

    # The same for every layer.
    places, filled = PagePlaces(where, AllTables(table))
    visible, real = Visible(pos, segment, until, table, filled)
    # [C,1,D/2]
    new_angle = op.Unsqueeze(RotaryAngles(pos, sections, frequencies, interleaved), [1])
    new_cos, new_sin = op.Cos(new_angle), op.Sin(new_angle)
    angle = RotaryAngles(places, sections, frequencies, interleaved)  # [A,R,S*N*T,D/2]
    cos, sin = op.Cos(angle), op.Sin(angle)
    mine = op.Reshape(real, [-1, 1, 1])  # [C,1,1]

    # This layer's. Where a dimension is 1, it serves all layers.
    layer_id = op.Constant(value_int=layer)
    place_layer = op.Min(layer_id, op.Sub(op.Squeeze(op.Shape(filled, end=1)), one))
    there = op.Unsqueeze(op.Gather(filled, place_layer, axis=0), [-1])  # [R,S*N*T,1]
    none = op.CastLike(op.Constant(value_float=0.0), v)
    # [R,S*N*T,D/2]
    layer_cos, layer_sin = op.Gather(cos, place_layer, axis=0), op.Gather(sin, place_layer, axis=0)
    old_k = op.CastLike(Rotate(cached_k, layer_cos, layer_sin), k)  # [Hkv,S*N*T,D]
    old_v = op.Where(there, op.CastLike(cached_v, v), none)

    new_k = Rotate(k, new_cos, new_sin)
    keys = op.Concat(old_k, op.Transpose(new_k, perm=[1, 0, 2]), axis=1)  # [Hkv,S*N*T+C,D]
    values = op.Concat(old_v, op.Transpose(op.Where(mine, v, none), perm=[1, 0, 2]), axis=1)

    new_q = op.Mul(Rotate(q, new_cos, new_sin), op.CastLike(op.Constant(value_float=scale), q))
    flat = op.Concat(heads, [-1], op.Shape(q, start=2), axis=0)
    grouped = op.Reshape(op.Transpose(new_q, perm=[1, 0, 2]), flat)  # [Hkv,Hq/Hkv*C,D]
    scores = op.Cast(op.MatMul(grouped, op.Transpose(keys, perm=[0, 2, 1])), to=FLOAT.dtype)
    # [Hkv,Hq/Hkv,C,S*N*T+C]
    split = op.Reshape(scores, op.Concat(heads, [-1], rows, op.Shape(keys, start=1, end=2), axis=0))
    seen = op.Unsqueeze(op.Gather(visible, place_layer, axis=0), [1])  # [R,1,C,S*N*T+C]
    weights = op.Softmax(op.Where(seen, split, op.Constant(value_float=-1e30)), axis=-1)
    # [Hkv,Hq/Hkv*C,D]
    out = op.MatMul(op.CastLike(op.Reshape(weights, op.Shape(scores)), v), values)
    by_row = op.Transpose(
        op.Reshape(out, op.Concat([-1], rows, op.Shape(q, start=2), axis=0)), perm=[1, 0, 2]
    )
    return op.Where(mine, by_row, none)


@onnxscript.script(_vicort, default_opset=op)
def BoundedAttention(
    q,
    k,
    v,
    pos,
    segment,
    until,
    pool,
    where,
    table,
    layer: int,
    scale: float,
    sections: Sequence[int],
    frequencies: Sequence[float],
    interleaved: int,
):
    cells = LayerCells(pool, AllTables(table), layer)  # [Hkv,S*N,2,T,D]
    cell_k, cell_v = op.Split(cells, axis=2, num_outputs=2)
    flat = op.Concat(op.Shape(k, start=1, end=2), [-1], op.Shape(q, start=2), axis=0)
    cached_k, cached_v = op.Reshape(cell_k, flat), op.Reshape(cell_v, flat)
    return AttendTo(
        q,
        k,
        v,
        pos,
        segment,
        until,
        where,
        table,
        cached_k,
        cached_v,
        layer,
        scale,
        sections,
        frequencies,
        interleaved,
    )


@onnxscript.script(_vicort, default_opset=op)
def BoundedAttentionInt8(
    q,
    k,
    v,
    pos,
    segment,
    until,
    pool,
    where,
    table,
    scales,
    layer: int,
    scale: float,
    sections: Sequence[int],
    frequencies: Sequence[float],
    interleaved: int,
):
    """The body of a node with scales."""
    tables = AllTables(table)
    # [Hkv,S*N,1,T,D] int8 and [Hkv,S*N,1,T] float32, of keys and of values
    cell_k, cell_v = op.Split(LayerCells(pool, tables, layer), axis=2, num_outputs=2)
    step_k, step_v = op.Split(LayerCells(scales, tables, layer), axis=2, num_outputs=2)
    flat = op.Concat(op.Shape(k, start=1, end=2), [-1], op.Shape(q, start=2), axis=0)
    column = op.Concat(op.Shape(k, start=1, end=2), [-1, 1], axis=0)
    cached_k = op.Mul(op.Cast(op.Reshape(cell_k, flat), to=FLOAT.dtype), op.Reshape(step_k, column))
    cached_v = op.Mul(op.Cast(op.Reshape(cell_v, flat), to=FLOAT.dtype), op.Reshape(step_v, column))
    return AttendTo(
        q,
        k,
        v,
        pos,
        segment,
        until,
        where,
        table,
        cached_k,
        cached_v,
        layer,
        scale,
        sections,
        frequencies,
        interleaved,
    )


PARTS = (RotaryAngles, Rotate, PagePlaces, AllTables, Visible, LayerCells, AttendTo)


def register_schema() -> None:
    """Register the op with onnx: the exporter emits nodes of other domains only if they are
    registered."""
    if onnx.defs.has(NAME, DOMAIN):
        return
    schema = onnx.defs.OpSchema
    kinds = dict.fromkeys(("pos", "segment", "until", "where", "table"), "I") | {
        "pool": "K",
        SCALES: "S",
    }
    types = schema.AttrType
    attributes = {
        "layer": types.INT,
        "scale": types.FLOAT,
        "sections": types.INTS,
        "frequencies": types.FLOATS,
        "interleaved": types.INT,
    }
    onnx.defs.register_schema(
        schema(
            NAME,
            DOMAIN,
            VERSION,
            doc="Attention of new tokens over the pages in a table and, causally, over each other.",
            inputs=[
                *(schema.FormalParameter(name, kinds.get(name, "T")) for name in INPUTS),
                schema.FormalParameter(
                    SCALES, kinds[SCALES], param_option=schema.FormalParameterOption.Optional
                ),
            ],
            outputs=[schema.FormalParameter("o", "T")],
            type_constraints=[
                ("T", ["tensor(float)", "tensor(bfloat16)"], ""),
                ("K", ["tensor(float)", "tensor(bfloat16)", "tensor(int8)"], ""),
                ("I", ["tensor(int32)"], ""),
                ("S", ["tensor(float)"], ""),
            ],
            attributes=[
                schema.Attribute(name, kind, "", required=True) for name, kind in attributes.items()
            ],
        )
    )


def rotary_frequencies(theta: float, count: int) -> list[float]:
    """theta^(-i/count), rounded as in the model: at position 100,000 one unit in the last place is
    0.01 radian."""
    return (1.0 / theta ** (torch.arange(count, dtype=torch.float32) / count)).tolist()


def _to_onnx(
    q,
    k,
    v,
    pos,
    segment,
    until,
    pool,
    where,
    table,
    scales,
    layer: int,
    scale: float,
    sections: Sequence[int],
    theta: float,
    interleaved: bool = False,
):
    inputs = [q, k, v, pos, segment, until, pool, where, table]
    return _vicort.BoundedAttention(
        *inputs,
        *([] if scales is None else [scales]),
        layer=layer,
        scale=scale,
        sections=sections,
        frequencies=rotary_frequencies(theta, sum(sections)),
        interleaved=int(interleaved),
    )


def translation_table() -> dict:
    """For `torch.onnx.export(custom_translation_table=…)`."""
    register_schema()
    return {torch.ops.vicort.bounded_attention.default: _to_onnx}


def add_function_body(model: onnx_ir.Model) -> int:
    """Add the function bodies of BoundedAttention, whose nodes all have scales or all have none.
    Returns the number of its nodes."""
    nodes = [node for node in model.graph if node.domain == DOMAIN and node.op_type == NAME]
    if nodes:
        with_scales = len(nodes[0].inputs) > len(INPUTS)
        for function in (*PARTS, BoundedAttentionInt8 if with_scales else BoundedAttention):
            proto = function.to_function_proto()
            if function is BoundedAttentionInt8:
                proto.name = NAME
            body = serde.deserialize_function(proto)
            model.functions[body.identifier()] = body
        model.opset_imports[DOMAIN] = VERSION
    return len(nodes)
