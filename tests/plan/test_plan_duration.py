"""The forecast of time against the engine itself: what a step is said to do is counted while a step does it.

Each kind of work is given one second a unit and all others none, so that the forecast is a count; the engine computes
the same packs with every operation counted on the way.
"""

from dataclasses import replace

import pytest

from planner_cases import INTERNLM_7B, NOTHING, PLAN, QKV, decoder, example, examples, job, machine, only, spec
from strop.data.order import step_samples
from strop.data.packing import pack
from strop.kernels import activation, layer_norm, nf4, qlora_linear, rms_norm
from strop.model import attention_block
from strop.model import head as head_module
from strop.model.batch import make_batch
from strop.model.engine import Engine
from strop.model.lora import make_adapter, parse_targets
from strop.plan.duration import PARTS, STEP_PARTS, forecast_time, step_parts
from strop.plan.machine import Line
from strop.plan.memory import plan_work
from strop.plan.search import packed

HIDDEN = 48
GRADES = {
    "kept": PLAN,
    "made again": replace(PLAN, recompute_elementwise=4),
    "computed again": replace(PLAN, recompute_layers=4),
    "mixed, two dense": replace(PLAN, recompute_layers=1, recompute_elementwise=2, dense_layers=2),
    "stored head": replace(PLAN, head="stored", loss_chunk=7),
}
TARGETS = ("all-linear", QKV, "o_proj", "gate_proj,up_proj", "down_proj", "q_proj,down_proj")


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Units of each kind of work, counted from here on."""
    found: dict[str, float] = dict.fromkeys(
        (
            *("products", "head", "adapter", "dequantise", "widen", "softmax", "norm", "norm_backward", "gate"),
            *("gate_backward", "rotate", "attend", "attend_pair", "attend_backward", "attend_backward_pair"),
            *("scored", "scored_pair", "scored_backward", "scored_backward_pair", "head_norm", "head_norm_backward"),
        ),
        0.0,
    )
    rank = 5

    def count(module, name, kinds):
        real = getattr(module, name)

        def counted(*arguments, **named):
            for kind, units in kinds(*arguments, **named).items():
                found[kind] += units
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, counted)

    def products(a, b, out, transpose_a=False, **_):
        macs = out.numel() * (a.shape[0] if transpose_a else a.shape[1])
        # An adapter's matrix has the ranks of up to three adapters side by side; its gradient is a product of columns.
        thin = transpose_a or min(b.shape) in (rank, 2 * rank, 3 * rank)
        return {"adapter": macs} if thin else {"products": 2 * macs}

    def pairs(suffix):
        def seen(spans):
            triangles = sum((s.end - s.start) * (s.end - s.start + 1) // 2 for s in spans)
            return triangles + sum((s.end - s.start) * (s.prefix_end - s.prefix_start) for s in spans)

        def both(qkv, *rest, **_):
            spans, scoring = rest[0] if suffix == "" else rest[3], rest[-1]
            kind = "attend" if scoring.is_causal(max(span.seen for span in spans)) else "scored"
            return {f"{kind}{suffix}": len(qkv), f"{kind}{suffix}_pair": seen(spans)}

        return both

    count(qlora_linear, "product", products)
    count(head_module, "product", lambda a, b, out, **_: {"head": 2 * out.numel() * a.shape[1]})
    count(head_module, "widen", lambda half, out: {"widen": out.numel()})
    count(head_module, "softmax_gradient_", lambda logits, _: {"softmax": logits.numel()})
    count(nf4, "dequantize", lambda _, out: {"dequantise": out.numel()})

    def norm(suffix):
        # A norm of queries and keys is over a head, or over all of them; no such width is that of the stream here.
        return lambda x, *_: {("norm" if x.shape[1] == HIDDEN else "head_norm") + suffix: x.numel()}

    for module in (rms_norm, layer_norm):
        count(module, "normalize", norm(""))
        count(module, "normalize_backward", norm("_backward"))
    count(activation, "apply", lambda _, __, out, **___: {"gate": out.numel()})
    count(activation, "apply_backward_", lambda grad, *_, **__: {"gate_backward": grad.numel()})
    count(attention_block, "rotate_", lambda heads, *_, **__: {"rotate": heads.numel()})
    count(attention_block, "attend", pairs(""))
    count(attention_block, "attend_backward", pairs("_backward"))
    return found


def compute(asked, plan, workload) -> None:
    """One step of the run."""
    adapter = make_adapter(asked.spec, rank=asked.rank, alpha=8, dropout=0.0, targets=asked.targets, seed=0)
    adapter.zero_gradients()
    model = decoder(asked.spec, plan)
    model.keep_dense(plan.dense_layers)
    # What copies cost is not part of a step.
    engine = Engine(model, plan_work(asked, plan, workload))
    chosen = [asked.learned[index] for index in step_samples(0, 0, len(asked.learned), asked.samples_per_step)]
    for one in pack(chosen, plan.pack_tokens, plan.shares_prefixes(0.0)):
        engine.gradients(make_batch(one), adapter, 1)


KINDS = {
    "as Gemma 2": {"norm_placement": "both", "attention_softcap": 5.0, "activation": "gelu_tanh", "head_softcap": 3.0},
    "as Gemma 3": {"norm_placement": "both", "qk_norm": "head", "windows": (32, 0, 32, 0)},
    "as Phi 2": {"norm": "layer", "norm_placement": "parallel", "gated_mlp": False, "activation": "gelu_tanh"},
    "as OLMo 2": {"norm_placement": "post", "qk_norm": "full"},
    "as Baichuan 13B": {"alibi": True},
    "as SmolLM 3": {"rope_layers": (True, False, True, True)},
}


@pytest.mark.parametrize("plan", GRADES.values(), ids=GRADES)
@pytest.mark.parametrize("targets", TARGETS)
def test_a_step_does_what_is_forecast(targets, plan, counts):
    agrees({}, targets, plan, counts)


@pytest.mark.parametrize("plan", [GRADES["kept"], GRADES["mixed, two dense"]], ids=["kept", "mixed"])
@pytest.mark.parametrize("targets", ["all-linear", QKV, "o_proj"])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_every_kind_of_layer_does_what_is_forecast(changes, targets, plan, counts):
    agrees(changes, targets, plan, counts)


def agrees(changes, targets, plan, counts):
    model = spec(hidden=HIDDEN, intermediate=112, vocabulary=230, **changes)
    targets = parse_targets(targets, model.projections)
    asked = job(spec=model, rank=5, steps=1, samples_per_step=6, targets=targets)
    workload = packed(asked, plan)
    assert workload.packs_per_step > 1
    compute(asked, plan, workload)
    copies = plan.dense_layers * model.linear_weights // model.layers
    counts["dequantise"] -= copies
    for kind in counts:
        if kind in ("products", "head"):
            box = machine(model, flops=1.0, rates=NOTHING, bandwidth=float("inf"))
            parts = step_parts(asked, plan, box, workload)
            said = parts["head and loss"] if kind == "head" else sum(parts.values()) - parts["head and loss"]
        elif kind == "adapter":
            both = replace(NOTHING, adapter=1.0, adapter_backward=1.0)
            said = sum(step_parts(asked, plan, untimed(model, both), workload).values())
        else:
            said = sum(step_parts(asked, plan, untimed(model, only(kind)), workload).values())
        assert said == pytest.approx(counts[kind], rel=1e-9), kind


def untimed(model, rates):
    """A machine whose products and copies take no time."""
    return machine(model, flops=float("inf"), rates=rates, bandwidth=float("inf"))


def test_the_parts_are_told_apart():
    asked = job(targets=parse_targets(QKV))
    plan = replace(PLAN, recompute_layers=2, recompute_elementwise=1)
    box = machine(asked.spec)
    workload = packed(asked, plan)
    by_kind, parts = forecast_time(asked, plan, workload, box)
    assert tuple(by_kind) == STEP_PARTS
    assert tuple(parts) == PARTS
    assert parts["steps"] == pytest.approx(3 * sum(by_kind.values()))
    kept = step_parts(asked, PLAN, box, workload)
    for kind in STEP_PARTS:
        if kind == "computing again":
            assert kept[kind] == 0 < by_kind[kind]
        else:
            assert by_kind[kind] == pytest.approx(kept[kind])
    params = 4 * 4 * (96 + 64 + 2 * (32 + 64))  # layers, rank; q 96 × 64, k and v 32 × 64
    assert by_kind["optimiser"] == pytest.approx(params * box.rates.optimise)


def test_seven_billion_weights_by_hand():
    """InternLM-7B at 100 GFLOP/s, 2,048 tokens of which 1,024 are learned, adapters on q, k, v that cost nothing.

    31 layers forward at all rows and the last one's q, k, v; its other products at learned rows; backward the same but
    for the lowest layer's q, k, v; the head twice at learned rows.
    """
    asked = job(
        spec=INTERNLM_7B,
        targets=parse_targets(QKV),
        steps=1,
        samples_per_step=4,
        learned=[example(index, 512, 256) for index in range(4)],
        held_out=[],
    )
    plan = replace(PLAN, pack_tokens=2048)
    box = machine(INTERNLM_7B, flops=1e11, rates=NOTHING)
    parts = step_parts(asked, plan, box, packed(asked, plan))
    qkv, rest = 3 * 4096**2, 4096**2 + 3 * 4096 * 11008
    weights_at_rows = 31 * (qkv + rest) * 2048 + qkv * 2048 + rest * 1024
    assert parts["matrix products"] == pytest.approx((4 * weights_at_rows - 2 * qkv * 2048) / 1e11)
    assert parts["head and loss"] == pytest.approx(4 * 103168 * 4096 * 1024 / 1e11)


def test_looking_is_held_out_loss_and_answers():
    """With seconds for attention's positions alone: all layers forward, over held-out samples and prompts."""
    asked = job(prompts=(10, 5), looks=3, held_out=examples(4, 30))
    workload = packed(asked, PLAN)
    held = int(workload.held_out.tokens_P.sum())
    _, parts = forecast_time(asked, PLAN, workload, untimed(asked.spec, only("attend")))
    assert parts["watching"] == pytest.approx(3 * 4 * (held + 15))
    # Every token of an answer dequantises all layers, and every layer with a copy saves its share.
    said = [
        forecast_time(asked, replace(PLAN, dense_layers=dense), workload, untimed(asked.spec, only("dequantise")))[1]
        for dense in (0, 1, 4, 9)
    ]
    passes = len(workload.held_out.tokens_P) + 1 + asked.answer_tokens
    whole = 3 * passes * asked.spec.linear_weights
    assert [parts["watching"] for parts in said] == pytest.approx([whole, 0.75 * whole, 0, 0])


def test_a_run_that_looks_at_nothing():
    asked = job(prompts=(), held_out=[])
    _, parts = forecast_time(asked, PLAN, packed(asked, PLAN), machine(asked.spec))
    assert parts["watching"] == 0


def test_seconds_grow_with_rows_along_a_line():
    assert Line(2.0, 0.5).seconds(3, 10) == 11.0
    assert Line(2.0, 0.5).scaled(4) == Line(8.0, 2.0)
