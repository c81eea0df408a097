"""Lowering axes to strided copies: formats in use, against plain torch, and mistakes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from crosswalk.compiler.notation.axes import bias_of, parse_dims, parse_parameter, resolve
from crosswalk.compiler.notation.templates import Template
from crosswalk.compiler.tensors.lower import Source, Tensor, TensorPiece, lower, native_shape
from crosswalk.runtime.errors import CrosswalkError, Diagnostic, Position
from crosswalk.runtime.plan.affine import Piece

# Pairwise distinct and odd, so that no swap of axes passes (half is 2 by nature).
G, P, HALF, PAIR, HIDDEN, INNER, EXPERTS, OUT = 3, 5, 2, 7, 11, 13, 9, 17
HEADS, DIM = G * P, HALF * PAIR
KEY_HEADS, PER_KEY, KEY_DIM, VALUE_DIM = 3, 5, 7, 9
SIZES: dict[str, int | tuple[str, ...]] = {
    "group": G,
    "per_group": P,
    "head": ("group", "per_group"),
    "half": HALF,
    "pair": PAIR,
    "head_dim": ("half", "pair"),
    "hidden": HIDDEN,
    "intermediate": INNER,
    "expert": EXPERTS,
    "output": OUT,
    **{"key_head": KEY_HEADS, "per_key": PER_KEY, "value_head": ("key_head", "per_key")},
    "key_dim": KEY_DIM,
    "value_dim": VALUE_DIM,
    "channel": 15,
    "patch_height": 19,
    "patch_width": 21,
    "one": 1,
    "none": 0,
}
QUERY = "[q: head head_dim] <- hidden"
KEY_VALUE = "[k: group head_dim | v if not shared_key_value: group head_dim] <- hidden"
DENSE = "hidden <- (head head_dim)"
GATE_UP = "([gate if gated | up] intermediate) <- hidden"
DOWN = "intermediate -> output"
MOE_1 = "(expert [gate if gated | up] intermediate) <- hidden"
MOE_2 = "(expert intermediate) -> output"
QKVZ = "[q: key_head key_dim | k: key_head key_dim | v: value_head value_dim | z: value_head value_dim] <- hidden"

Tensors = dict[str, torch.Tensor]


def low(template: str, ours: Mapping[str, str], dims: str | None = None, **options: Any) -> list[Tensor]:
    sources = [Source(name, parse_parameter(pattern)) for name, pattern in ours.items()]
    return lower(Template.parse(template), sources, SIZES, parse_dims(dims) if dims else None, **options)


def values(ours: Mapping[str, str]) -> Tensors:
    """Our parameters, with a different number in every element."""
    result, start = {}, 0
    for name, pattern in ours.items():
        shape = native_shape(parse_parameter(pattern), SIZES)
        result[name] = torch.arange(start, start + math.prod(shape)).reshape(shape)
        start += math.prod(shape)
    return result


def run(elements: int, offset: int = 0) -> TensorPiece:
    return TensorPiece("w", Piece(offset, 0, ((elements, 1, 1),)))


def exported(tensors: list[Tensor], ours: Tensors) -> Tensors:
    """The hf side, by the copies. Every element is written once, and every native element read once."""
    result = {}
    read = Counter[int]()
    for tensor in tensors:
        data = torch.full(tensor.shape, -1)
        for parameter, piece in tensor.pieces:
            (extents, strides, others), source = piece.columns, ours[parameter]
            target = data.as_strided(extents, others, piece.there)
            assert (target == -1).all()
            target.copy_(source.as_strided(extents, strides, piece.here))
        read.update(data.flatten().tolist())
        result[tensor.name] = data
    assert read == Counter(torch.cat([data.flatten() for data in ours.values()]).tolist())
    assert len(result) == len(tensors)
    return result


def check(
    template: str, ours: Mapping[str, str], expected: Callable[..., Tensors], dims: str | None = None, **options: Any
) -> None:
    parameters = values(ours)
    found, wanted = exported(low(template, ours, dims, **options), parameters), expected(*parameters.values())
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


# Formats in use, against the torch code that their converters are usually written in.


def test_llama_attention() -> None:
    check("q_proj", {"query": QUERY}, lambda q: {"q_proj": q})
    check("{k|v}_proj", {"kv": KEY_VALUE}, lambda kv: dict(zip(["k_proj", "v_proj"], kv.chunk(2), strict=True)))
    check("o_proj", {"dense": DENSE}, lambda d: {"o_proj": d})


def test_llama_mlp() -> None:
    check("{gate|up}_proj", {"w": GATE_UP}, lambda w: {"gate_proj": w[:INNER], "up_proj": w[INNER:]})
    check("down_proj", {"w": DOWN}, lambda w: {"down_proj": w.T})


def test_absent_branches_take_no_room() -> None:
    pattern = resolve(parse_parameter(GATE_UP), lambda condition: condition != "gated")
    for template, dims in [("{gate|up}_proj", None), ("up_proj", "([gate|up] intermediate) hidden")]:
        (tensor,) = lower(Template.parse(template), [Source("w", pattern)], SIZES, parse_dims(dims) if dims else None)
        assert tensor == Tensor("up_proj", (INNER, HIDDEN), (run(INNER * HIDDEN),))
    assert native_shape(pattern, SIZES) == (INNER, HIDDEN)
    shared = resolve(parse_parameter(KEY_VALUE), lambda condition: condition != "not shared_key_value")
    (tensor,) = lower(Template.parse("{k|v}_proj"), [Source("kv", shared)], SIZES)
    assert (tensor.name, tensor.shape) == ("k_proj", (G * DIM, HIDDEN))


def test_mixtral_experts() -> None:
    def first(w: torch.Tensor) -> Tensors:
        parts = w.reshape(EXPERTS, 2, INNER, HIDDEN)
        return {f"experts.{e}.{name}": parts[e, i] for e in range(EXPERTS) for i, name in enumerate(["w1", "w3"])}

    def second(w: torch.Tensor) -> Tensors:
        return {f"experts.{e}.w2": part.T for e, part in enumerate(w.chunk(EXPERTS))}

    check("experts.{expert}.{w1=gate|w3=up}", {"w": MOE_1}, first)
    check("experts.{expert}.{w3=up|w1=gate}", {"w": MOE_1}, first)
    check("experts.{expert}.w2", {"w": MOE_2}, second)


def test_gemma_experts() -> None:
    check(
        "gate_up_proj",
        {"w": MOE_1},
        lambda w: {"gate_up_proj": w.reshape(EXPERTS, 2 * INNER, HIDDEN)},
        "expert ([gate|up] intermediate) hidden",
    )
    check(
        "down_proj",
        {"w": MOE_2},
        lambda w: {"down_proj": w.reshape(EXPERTS, INNER, OUT).transpose(1, 2)},
        "expert output intermediate",
    )


def test_expert_parallel_stack() -> None:
    check(
        "w13",
        {"w": MOE_1},
        lambda w: {"w13": w.reshape(EXPERTS, 2, INNER, HIDDEN).transpose(0, 1)},
        "[gate|up] expert intermediate hidden",
    )


def test_phi3() -> None:
    check("qkv_proj", {"q": QUERY, "kv": KEY_VALUE}, lambda q, kv: {"qkv_proj": torch.cat([q, kv])})
    check("kvq", {"kv": KEY_VALUE, "q": QUERY}, lambda kv, q: {"kvq": torch.cat([kv, q])})
    check("gate_up_proj", {"w": GATE_UP}, lambda w: {"gate_up_proj": w})


def test_separate_names_for_branches_of_several_parameters() -> None:
    check(
        "{q|k|v}_proj",
        {"q": QUERY, "kv": KEY_VALUE},
        lambda q, kv: {"q_proj": q, "k_proj": kv[: G * DIM], "v_proj": kv[G * DIM :]},
    )


def test_gpt2_stores_inputs_first() -> None:
    check(
        "c_attn",
        {"q": QUERY, "kv": KEY_VALUE},
        lambda q, kv: {"c_attn": torch.cat([q, kv]).T.contiguous()},
        transposed=True,
    )
    check("c_proj", {"w": DOWN}, lambda w: {"c_proj": w}, transposed=True)
    check("ln", {"w": "hidden"}, lambda w: {"ln": w}, transposed=True)
    bias = {name: str(bias_of(parse_parameter(p))) for name, p in (("q", QUERY), ("kv", KEY_VALUE))}
    check("c_attn", bias, lambda q, kv: {"c_attn": torch.cat([q, kv])}, transposed=True)


def megatron(q: torch.Tensor, kv: torch.Tensor) -> Tensors:
    tail = q.shape[1:]
    k, v = (part.reshape(G, 1, DIM, *tail) for part in kv.chunk(2))
    return {"linear_qkv": torch.cat([q.reshape(G, P, DIM, *tail), k, v], 1).reshape(-1, *tail)}


def test_megatron_qkv() -> None:
    ours = {"q": QUERY, "kv": KEY_VALUE}
    check("linear_qkv", ours, megatron, "(group [q|k|v]) hidden")
    check("linear_qkv", ours, megatron, "(group [q: per_group head_dim|k: head_dim|v: head_dim]) hidden")


def test_a_bias_takes_the_dims_of_its_weight_without_the_axes_it_lacks() -> None:
    bias = {name: str(bias_of(parse_parameter(p))) for name, p in (("q", QUERY), ("kv", KEY_VALUE))}
    check("linear_qkv", bias, megatron, "(group [q|k|v]) hidden", missing_axes="drop")
    check("conv", {"b": "channel"}, lambda b: {"conv": b}, "channel 1 patch_width", missing_axes="drop")
    check(
        "gu",
        {"b": "(expert [gate|up] intermediate)"},
        lambda b: {"gu": b.reshape(EXPERTS, -1)},
        "expert ([gate|up] intermediate) hidden",
        missing_axes="drop",
    )


def test_qwen3_next() -> None:
    def expected(w: torch.Tensor) -> Tensors:
        key, value = KEY_HEADS * KEY_DIM, KEY_HEADS * PER_KEY * VALUE_DIM
        parts = [part.reshape(KEY_HEADS, -1, HIDDEN) for part in torch.split(w, [key, key, value, value])]
        return {"in_proj_qkvz": torch.cat(parts, 1).reshape(-1, HIDDEN)}

    check("in_proj_qkvz", {"w": QKVZ}, expected, "(key_head [q|k|v|z]) hidden")


def test_interleaved_rotary() -> None:
    def expected(w: torch.Tensor) -> Tensors:
        return {"wq": w.reshape(HEADS, HALF, PAIR, HIDDEN).transpose(1, 2).reshape(-1, HIDDEN)}

    check("wq", {"q": QUERY}, expected, "(head pair half) hidden")


def test_interleaved_rotary_in_a_fused_matrix() -> None:
    def expected(q: torch.Tensor, kv: torch.Tensor) -> Tensors:
        turned = [x.reshape(-1, HALF, PAIR, HIDDEN).transpose(1, 2).reshape(-1, HIDDEN) for x in (q, kv[: G * DIM])]
        return megatron(turned[0], torch.cat([turned[1], kv[G * DIM :]]))

    ours = {"q": QUERY, "kv": KEY_VALUE}
    check("linear_qkv", ours, expected, "(group [q: per_group pair half | k: pair half | v: head_dim]) hidden")


def test_separate_names_with_axes_of_their_own_from_a_fused_matrix() -> None:
    """A label that is in the name may be in the axes too, with where the axes of its own tensor are."""
    fused = "(group [q: per_group half pair | k: half pair | v: head_dim]) <- hidden"

    def expected(w: torch.Tensor) -> Tensors:
        parts = w.reshape(G, P + 2, HALF, PAIR, HIDDEN)
        turned = parts.transpose(2, 3)
        q, k, v = turned[:, :P], turned[:, P], parts[:, P + 1]
        return {f"{name}_proj": x.reshape(-1, HIDDEN) for name, x in (("q", q), ("k", k), ("v", v))}

    axes = "([q: head pair half | k: group pair half | v: group head_dim]) hidden"
    check("{q|k|v}_proj", {"w": fused}, expected, axes)


def test_patch_convolution() -> None:
    check(
        "patch_conv",
        {"w": "hidden <- (channel patch_height patch_width)"},
        lambda w: {"patch_conv": w.reshape(HIDDEN, 15, 19, 21)},
        "hidden channel patch_height patch_width",
    )


def test_axes_whole_in_the_name_and_factored_in_the_layout() -> None:
    check(
        "heads.{head}.{half}",
        {"q": QUERY},
        lambda q: {
            f"heads.{h}.{half}": q.reshape(HEADS, HALF, PAIR, HIDDEN)[h, half]
            for h in range(HEADS)
            for half in range(HALF)
        },
    )
    check(
        "group.{group+1}",
        {"d": DENSE},
        lambda d: {f"group.{g + 1}": part for g, part in enumerate(d.chunk(G, 1))},
    )


def test_unnamed_parameters_are_put_together_by_rows() -> None:
    ours = {"q": "(key_head key_dim) 1 hidden", "k": "(channel) 1 hidden"}
    check("conv", ours, lambda q, k: {"conv": torch.cat([q, k])})
    check(
        "two",
        {"a": "intermediate -> output", "b": "intermediate -> hidden"},
        lambda a, b: {"two": torch.cat([a, b], 1).T},
    )


def test_primed_axes() -> None:
    check("f", {"w": "(key_head head_dim) <- head_dim'"}, lambda w: {"f": w})
    check("f", {"w": "key_dim <- key_dim'"}, lambda w: {"f": w.T}, "key_dim' key_dim")
    check(
        "f",
        {"w": "pair <- head_dim'"},
        lambda w: {"f": w.reshape(PAIR, HALF, PAIR).transpose(1, 2)},
        "pair pair' half'",
    )


def test_sizes_of_one_and_zero() -> None:
    check("s", {"w": "1"}, lambda w: {"s": w})
    check("s", {"w": "one hidden one'"}, lambda w: {"s": w.permute(2, 1, 0)}, "one' hidden one")
    check("s.{hidden}", {"w": "hidden"}, lambda w: {f"s.{i}": w[i] for i in range(HIDDEN)})
    assert low("s.{expert}", {"w": "(expert none) hidden"})[4] == Tensor("s.4", (0, HIDDEN), ())
    assert low("s.{none}", {"w": "none hidden"}) == []


def test_pieces_are_as_large_as_they_can_be() -> None:
    """What is contiguous on both ends is one run, also across branches."""
    whole = run(EXPERTS * 2 * INNER * HIDDEN)
    assert low("gu", {"w": MOE_1}, "expert ([gate|up] intermediate) hidden")[0].pieces == (whole,)
    assert low("gu", {"w": MOE_1})[0].pieces == (whole,)
    assert low("conv", {"w": "[q: key_head key_dim | v: value_head value_dim] 1 hidden"})[0].pieces == (
        run((KEY_HEADS * KEY_DIM + KEY_HEADS * PER_KEY * VALUE_DIM) * HIDDEN),
    )
    expert = low("experts.{expert}.{w1=gate|w3=up}", {"w": MOE_1})[EXPERTS + 4]
    offset = (4 * 2 + 1) * INNER * HIDDEN
    assert expert == Tensor("experts.4.w3", (INNER, HIDDEN), (run(INNER * HIDDEN, offset),))


# Mistakes.


def problems(template: str, ours: Mapping[str, str], dims: str | None = None, **options: Any) -> list[Diagnostic]:
    with pytest.raises(CrosswalkError) as raised:
        low(template, ours, dims, **options)
    return list(raised.value.diagnostics)


def test_a_missing_axis_shows_both_sides() -> None:
    position = Position("m.yaml", 71, 69)
    (found,) = problems("gate_up", {"w": MOE_1}, "expert ([gate|up] intermediate)", position=position)
    assert str(found) == (
        "m.yaml:71:69: error: `gate_up`: axis `hidden` of `w` is missing\n"
        "  native: (expert [gate if gated | up] intermediate) <- hidden  size (9 * 2 * 13) x 11\n"
        "  hf:     expert ([gate|up] intermediate) [axes/missing]\n"
        "  hint: add `hidden` to the axes, or {hidden} to the name"
    )


@pytest.mark.parametrize(
    ("template", "ours", "dims", "code", "message"),
    [
        ("x", MOE_1, "expert ([gate|up] intermediat) hidden", "axes/unknown-axis", "unknown axis `intermediat`"),
        ("x.{exprt}", MOE_1, None, "axes/unknown-axis", "names the unknown axis `exprt`"),
        ("x", "hidden <- widht", None, "axes/unknown-axis", "the layout of `w` names the unknown axis `widht`"),
        ("x", MOE_1, "expert ([gat|up] intermediate) hidden", "axes/unknown-label", "no branch `gat`"),
        ("{gate|upp}", GATE_UP, None, "axes/unknown-label", "no branch `upp`"),
        ("x", DOWN, "output intermediate pair", "axes/not-an-axis", "`pair` is not an axis of `w`"),
        ("x.{expert}", DOWN, None, "axes/not-an-axis", "`{expert}` in the name is not an axis of `w`"),
        ("x.{expert}", MOE_2, "expert output intermediate", "axes/twice", "`expert` is both in the name and"),
        ("x.{group}.{head}", QUERY, None, "axes/twice", "`head` is twice in the name"),
        ("{gate|up}", GATE_UP, "([gate|up] intermediate) hidden", "axes/twice", "label `gate` is both in the name"),
        ("{gate|up}", GATE_UP, "[gate: intermediate | up] hidden", "axes/twice", "label `up` is both in the name"),
        ("{gate|up}", GATE_UP, "[gate: intermediate] hidden", "axes/missing", "axis `intermediate` of `w` is missing"),
        ("x", QUERY, "head group head_dim hidden", "axes/twice", "axis `group` is written twice"),
        ("x", GATE_UP, "intermediate hidden", "axes/labels", "`up` of `w` has no place of its own"),
        ("x", GATE_UP, "([gate] intermediate) hidden", "axes/labels", "`up` of `w` has no place of its own"),
        ("{k|v}", QKVZ, None, "axes/labels", "`{k|v}` has no name for `q` of `w`"),
        ("{k|v}", DENSE, None, "axes/unknown-label", "no branch `k`"),
        ("x", QKVZ, "(value_head [q|k|v|z]) hidden", "axes/not-an-axis", "`q` of `w` has no axis `per_key`"),
        ("x", QKVZ, "([q: key_head | k | v | z]) hidden", "axes/missing", "axis `key_dim` of `q` of `w` is missing"),
        ("x{channel}{intermediate}", "channel intermediate hidden", None, "names/collide", "two tensors `x110`"),
    ],
)
def test_mistakes(template: str, ours: str, dims: str | None, code: str, message: str) -> None:
    first = problems(template, {"w": ours}, dims)[0]
    assert first.code == code
    assert message in first.message


def test_mistakes_with_several_parameters() -> None:
    def first(dims: str | None, **ours: str) -> str:
        return problems("x", ours, dims)[0].message.splitlines()[0]

    assert first(None, a=QUERY, b=DOWN) == "`x`: `a` and `b` differ beside the axes that are put together"
    both = problems("x", {"a": GATE_UP, "b": GATE_UP}, "([gate|up] intermediate) hidden")[0]
    assert both.code == "axes/ambiguous-label"
    assert both.message.startswith("`x`: label `gate` is a branch of `a` and `b`")
    assert first("pair hidden", a="pair <- hidden", b="pair <- hidden") == "`x`: `b` has no place of its own"


def test_all_mistakes_are_reported_at_once() -> None:
    found = problems("x.{exprt}", {"w": MOE_1}, "([gat|upp] intermediat) hidden")
    assert [d.message.splitlines()[0] for d in found] == [
        "the name `x.{exprt}` names the unknown axis `exprt`",
        "`([gat|upp] intermediat) hidden` names the unknown axis `intermediat`",
        "`x.{exprt}`: there is no branch `gat`",
        "`x.{exprt}`: there is no branch `upp`",
    ]
    assert found[0].hint == "did you mean `expert`?"
    assert found[3].hint == "did you mean `up`?"


def test_an_axis_made_of_itself() -> None:
    with pytest.raises(CrosswalkError, match=r"axis `a` is made of itself: a -> b -> a.*\[axes/circular\]"):
        native_shape(parse_parameter("a"), {"a": ("b", "c"), "b": ("a",), "c": 3})
