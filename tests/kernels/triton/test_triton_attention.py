"""Attention by Triton, and by torch's FlashAttention, against autograd over every document by itself."""

import itertools

import pytest
import torch

from attention_cases import SCORINGS, documents, families, reference
from strop.kernels import attention, attention_varlen, select
from strop.kernels.attention import PLAIN, Scoring
from strop.kernels.attention_choice import chosen
from strop.kernels.attention_scores import alibi_slopes
from strop.kernels.triton.spans import key_tiles, query_tiles

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 3e-2, torch.float16: 5e-3}
PACKS = {
    "ragged": documents([1, 31, 32, 65]),
    "one row": documents([1]),
    "prefixes": families([40, 1, 35], [1, 2], [33]),
    "a prefix of many": families([5, 3, 40, 1, 9]),
}


def run(device, spans, heads, kv_heads, width, dtype=torch.float32, scoring=PLAIN):
    """Runs the pair on views of wider memory: (qkv, grad, out, row sums, grad_qkv)."""
    rows, generator = spans[-1].end, torch.Generator().manual_seed(7)
    columns = (heads + 2 * kv_heads) * width
    qkv = torch.randn(rows, columns + 8, generator=generator).to(device, dtype)[:, 8:]
    grad = torch.randn(rows, heads * width, generator=generator).to(device, dtype)
    out = torch.full((rows, heads * width + 8), float("nan"), dtype=dtype, device=device)[:, : heads * width]
    row_sums = torch.full((heads, rows), float("nan"), device=device)
    grad_qkv = torch.full((rows, columns + 8), float("nan"), dtype=dtype, device=device)[:, :columns]
    attention.attend(qkv, spans, heads, kv_heads, out, row_sums, scoring)
    attention.attend_backward(qkv, out, grad, row_sums, spans, heads, kv_heads, grad_qkv, scoring)
    return qkv, grad, out, row_sums, grad_qkv


def check(device, spans, heads, kv_heads, width, dtype=torch.float32, scoring=PLAIN):
    qkv, grad, out, row_sums, grad_qkv = run(device, spans, heads, kv_heads, width, dtype, scoring)
    expected, expected_grad = reference(qkv, grad, spans, heads, kv_heads, width, scoring)
    assert (out - expected).abs().max() < TOLERANCE[dtype]
    assert (grad_qkv - expected_grad).abs().max() < TOLERANCE[dtype] * max(1.0, expected_grad.abs().max())
    assert row_sums.isfinite().all()


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("spans", PACKS.values(), ids=PACKS)
def test_documents_and_prefixes(device, spans, dtype):
    check(device, spans, 2, 1, 16, dtype)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(2, 2, 20), (3, 1, 64), (1, 1, 136)])
def test_sizes_of_heads(device, heads, kv_heads, width):
    check(device, families([17, 1, 20]), heads, kv_heads, width)


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS)
def test_scores_that_are_not_plain(device, scoring):
    if scoring.slopes_H is not None:
        scoring = Scoring(scoring.scale, scoring.softcap, scoring.window, alibi_slopes(3).to(device))
    check(device, families([33, 1, 35]), 3, 1, 16, scoring=scoring)


