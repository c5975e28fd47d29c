"""Attention of the training engine on bfloat16 in the native library, by every instruction set of this CPU.

The oracle is the differentiable reference in float64 on the same numbers; how close to it one comes in bfloat16 is
measured by torch's fused attention on them.
"""

import pytest
import torch

from attention_cases import documents, families, reference
from strop.kernels import attention_choice, library, select
from strop.kernels.attention import PLAIN, Scoring, attend, attend_backward, available

pytestmark = pytest.mark.skipif(library.native() is None, reason="the native library is not here")

INSTRUCTION_SETS = ["plain", "avx2", "avx512", "amx", "neon"]
PACKS = {
    "documents": documents([1, 2, 31, 32, 33, 64, 129, 257]),
    "tiles": documents([700, 5]),
    "prefixes": families([40, 1, 65, 130]),
    "several prefixes": families([1, 1, 70], [33], [130, 64, 1, 257, 3], [90, 20]),
    "a long prefix": families([300, 50, 400]),
}


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    """Computes with this one, if the CPU has it."""
    threads, before = library.threads(), library.instruction_set()
    if not library.native().strop_use(request.param.encode()):
        pytest.skip(f"this CPU or build has no {request.param}")
    yield request.param
    library.set_threads(threads)
    library.native().strop_use(before.encode())


def run(spans, heads, kv_heads, width, *, spare=0, seed=7, scale=1.0, fill=None):
    """Runs the pair in views of wider memory: (qkv, grad, out, row sums, grad_qkv)."""
    rows, draw, columns = spans[-1].end, torch.Generator().manual_seed(seed), (heads + 2 * kv_heads) * width
    qkv = (torch.randn(rows, columns + spare, generator=draw) * scale).bfloat16()[:, spare:]
    grad = torch.randn(rows, heads * width, generator=draw).bfloat16()
    if fill is not None:
        fill(qkv, grad)
    out = torch.full((rows, heads * width + spare), 7.0).bfloat16()
    row_sums = torch.full((heads, rows), float("nan"))
    grad_qkv = torch.full((rows, columns + spare), 7.0).bfloat16()
    attend(qkv, spans, heads, kv_heads, out[:, : heads * width], row_sums)
    attend_backward(qkv, out[:, : heads * width], grad, row_sums, spans, heads, kv_heads, grad_qkv[:, :columns])
    assert (out[:, heads * width :] == 7).all(), "written beside the rows"
    assert (grad_qkv[:, columns:] == 7).all(), "written beside the rows"
    return qkv, grad, out[:, : heads * width], row_sums, grad_qkv[:, :columns]


def distances(results, spans, heads, kv_heads, width):
    """Relative errors of what was gathered and of the gradients of queries, keys and values."""
    qkv, grad, out, _, grad_qkv = results
    expected, expected_grad = reference(qkv, grad, spans, heads, kv_heads, width)
    sizes = [heads * width, kv_heads * width, kv_heads * width]
    pairs = [(out, expected), *zip(grad_qkv.split(sizes, 1), expected_grad.split(sizes, 1), strict=True)]
    return [((got.double() - want).norm() / want.norm()).item() for got, want in pairs]


