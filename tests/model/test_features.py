"""Every feature of the decoder against transformers: logits, loss, gradients of A and B, answers; and the engine."""

from functools import cache

import pytest
import torch
from feature_cases import CASES
from test_decoder import batch_of, documents, relative
from test_engine import GRADES, adapter_of, agree, engines, native, reference, work_of
from torch.nn.functional import cross_entropy

from strop.kernels import select
from strop.model.engine import Engine
from strop.model.generate import generate

each_case = pytest.mark.parametrize("name", CASES)
LENGTHS = (17, 1, 40, 9)


@cache
def built(name):
    return CASES[name], *CASES[name].build()


def theirs_alone(model, document):
    """Logits of a document by itself; what rotary embeddings remember of longer ones is forgotten."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_inv_freq"):
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq.data = module.original_inv_freq.clone()
    return model(torch.tensor([document])).logits[0]


@each_case
def test_logits_of_a_pack(name):
    _, model, decoder = built(name)
    docs = documents(*LENGTHS)
    ours = decoder.logits(batch_of(*docs), None)
    with torch.no_grad():
        theirs = torch.cat([theirs_alone(model, document) for document in docs])
    assert relative(ours, theirs) < 1e-5


@each_case
def test_loss_and_gradients(name):
    """The gradient of W + s B A gives those of B and A."""
    case, _, _ = built(name)
    model, decoder = case.build()
    adapter = adapter_of(decoder, decoder.spec.adaptable)
    with torch.no_grad():
        for path, (a_RI, b_OR) in adapter.matrices.items():
            case.tensor(model, f"{path}.weight").add_(b_OR @ a_RI, alpha=adapter.scale)
    docs = documents(*LENGTHS)
    losses = [
        cross_entropy(theirs_alone(model, doc)[1:-1], torch.tensor(doc[2:]), reduction="sum")
        for doc in docs
        if len(doc) > 2
    ]
    sum(losses).backward()
    batch = batch_of(*docs)
    loss, grads = engines(Engine(decoder, work_of(batch, adapter)), batch, adapter)
    assert loss == pytest.approx(sum(losses).item(), rel=1e-5)
    found = dict(zip([id(matrix) for matrix in adapter.parameters()], grads, strict=True))
    for path, (a_RI, b_OR) in adapter.matrices.items():
        slope_OI = case.tensor(model, f"{path}.weight", gradient=True) * adapter.scale
        assert relative(found[id(a_RI)], b_OR.detach().T @ slope_OI) < 1e-5, path
        assert relative(found[id(b_OR)], slope_OI @ a_RI.detach().T) < 1e-5, path


@each_case
@pytest.mark.parametrize("choice", ["torch", "native"])
def test_the_engine_is_the_reference(name, choice):
    if choice == "native" and not native():
        pytest.skip("the native library is not built here")
    _, _, decoder = built(name)
    batch = batch_of(*documents(*LENGTHS))
    with select.forced(choice):
        for targets in (decoder.spec.adaptable, ("q_proj", "v_proj"), ("up_proj",), ("o_proj", "down_proj")):
            here = [name for name in targets if name in decoder.spec.adaptable]
            adapter = adapter_of(decoder, here or ["k_proj"], dropout=0.2)
            expected = reference(decoder, batch, adapter, step_key=5)
            for grades in GRADES.values():
                engine = Engine(decoder, work_of(batch, adapter, grades))
                for piece in engine.workspace.layout:
                    engine.workspace.all(piece).fill_(float("nan"))
                agree(engines(engine, batch, adapter, step_key=5), expected)
                assert engine.loss(batch, None) == pytest.approx(decoder.loss(batch, None).item(), rel=1e-6)


@each_case
def test_answers_are_token_identical(name):
    _, model, decoder = built(name)
    prompts = documents(5, 19, 2)
    for prompt, answer in zip(prompts, generate(decoder, None, prompts, [], 14), strict=True):
        theirs_alone(model, prompt[:1])
        out = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=14, eos_token_id=None, pad_token_id=0
        )
        assert answer.tokens == out[0, len(prompt) :].tolist()
