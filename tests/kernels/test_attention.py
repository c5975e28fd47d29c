"""Attention of the training engine against the differentiable reference, with and without shared prefixes."""

import itertools

import pytest
import torch

from attention_cases import SCORINGS, documents, families, reference
from strop.kernels import attention_scores, blas, library, select
from strop.kernels.attention import PLAIN, Scoring, attend, attend_backward, attention
from strop.kernels.attention_scores import alibi_slopes

needs_native = pytest.mark.skipif(library.native() is None, reason="the native library is not here")
each_library = pytest.mark.parametrize("name", ["torch", pytest.param("native", marks=needs_native)])

ragged = [1, 2, 63, 64, 65, 257]


@pytest.fixture
def restored():
    threads, isa = library.threads(), library.instruction_set()
    yield
    library.set_threads(threads)
    library.native().strop_use(isa.encode())


def both(spans, heads, kv_heads, width, *, spare=0, scale=1.0, scoring=PLAIN):
    """Runs the pair on random numbers in views of wider memory: (qkv, grad, out, row sums, grad_qkv)."""
    rows, generator = spans[-1].end, torch.Generator().manual_seed(7)
    columns = (heads + 2 * kv_heads) * width
    qkv = (torch.randn(rows, columns + spare, generator=generator) * scale)[:, spare:]
    grad = torch.randn(rows, heads * width, generator=generator)
    out = torch.full((rows, heads * width + spare), float("nan"))[:, : heads * width]
    row_sums = torch.full((heads, rows), float("nan"))
    grad_qkv = torch.full((rows, columns + spare), float("nan"))[:, :columns]
    attend(qkv, spans, heads, kv_heads, out, row_sums, scoring)
    attend_backward(qkv, out, grad, row_sums, spans, heads, kv_heads, grad_qkv, scoring)
    return qkv, grad, out, row_sums, grad_qkv


def check(spans, heads, kv_heads, width, **settings):
    qkv, grad, out, _, grad_qkv = both(spans, heads, kv_heads, width, **settings)
    scoring = settings.get("scoring", PLAIN)
    expected, expected_grad = reference(qkv, grad, spans, heads, kv_heads, width, scoring)
    # Scores grow with the square of the scale, and with them what a float32 cannot say of them.
    close = 1e-5 * settings.get("scale", 1.0) ** 2
    assert (out - expected).abs().max() < close
    assert (grad_qkv - expected_grad).abs().max() < close * max(1.0, expected_grad.abs().max())


@each_library
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width"), [(9, 3, 64), (2, 2, 16), (4, 1, 128), (3, 1, 20), (2, 1, 80), (2, 2, 96)]
)
@pytest.mark.parametrize("spare", [0, 5])
def test_ragged_documents(name, heads, kv_heads, width, spare):
    with select.forced(name):
        check(documents(ragged), heads, kv_heads, width, spare=spare)


@each_library
@pytest.mark.parametrize(
    "spans",
    [
        families([40, 1, 65, 130]),
        families([1, 1, 70], [33]),
        families([130, 64, 1, 257, 3], [90, 20], [257]),
        families([600, 50, 700]),
    ],
    ids=["one", "short", "several", "long"],
)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(6, 2, 64), (2, 2, 16)])
def test_a_shared_prefix_is_as_if_repeated(name, spans, heads, kv_heads, width):
    with select.forced(name):
        check(spans, heads, kv_heads, width)


@each_library
def test_a_document_of_many_tiles(name):
    with select.forced(name):
        check(documents([1700, 5]), 2, 1, 16)


@needs_native
def test_scores_far_apart_stay_finite():
    check(documents([1, 300, 700]), 2, 1, 16, scale=12.0)


@needs_native
def test_row_sums_are_logarithms_of_sums():
    with select.forced("native"):
        spans = families([70, 20])
        qkv, _, _, row_sums, _ = both(spans, 2, 1, 16)
    scores = qkv[:, :32].double().unflatten(1, (2, 16)).transpose(0, 1) @ qkv[:, 32:48].double().t() / 4
    expected = scores.masked_fill(~torch.ones(90, 90, dtype=torch.bool).tril(), -torch.inf).logsumexp(-1)
    torch.testing.assert_close(row_sums.double(), expected, atol=1e-5, rtol=1e-5)


