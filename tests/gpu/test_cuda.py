"""On a CUDA device: the same operations in bfloat16, and a run that follows the CPU's loss curve.

Run by `make gpu`. The reference kernels are plain torch, so what is held here is that nothing is left on the wrong
device or in the wrong dtype, and that bfloat16 moves the losses by no more than its rounding.
"""

import pytest
import torch

from strop.data.problems import write_problems
from strop.kernels import nf4
from strop.model.load import load_decoder
from strop.recipe import resolve
from strop.run.folder import RunFolder
from strop.training.session import train_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def test_nf4_has_the_same_bytes_on_both_devices():
    weight = torch.randn(512, 576)
    cpu, cuda = nf4.quantize(weight), nf4.quantize(weight.cuda()).to("cpu")
    assert torch.equal(cpu.packed, cuda.packed)
    assert torch.equal(nf4.dequantize(cpu), nf4.dequantize(nf4.quantize(weight).to("cuda")).cpu())


def test_the_base_is_the_same_on_both_devices(smollm2_folder):
    cpu, cuda = load_decoder(smollm2_folder), load_decoder(smollm2_folder, "cuda", torch.bfloat16)
    for ours, theirs in zip(cpu.layers, cuda.layers, strict=True):
        for group, other in zip(ours.groups, theirs.groups, strict=True):
            for weight, moved in zip(group.weights, other.weights, strict=True):
                assert torch.equal(weight.packed, moved.packed.cpu())


def run(folder, model, data, **plan):
    overrides = [("data.eval", "8"), ("train.steps", "8"), ("train.samples_per_step", "4"), ("train.lr", "1e-3")]
    overrides += [("adapter.dropout", "0.1"), ("watch.answer_tokens", "8")]
    train_run(resolve(model=str(model), data=data, overrides=overrides), folder=folder, plan_overrides=plan)
    record = RunFolder(folder)
    return [event["loss"] for event in record.lines(record.events) if event["kind"] == "step"]


def test_the_loss_curve_is_that_of_the_cpu_within_rounding(smollm2_folder, tmp_path):
    data = str(write_problems(tmp_path / "problems", learn=80, held_out=0) / "train")
    exact = run(tmp_path / "cpu", smollm2_folder, data, device="cpu", dtype="float32")
    float32 = run(tmp_path / "cuda32", smollm2_folder, data, device="cuda", dtype="float32")
    bfloat16 = run(tmp_path / "cuda16", smollm2_folder, data, device="cuda", dtype="bfloat16")
    again = run(tmp_path / "cuda16b", smollm2_folder, data, device="cuda", dtype="bfloat16")
    assert float32 == pytest.approx(exact, rel=1e-3)
    assert bfloat16 == pytest.approx(exact, rel=3e-2)
    assert bfloat16 == again