@pytest.mark.usefixtures("triton")
def test_row_sums_are_those_of_the_plain_implementation(device):
    scoring = Scoring(softcap=2.0, window=9, slopes_H=alibi_slopes(2).to(device))
    ours = run(device, PACKS["a prefix of many"], 2, 1, 16, scoring=scoring)
    with attention.using("plain"):
        theirs = run(device, PACKS["a prefix of many"], 2, 1, 16, scoring=scoring)
    torch.testing.assert_close(ours[3], theirs[3], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("triton")
@pytest.mark.filterwarnings("ignore:(All-NaN|invalid value):RuntimeWarning")
def test_rows_of_other_documents_are_never_read(device):
    spans = documents([30, 40, 50])
    qkv = torch.randn(120, 64, device=device)
    qkv[30:70] = float("nan")
    out, row_sums, grad_qkv = (torch.empty(120, 32), torch.empty(2, 120), torch.empty(120, 64))
    out, row_sums, grad_qkv = (part.to(device) for part in (out, row_sums, grad_qkv))
    attention.attend(qkv, spans, 2, 1, out, row_sums)
    attention.attend_backward(qkv, out, torch.ones_like(out), row_sums, spans, 2, 1, grad_qkv)
    for result in (out, grad_qkv):
        finite = result.isfinite().all(dim=1)
        assert finite[:30].all()
        assert finite[70:].all()
        assert not finite[30:70].any()


@pytest.mark.usefixtures("triton")
def test_the_same_bits_twice(device):
    first, second = (run(device, PACKS["a prefix of many"], 2, 1, 16, torch.float16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_tiles_cover_every_row_once_and_name_every_follower():
    spans, device = tuple(families([40, 1, 35], [7])), torch.device("cpu")
    queries, keys = query_tiles(spans, 16, device), key_tiles(spans, 16, device)
    for tiles in (queries, keys):
        rows = [row for first, end, *_ in tiles.numbers.tolist() for row in range(first, min(first + 16, end))]
        assert sorted(rows) == list(range(83))
    looked = {first: keys.segments[a:b, 0].tolist() for first, _, a, b in keys.numbers.tolist()}
    # The prefix's three tiles are seen by itself and by both documents, the rest by themselves.
    assert looked == {
        0: [0, 40, 41],
        16: [0, 40, 41],
        32: [0, 40, 41],
        40: [40],
        41: [41],
        57: [41],
        73: [41],
        76: [76],
    }


# FlashAttention runs on GPUs only. What is built around it is held by operators with its contract, in float64.


def sequences(call):
    q, k = call.starts_q.tolist(), call.starts_k.tolist()
    return zip(itertools.pairwise(q), itertools.pairwise(k), strict=True)


def one_sequence(q, k, v, call):
    group = q.shape[1] // k.shape[1]
    k, v = (part.repeat_interleave(group, dim=1) for part in (k, v))
    scores = torch.einsum("the,uhe->htu", q, k) * call.scale
    distance = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
    hidden = (distance < 0) if call.causal else torch.zeros_like(distance, dtype=torch.bool)
    if call.window >= 0:
        hidden = hidden | (distance > call.window)
    return scores.masked_fill(hidden, float("-inf")), v


def flash_forward(q_THE, k_TKE, v_TKE, call):
    y, sums = torch.zeros_like(q_THE), torch.zeros(q_THE.shape[1], len(q_THE), dtype=q_THE.dtype)
    for (q0, q1), (k0, k1) in sequences(call):
        scores, v = one_sequence(q_THE[q0:q1], k_TKE[k0:k1], v_TKE[k0:k1], call)
        y[q0:q1] = torch.einsum("htu,uhe->the", scores.softmax(-1), v)
        sums[:, q0:q1] = scores.logsumexp(-1)
    return y, sums


def flash_backward(dy_THE, q_THE, k_TKE, v_TKE, y_THE, sums_HT, call):
    """The gradient of y and ℓ that are given, whatever the keys that are not here."""
    dq, dk, dv = torch.zeros_like(q_THE), torch.zeros_like(k_TKE), torch.zeros_like(v_TKE)
    for (q0, q1), (k0, k1) in sequences(call):
        q, k, group = q_THE[q0:q1], k_TKE[k0:k1], q_THE.shape[1] // k_TKE.shape[1]
        scores, v = one_sequence(q, k, v_TKE[k0:k1], call)
        p = (scores - sums_HT[:, q0:q1, None]).exp()
        along = (dy_THE[q0:q1] * y_THE[q0:q1]).sum(-1).t()[..., None]
        ds = p * (torch.einsum("the,uhe->htu", dy_THE[q0:q1], v) - along) * call.scale
        dq[q0:q1] = torch.einsum("htu,uhe->the", ds, k.repeat_interleave(group, dim=1))
        dk[k0:k1] = torch.einsum("htu,the->uhe", ds, q).unflatten(1, (-1, group)).sum(2)
        dv[k0:k1] = torch.einsum("htu,the->uhe", p, dy_THE[q0:q1]).unflatten(1, (-1, group)).sum(2)
    return dq, dk, dv


@pytest.mark.parametrize("spans", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("scoring", [PLAIN, Scoring(scale=0.3), Scoring(window=5)], ids=["plain", "scale", "window"])
def test_what_is_built_around_flash_attention(monkeypatch, spans, scoring):
    if not attention_varlen.understands(spans, scoring):
        pytest.skip("a window over prefixes is left to others")
    monkeypatch.setattr(attention_varlen, "flash_forward", flash_forward)
    monkeypatch.setattr(attention_varlen, "flash_backward", flash_backward)
    rows, generator = spans[-1].end, torch.Generator().manual_seed(7)
    qkv = torch.randn(rows, 8 * 16, generator=generator, dtype=torch.float64)
    grad = torch.randn(rows, 4 * 16, generator=generator, dtype=torch.float64)
    out, sums, grad_qkv = torch.empty_like(grad), torch.empty(4, rows, dtype=torch.float64), torch.empty_like(qkv)
    attention_varlen.attend(qkv, spans, 4, 2, scoring, out, sums)
    attention_varlen.attend_backward(qkv, out, grad, sums, spans, 4, 2, scoring, grad_qkv)
    expected, expected_grad = reference(qkv, grad, spans, 4, 2, 16, scoring)
    # Shares of a softmax are float32 on the way.
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grad_qkv, expected_grad, atol=5e-6, rtol=5e-6)


def test_a_window_over_prefixes_is_left_to_others():
    assert attention_varlen.understands(PACKS["ragged"], Scoring(window=5))
    assert attention_varlen.understands(PACKS["prefixes"], Scoring(window=500))
    assert not attention_varlen.understands(PACKS["prefixes"], Scoring(window=5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", ["varlen", "triton", "sdpa", "plain"])
@pytest.mark.parametrize("spans", PACKS.values(), ids=PACKS)
def test_every_implementation_on_a_gpu(device, name, spans):
    assert name in attention.available(device)
    with attention.using(name):
        check(device, spans, 4, 2, 64, torch.bfloat16)
        first, second = (run(device, spans, 4, 2, 64, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_what_was_asked_for_computes_where_it_can():
    spans, qkv = documents([4, 3]), torch.empty(7, 48, dtype=torch.float64)
    assert chosen(16, spans, PLAIN, qkv) == "sdpa"
    assert chosen(16, spans, Scoring(window=2), qkv) == "plain"
    with attention.using("plain"):
        assert chosen(16, spans, PLAIN, qkv) == "plain"
    with attention.using("varlen"):
        assert chosen(16, spans, PLAIN, qkv) == "sdpa"
    with select.forced("torch"):
        assert chosen(16, spans, PLAIN, qkv.float()) == "sdpa"
    assert attention.available(torch.device("cpu"), dtype=torch.float64) == ("sdpa", "plain")
    assert attention.available(torch.device("cpu"), Scoring(softcap=1.0)) == ("plain",)


def test_a_name_that_nobody_has_is_refused():
    from strop.errors import UsageError

    with pytest.raises(UsageError, match="xformers"):
        attention.use("xformers")


@pytest.mark.usefixtures("triton")
def test_under_triton_triton_computes(device):
    spans, qkv = documents([4, 3]), torch.empty(7, 48, device=device)
    assert chosen(16, spans, Scoring(softcap=2.0, window=2), qkv) == "triton"
    assert chosen(512, spans, PLAIN, qkv) == "sdpa"