@pytest.mark.parametrize("spans", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize(("heads", "kv_heads", "width", "spare"), [(9, 3, 64, 0), (4, 2, 20, 5)])
def test_as_close_to_the_reference_as_torch(isa, spans, heads, kv_heads, width, spare):
    with select.forced("native"):
        ours = distances(run(spans, heads, kv_heads, width, spare=spare), spans, heads, kv_heads, width)
    with select.forced("torch"):
        theirs = distances(run(spans, heads, kv_heads, width, spare=spare), spans, heads, kv_heads, width)
    assert max(ours) < 5e-3, isa
    assert all(mine < 1.2 * other for mine, other in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"),
    [(2, 2, 16), (3, 1, 40), (2, 1, 80), (2, 2, 96), (8, 2, 128), (2, 1, 256), (40, 1, 32), (1, 1, 1)],
)
def test_widths_and_groups(isa, heads, kv_heads, width):
    spans = documents([33, 150, 7])
    with select.forced("native"):
        ours = distances(run(spans, heads, kv_heads, width), spans, heads, kv_heads, width)
    assert max(ours) < 5e-3, isa


def test_threads_change_no_bit(isa):
    results = []
    with select.forced("native"):
        for spans in (documents([1500]), PACKS["several prefixes"], PACKS["a long prefix"]):
            for threads in (1, 2, 5, 1):
                library.set_threads(threads)
                results.append(run(spans, 6, 2, 48)[2:])
            for again in results[-3:]:
                assert all(torch.equal(a, b) for a, b in zip(again, results[-4], strict=True)), isa


def test_instruction_sets_with_fused_multiply_adds_agree_to_the_bit():
    before = library.instruction_set()
    with select.forced("native"):
        results = [
            run(PACKS["several prefixes"], 6, 2, 20)[2:]
            for name in ("avx2", "avx512", "neon")
            if library.native().strop_use(name.encode())
        ]
    library.native().strop_use(before.encode())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_row_sums_are_logarithms_of_sums(isa):
    spans = families([70, 20])
    with select.forced("native"):
        qkv, _, _, row_sums, _ = run(spans, 2, 1, 16)
    q, k, _ = qkv.double().split([32, 16, 16], dim=1)
    scores = q.unflatten(1, (2, 16)).transpose(0, 1) @ k.t() / 4
    expected = scores.masked_fill(~torch.ones(90, 90, dtype=torch.bool).tril(), -torch.inf).logsumexp(-1)
    torch.testing.assert_close(row_sums.double(), expected, atol=1e-5, rtol=1e-5, msg=isa)


def test_scores_far_apart_stay_finite(isa):
    spans = documents([1, 300, 400])
    with select.forced("native"):
        results = run(spans, 2, 1, 32, scale=12.0)
    # Where one key takes it all, gradients of queries and keys are differences of nearly equal numbers.
    out, *_, of_values = distances(results, spans, 2, 1, 32)
    assert results[4].isfinite().all(), isa
    assert max(out, of_values) < 5e-3


def test_rows_of_other_documents_are_never_read(isa):
    spans = families([30, 9], [40], [50, 3])

    def fill(qkv, grad):
        qkv[39:79] = float("nan")
        grad[39:79] = float("nan")

    with select.forced("native"):
        _, _, out, _, grad_qkv = run(spans, 4, 2, 16, fill=fill)
    for result in (out, grad_qkv):
        finite = result.isfinite().all(dim=1)
        assert finite[:39].all(), isa
        assert finite[79:].all(), isa
        assert not finite[39:79].any(), isa


def test_gradients_are_rounded_once(isa):
    # Every query of the long document adds 2^-9 of its gradient to the only key before it: in bfloat16 they would be
    # lost one by one once their sum is 1.
    length = 2048
    spans = documents([length])
    qkv = torch.zeros(length, 48, dtype=torch.bfloat16)
    grad = torch.ones(length, 16, dtype=torch.bfloat16)
    out, row_sums, grad_qkv = torch.empty_like(grad), torch.empty(1, length), torch.empty_like(qkv)
    with select.forced("native"):
        attend(qkv, spans, 1, 1, out, row_sums)
        attend_backward(qkv, out, grad, row_sums, spans, 1, 1, grad_qkv)
    # dv_0 = Σ_t 1 / (t + 1), to the rounding of probabilities where they are rounded.
    expected = sum(1 / (t + 1) for t in range(length))
    assert abs(grad_qkv[0, 32].item() - expected) < expected * 2**-8, isa


@pytest.mark.parametrize(
    ("one", "other"),
    [(1.0, 1.0078125), (1.0078125, 1.015625), (-1.0, -1.0078125), (1.0, 1.5), (3.0, float("inf")), (3.0, float("nan"))],
)
def test_rounding_is_torchs(isa, one, other):
    # Keys that are all alike: what the second token gathers is the mean of two values, for some half way between two
    # numbers of bfloat16.
    qkv = torch.zeros(2, 48, dtype=torch.bfloat16)
    qkv[0, 32:], qkv[1, 32:] = one, other
    out, row_sums = torch.zeros(2, 16, dtype=torch.bfloat16), torch.empty(1, 2)
    with select.forced("native"):
        attend(qkv, documents([2]), 1, 1, out, row_sums)
    expected = ((qkv[0, 32:].float() + qkv[1, 32:].float()) / 2).bfloat16()
    torch.testing.assert_close(out[1], expected, rtol=0, atol=0, equal_nan=True, msg=isa)
    if not torch.isfinite(torch.tensor(other)):
        return  # times a weight of 0 it is not 0
    torch.testing.assert_close(out[0], qkv[0, 32:], rtol=0, atol=0, msg=isa)


def test_native_computes_what_it_can_and_says_so():
    cpu, spans = torch.device("cpu"), documents([7])
    qkv = torch.empty(7, 48, dtype=torch.bfloat16)
    out, sums = torch.empty(7, 16, dtype=torch.bfloat16), torch.empty(1, 7)
    assert available(cpu)[0] == "native"
    assert "native" not in available(cpu, dtype=torch.float16)
    assert attention_choice.chosen(16, spans, PLAIN, qkv, out, row_sums_HT=sums) == "native"
    for others, wrong in [((out.float(),), sums), ((out,), sums.bfloat16()), ((out.half(),), sums)]:
        assert attention_choice.chosen(16, spans, PLAIN, qkv, *others, row_sums_HT=wrong) == "sdpa"
    assert attention_choice.chosen(16, spans, PLAIN, qkv.half(), row_sums_HT=sums) == "sdpa"
    assert attention_choice.chosen(16, spans, Scoring(softcap=2.0), qkv, row_sums_HT=sums) == "plain"


def test_a_scale_below_zero(isa):
    # torch's fused attention answers NaN here.
    spans = documents([40])
    qkv = torch.randn(40, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    out = torch.empty(40, 16, dtype=torch.bfloat16)
    with select.forced("native"):
        attend(qkv, spans, 1, 1, out, torch.empty(1, 40), Scoring(scale=-0.3))
    q, k, v = qkv.double().split(16, dim=1)
    hidden = ~torch.ones(40, 40, dtype=torch.bool).tril()
    expected = (q @ k.t() * -0.3).masked_fill(hidden, -torch.inf).softmax(-1) @ v
    assert (out.double() - expected).norm() < 5e-3 * expected.norm(), isa
