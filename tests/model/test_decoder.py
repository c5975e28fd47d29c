"""The decoder against transformers (logits) and PEFT (gradients of A and B), on the same dequantised weights."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from strop.errors import ModelError
from strop.kernels import nf4
from strop.model.batch import make_batch
from strop.model.generate import generate
from strop.model.load import load_decoder
from strop.model.lora import make_adapter, read_adapter, write_adapter
from strop.model.spec import GROUPS, PROJECTIONS, module_path

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,  # larger than usual, so that attention is far from uniform
}
VARIANTS = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "all heads": {"num_key_value_heads": 4, "tie_word_embeddings": False},
    "one kv head": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 32},
    "attention bias": {"attention_bias": True},
    "mlp bias": {"mlp_bias": True, "attention_bias": True},
    "rope theta": {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    "rope linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "rope llama3": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "odd sizes": {"hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 3, "num_key_value_heads": 1},
}


def build(folder: Path, **changes):
    """A tiny random Llama in a folder, and transformers' model of it."""
    torch.manual_seed(11)
    config = LlamaConfig(**{**SIZES, **changes})
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


def with_dequantized_weights(model, decoder):
    """Gives transformers' model the weights that our decoder really uses."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for layer in decoder.layers:
            for group, names in zip(layer.groups, GROUPS, strict=True):
                for weight, name in zip(group.weights, names, strict=True):
                    modules[module_path(layer.index, name)].weight.copy_(nf4.dequantize(weight))
    return model


def batch_of(*documents, learned_from=2):
    """A pack of token lists; what comes after the first tokens is learned."""
    tokens, targets, positions, starts = [], [], [], [0]
    for document in documents:
        tokens += document
        following = [*document[1:], -100]
        targets += [-100] * (learned_from - 1) + following[learned_from - 1 :] if len(document) > 1 else following
        positions += range(len(document))
        starts.append(len(tokens))
    pack = SimpleNamespace(
        tokens_T=tokens,
        targets_T=targets,
        positions_T=positions,
        starts_D1=starts,
        sample_ids_D=list(range(10, 10 + len(documents))),
    )
    return make_batch(pack)


def documents(*lengths):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(320, (length,), generator=generator).tolist() for length in lengths]


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_logits_equal_transformers(tmp_path, changes):
    model = build(tmp_path, **changes)
    decoder = load_decoder(tmp_path)
    with_dequantized_weights(model, decoder)
    docs = documents(17, 1, 40)
    ours = decoder.logits(batch_of(*docs), None)
    with torch.no_grad():
        theirs = torch.cat([model(torch.tensor([document])).logits[0] for document in docs])
    assert relative(ours, theirs) < 1e-5


@pytest.mark.parametrize("targets", [PROJECTIONS, ("q_proj", "v_proj"), ("down_proj",)])
@pytest.mark.parametrize("dense_layers", [0, 2])
def test_gradients_equal_peft(tmp_path, targets, dense_layers):
    model = build(tmp_path, attention_bias=True)
    decoder = load_decoder(tmp_path)
    with_dequantized_weights(model, decoder)
    decoder.loss_chunk = 7
    decoder.keep_dense(dense_layers)
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=0.0, targets=targets, seed=1)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.add_(torch.randn_like(matrix) * 0.1)
    tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM"))
    theirs = {name.replace(".default", ""): matrix for name, matrix in tuned.named_parameters() if "lora_" in name}
    assert set(theirs) == set(adapter.named())
    with torch.no_grad():
        for name, matrix in adapter.named().items():
            theirs[name].copy_(matrix)
    docs = documents(9, 30, 3)
    loss = decoder.loss(batch_of(*docs), adapter)
    loss.backward()
    expected = sum(
        cross_entropy(tuned(torch.tensor([doc])).logits[0, 1:-1], torch.tensor(doc[2:]), reduction="sum")
        for doc in docs
    )
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, matrix in adapter.named().items():
        assert relative(matrix.grad, theirs[name].grad) < 1e-5, name


def test_a_pack_gives_what_its_documents_give_alone_dropout_on(tmp_path):
    build(tmp_path)
    decoder = load_decoder(tmp_path)
    adapter = make_adapter(decoder.spec, rank=4, alpha=8, dropout=0.25, targets=PROJECTIONS, seed=1)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.add_(torch.randn_like(matrix) * 0.1)
    docs = documents(9, 30, 3)
    together = batch_of(*docs)
    decoder.loss(together, adapter, step_key=77).backward()
    packed = [matrix.grad.clone() for matrix in adapter.parameters()]
    for matrix in adapter.parameters():
        matrix.grad = None
    total = 0.0
    for index, document in enumerate(docs):
        alone = batch_of(document)
        alone.sample_ids_T.fill_(index + 10)
        loss = decoder.loss(alone, adapter, step_key=77)
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(decoder.loss(together, adapter, step_key=77).item(), rel=1e-6)
    for matrix, grad in zip(adapter.parameters(), packed, strict=True):
        assert relative(matrix.grad, grad) < 1e-5
    assert decoder.loss(together, adapter, step_key=78).item() != pytest.approx(total, rel=1e-6)


def test_generation_equals_transformers_and_ignores_its_neighbours(tmp_path):
    model = build(tmp_path)
    decoder = load_decoder(tmp_path)
    with_dequantized_weights(model, decoder)
    prompts = documents(5, 19, 2)
    expected = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=None, pad_token_id=0
        )
        expected.append(out[0, len(prompt) :].tolist())
    assert [answer.tokens for answer in generate(decoder, None, prompts, [], 12)] == expected
    stop = expected[1][4]
    answers = generate(decoder, None, prompts, [stop], 12)
    cut = expected[1].index(stop)
    assert answers[1].tokens == expected[1][:cut]
    assert answers[1].stopped
    warm = generate(decoder, None, prompts, [], 12, temperature=1.0, seed=3)
    assert warm == generate(decoder, None, prompts, [], 12, temperature=1.0, seed=3)
    assert warm != generate(decoder, None, prompts, [], 12, temperature=1.0, seed=4)
    assert warm[:1] == generate(decoder, None, prompts[:1], [], 12, temperature=1.0, seed=3)


def test_sampling_follows_the_probabilities(tmp_path):
    from strop.model.draw import Draw

    logits = torch.log(torch.tensor([0.1, 0.0, 0.6, 0.3])).expand(4000, 4)
    drawn = torch.tensor(Draw(1.0, 0, 0).choose(logits, range(4000), 0))
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert (shares - torch.tensor([0.1, 0.0, 0.6, 0.3])).abs().max() < 0.03
    assert shares[1] == 0


def test_adapter_round_trip_and_peft_reads_it(tmp_path):
    model = build(tmp_path / "base")
    decoder = load_decoder(tmp_path / "base")
    adapter = make_adapter(decoder.spec, rank=4, alpha=6, dropout=0.1, targets=("q_proj", "up_proj"), seed=9)
    with torch.no_grad():
        for matrix in adapter.parameters():
            matrix.add_(torch.randn_like(matrix) * 0.3)
    write_adapter(adapter, tmp_path / "adapter", str(tmp_path / "base"), decoder.spec)
    again = read_adapter(tmp_path / "adapter", decoder.spec)
    assert (again.rank, again.alpha, again.dropout, again.targets) == (4, 6, 0.1, ("q_proj", "up_proj"))
    for name, matrix in again.named().items():
        assert torch.equal(matrix, adapter.named()[name])
    from peft import PeftModel

    with_dequantized_weights(model, decoder)
    tuned = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    docs = documents(21)
    with torch.no_grad():
        assert relative(decoder.logits(batch_of(*docs), again), tuned(torch.tensor(docs)).logits[0]) < 1e-5


def test_initial_a_follows_seed_and_path_and_has_the_spread_of_peft(tmp_path):
    build(tmp_path)
    spec = load_decoder(tmp_path).spec

    def first(seed):
        return make_adapter(spec, rank=64, alpha=8, dropout=0, targets=("q_proj", "k_proj"), seed=seed).matrices

    one, same, other = first(1), first(1), first(2)
    path = module_path(0, "q_proj")
    assert torch.equal(one[path][0], same[path][0])
    assert not torch.equal(one[path][0], other[path][0])
    assert not torch.equal(one[path][0], one[module_path(1, "q_proj")][0])
    bound = 64**-0.5
    assert one[path][0].abs().max() <= bound
    assert one[path][0].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert one[path][1].abs().max() == 0


def broken(folder, change):
    build(folder)
    change(folder)
    with pytest.raises(ModelError) as error:
        load_decoder(folder)
    return str(error.value)


def test_bad_folders_are_refused_with_their_reason(tmp_path):
    def truncate(folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])

    def edit(**changes):
        def change(folder):
            import json

            path = folder / "config.json"
            config = json.loads(path.read_text())
            path.write_text(json.dumps({**config, **changes}))

        return change

    assert "cannot be read" in broken(tmp_path / "a", truncate)
    assert "no config.json" in broken(tmp_path / "b", lambda folder: (folder / "config.json").unlink())
    assert "no model.safetensors" in broken(tmp_path / "c", lambda folder: (folder / "model.safetensors").unlink())
    assert "no table for the family" in broken(tmp_path / "d", edit(model_type="mamba"))
    assert "hidden_act" in broken(tmp_path / "e", edit(hidden_act="gelu"))
    assert "wrong shape" in broken(tmp_path / "f", edit(intermediate_size=128))
    assert "hidden_size is None" in broken(tmp_path / "g", edit(hidden_size=None))
    assert "rope_type" in broken(tmp_path / "h", edit(rope_parameters={"rope_type": "mrope", "factor": 2.0}))
    assert "cannot be read" in broken(tmp_path / "i", lambda folder: (folder / "config.json").write_text("{"))
    with pytest.raises(ModelError, match="does not exist"):
        load_decoder(tmp_path / "nowhere")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = build(tmp_path)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj.weight"):
        load_decoder(tmp_path)


def test_a_shard_may_not_lead_out_of_the_folder(tmp_path):
    import json

    build(tmp_path / "base")
    outside = tmp_path / "outside.safetensors"
    (tmp_path / "base" / "model.safetensors").rename(outside)
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="names the shard"):
        load_decoder(tmp_path / "base")


def test_shards_are_read(tmp_path):
    model = build(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    batch = batch_of(*documents(12))
    whole, shards = (load_decoder(tmp_path / name).logits(batch, None) for name in ("whole", "shards"))
    assert torch.equal(whole, shards)