@needs_native
@pytest.mark.parametrize("spans", [documents(ragged), documents([1500]), families([400, 300, 500], [70, 9])])
@pytest.mark.parametrize("width", [32, 20])
def test_threads_and_instruction_sets_change_no_bit(spans, width, restored):
    results = {}
    with select.forced("native"):
        for isa, threads in itertools.product(["plain", "avx2", "avx512", "amx", "neon"], [1, 3]):
            if library.native().strop_use(isa.encode()):
                library.set_threads(threads)
                results[isa, threads] = both(spans, 6, 2, width)[2:]
    # Plain C has no fused multiply-add on x86-64: it rounds twice where the others round once.
    fused = [result for (isa, _), result in results.items() if isa != "plain"]
    plain = [result for (isa, _), result in results.items() if isa == "plain"]
    for same in (fused, plain):
        for result in same[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, same[0], strict=True))
    for result in fused[:1]:
        for a, b in zip(result, plain[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@each_library
def test_rows_of_other_documents_are_never_read(name):
    spans = documents([30, 40, 50])
    heads, kv_heads = 2, 1
    qkv = torch.randn(120, 64)
    qkv[30:70] = float("nan")
    out, row_sums, grad_qkv = torch.empty(120, 32), torch.empty(2, 120), torch.empty(120, 64)
    with select.forced(name):
        attend(qkv, spans, heads, kv_heads, out, row_sums)
        attend_backward(qkv, out, torch.ones(120, 32), row_sums, spans, heads, kv_heads, grad_qkv)
    for result in (out, grad_qkv):
        finite = result.isfinite().all(dim=1)
        assert finite[:30].all()
        assert finite[70:].all()
        assert not finite[30:70].any()


def test_other_types_are_computed_by_torch():
    spans = families([20, 30, 5], [4])
    qkv, grad = torch.randn(59, 64, dtype=torch.float64), torch.randn(59, 32, dtype=torch.float64)
    out, row_sums, grad_qkv = torch.empty_like(grad), torch.empty(2, 59), torch.empty_like(qkv)
    attend(qkv, spans, 2, 1, out, row_sums)
    attend_backward(qkv, out, grad, row_sums, spans, 2, 1, grad_qkv)
    expected, expected_grad = reference(qkv, grad, spans, 2, 1, 16)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grad_qkv, expected_grad)


@each_library
@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
@pytest.mark.parametrize("block", [1 << 21, 6 * 64 * 3], ids=["whole", "blocks"])
def test_scores_that_are_not_plain(monkeypatch, name, scoring, block):
    monkeypatch.setattr(attention_scores, "BLOCK_SCORES", block)
    with select.forced(name):
        check(documents([1, 2, 63, 129]), 6, 2, 16, scoring=scoring)
        check(families([40, 1, 65], [3, 70]), 6, 2, 16, scoring=scoring)


def test_a_window_is_what_a_mask_says():
    q, k, v = torch.randn(3, 4, 9, 8, generator=torch.Generator().manual_seed(2)).unbind(0)
    place = torch.arange(9)
    mask = (place[:, None] >= place) & (place[:, None] - place < 3)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    ours = attention(*(part.transpose(0, 1) for part in (q, k, v)), (0, 9), Scoring(window=3))
    torch.testing.assert_close(ours.transpose(0, 1), expected)


@pytest.mark.parametrize("heads", [1, 4, 6, 40])
def test_slopes_are_blooms(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 7), heads, torch.float32)
    torch.testing.assert_close(alibi_slopes(heads)[:, None, None] * torch.arange(7), theirs)


@needs_native
@pytest.mark.skipif("openblas" not in blas.libraries(), reason="OpenBLAS is not here")
def test_the_library_of_the_frozen_products_does_not_choose_how_attention_is_computed():
    # Torch's library may be the faster one for large products; attention has its own.
    qkv_TO, sums_HT = torch.randn(7, 3 * 16), torch.empty(2, 7)
    outs = {}
    for name in ("openblas", "torch"):
        with blas.using(name):
            outs[name] = torch.empty(7, 16), sums_HT.clone()
            attend(qkv_TO, documents([7]), 2, 2, *outs[name])
    with select.forced("torch"):
        other_TQ = torch.empty(7, 16)
        attend(qkv_TO, documents([7]), 2, 2, other_TQ, sums_HT)
    assert torch.equal(outs["openblas"][0], outs["torch"][0])
    assert not torch.equal(other_TQ, outs["torch"][0])
    torch.testing.assert_close(other_TQ, outs["torch"][0])
