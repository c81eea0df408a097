"""Small plans made by hand: fused experts, grouped queries, ties."""

from __future__ import annotations

from crosswalk.runtime.plan.model import Exemption, Plan, RawCopy, Rule, TensorSpec, make_plan

RULE = Rule("toy", "mlp: [gate|up]", "toy.yaml:7:3")


def spec(name: str, *shape: int, dtype: str = "F32") -> TensorSpec:
    return TensorSpec(name, shape, dtype)


def whole(source: str, target: str, elements: int) -> RawCopy:
    return (source, target, (elements,), 0, (1,), 0, (1,), 0)


def codes(plan: Plan) -> list[str]:
    return [problem.code for problem in plan.verify().problems]


def interleaved_experts(experts: int = 3, intermediate: int = 5, hidden: int = 7) -> Plan:
    """`expert (intermediate [gate|up]) hidden`, to one transposed `gate` and one `up` per expert."""
    row = hidden
    targets, copies = [], []
    for expert in range(experts):
        for part, name in enumerate(("gate", "up")):
            target = f"experts.{expert}.{name}"
            targets.append(spec(target, hidden, intermediate))
            offset = expert * 2 * intermediate * row + part * row
            copies.append(("w", target, (intermediate, hidden), offset, (2 * row, 1), 0, (1, intermediate), part))
    rules = [RULE, Rule("toy", "up", "toy.yaml:8:3")]
    return make_plan([spec("w", experts, 2 * intermediate, hidden)], targets, copies, rules)


def grouped_qkv(groups: int = 3, per_group: int = 2, head_dim: int = 5, hidden: int = 7) -> Plan:
    """`(group [q: per_group | k | v] head_dim) hidden`, to `q`, `k` and `v`."""
    head = head_dim * hidden
    group = (per_group + 2) * head
    targets = [spec("q", groups * per_group * head_dim, hidden)]
    targets += [spec(name, groups * head_dim, hidden) for name in "kv"]
    copies: list[RawCopy] = [
        ("qkv", "q", (groups, per_group * head), 0, (group, 1), 0, (per_group * head, 1), 0),
        ("qkv", "k", (groups, head), per_group * head, (group, 1), 0, (head, 1), 0),
        ("qkv", "v", (groups, head), (per_group + 1) * head, (group, 1), 0, (head, 1), 0),
    ]
    return make_plan([spec("qkv", groups * (per_group + 2) * head_dim, hidden)], targets, copies)


def tied(dtype: str = "F32") -> Plan:
    return make_plan(
        [spec("embed", 3, 5, dtype=dtype), spec("head", 3, 5, dtype=dtype), spec("inv_freq", 7)],
        [spec("out", 3, 5, dtype=dtype)],
        [whole("embed", "out", 15)],
        exemptions=[Exemption("tied", "head", of="embed"), Exemption("dropped", "inv_freq", reason="from the config")],
    )
