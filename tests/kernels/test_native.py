"""The native library: the same bytes from every instruction set and number of threads; forks; what is refused."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from strop.errors import UsageError
from strop.kernels import activation, layer_norm, library, nf4, select
from strop.kernels.cross_entropy import softmax_gradient_
from strop.kernels.dropout import add_dropped, dropout_into, token_keys
from strop.kernels.rms_norm import normalize, normalize_backward
from strop.kernels.rope import rotate_
from strop.kernels.swiglu import gate, gate_backward_

COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("cc")
needs_library = pytest.mark.skipif(library.native() is None, reason=f"native library: {library.reason()}")
needs_compiler = pytest.mark.skipif(COMPILER is None or os.name == "nt", reason="no C compiler")

rows, columns, vocabulary = 203, 150, 1003


@pytest.fixture
def restored():
    """Leaves threads and instruction set as they were."""
    threads, isa = library.threads(), library.instruction_set()
    yield
    library.set_threads(threads)
    library.native().strop_use(isa.encode())


def everything(dtype):
    """The results of all operations on the same input, large enough for many tasks."""
    draw = torch.Generator().manual_seed(5)
    x, grad = (torch.randn(rows, columns, generator=draw).to(dtype) for _ in range(2))
    gate_up = (torch.randn(rows, 2 * columns, generator=draw) * 4).to(dtype)
    heads = torch.randn(rows, 3, columns // 3, generator=draw).to(dtype)
    logits = (torch.randn(rows, vocabulary, generator=draw) * 5).to(dtype)
    weight = torch.randn(1000, columns, generator=draw)
    angles = torch.rand(rows, columns // 6, generator=draw)
    keys = token_keys(3, torch.arange(rows), torch.arange(rows))
    scale = torch.rand(columns, generator=draw)
    results = [normalize(x, scale, 1e-6, torch.empty_like(x)), grad.clone(), gate(gate_up, torch.empty_like(x))]
    normalize_backward(grad, x, scale, 1e-6, results[1])
    gate_backward_(grad, gate_up)
    rotate_(heads, angles.cos(), angles.sin())
    losses = softmax_gradient_(logits, torch.arange(rows))
    results += [gate_up, heads, logits, losses]
    results += [dropout_into(x, keys, 9, 0.3, torch.empty_like(x)), grad.clone()]
    add_dropped(x, keys, 9, 0.3, results[-1])
    normal = layer_norm.normalize(x, scale, scale, 1e-6, torch.empty_like(x))
    results += [normal, grad.clone(), activation.apply(gate_up, "gelu", torch.empty_like(x), gated=True)]
    layer_norm.normalize_backward(grad, x, scale, 1e-6, results[-2])
    for name in ("silu", "gelu", "gelu_tanh"):
        results.append(gate_up.clone())
        activation.apply_backward_(grad, results[-1], name, gated=True)
    tensor = nf4.quantize(weight.to(dtype))
    return [*results, tensor.packed, tensor.absmax8, tensor.nested_absmax, nf4.dequantize(tensor, dtype=dtype)]


def assert_same_bytes(results, expected):
    for index, (got, want) in enumerate(zip(results, expected, strict=True)):
        assert torch.equal(got, want), index


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@needs_library
@DTYPES
@pytest.mark.parametrize("isa", ["amx", "avx512", "avx2", "neon"])
def test_every_instruction_set_gives_the_same_bytes(isa, dtype, restored):
    library.native().strop_use(b"plain")
    expected = everything(dtype)
    if not library.native().strop_use(isa.encode()):
        pytest.skip(f"this CPU has no {isa}")
    assert library.instruction_set() == isa
    assert_same_bytes(everything(dtype), expected)


@needs_library
@DTYPES
def test_any_number_of_threads_gives_the_same_bytes(dtype, restored):
    library.set_threads(1)
    expected = everything(dtype)
    for count in (2, 3, 4, 2, 1, 4):
        library.set_threads(count)
        assert library.threads() == count
        assert_same_bytes(everything(dtype), expected)
    library.release()
    assert_same_bytes(everything(dtype), expected)


@needs_library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_its_own_threads(restored):
    library.set_threads(3)
    out, weight = torch.empty(1 << 18), torch.randn(1 << 18, generator=torch.Generator().manual_seed(1))
    tensor = nf4.quantize(weight)
    expected = nf4.dequantize(tensor)
    child = os.fork()
    if child == 0:
        # Only the library and a comparison: torch's own threads do not survive a fork.
        nf4.dequantize(tensor, out=out)
        tasks = Path("/proc/self/task")
        count = len(list(tasks.iterdir())) if tasks.exists() else 3
        os._exit(0 if count == 3 and out.numpy().tobytes() == expected.numpy().tobytes() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(nf4.dequantize(tensor), expected)


POOL_PROGRAM = r"""
#include "strop.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
static int counts[1000];
static void inner(void *context, int task, int worker) {
    if (worker != *(int *)context) exit(3);
    __atomic_fetch_add(&counts[task], 1, __ATOMIC_RELAXED);
}
static void outer(void *context, int task, int worker) {
    (void)context; (void)task;
    if (worker < 0 || worker >= 4) exit(4);
    char *memory = strop_scratch(worker, 1000 + task * 64);
    if ((uintptr_t)memory % 64) exit(5);
    memset(memory, worker, 1000);
    strop_parallel(1000, inner, &worker);
    for (int i = 0; i < 1000; i++) if (memory[i] != worker) exit(6);
}
static void *caller(void *argument) {
    for (int i = 0; i < 50; i++) strop_parallel(7, outer, NULL);
    return argument;
}
int main(void) {
    strop_set_threads(4);
    if (strop_threads() != 4) return 1;
    pthread_t others[3];
    for (int i = 0; i < 3; i++) pthread_create(&others[i], NULL, caller, NULL);
    caller(NULL);
    for (int i = 0; i < 3; i++) pthread_join(others[i], NULL);
    for (int i = 0; i < 1000; i++) if (counts[i] != 4 * 50 * 7) return 2;
    strop_parallel(0, outer, NULL);
    strop_set_threads(1);
    strop_release();
    return 0;
}
"""


@needs_compiler
def test_the_pool_runs_every_task_once_nested_and_from_several_threads(tmp_path):
    program, binary = tmp_path / "pool_test.c", tmp_path / "pool_test"
    program.write_text(POOL_PROGRAM)
    sources = library.PATH.parent
    command = [COMPILER, "-std=gnu11", "-O1", "-pthread", f"-I{sources}", str(program), str(sources / "pool.c")]
    subprocess.run([*command, "-o", str(binary)], check=True)
    assert subprocess.run([binary], timeout=60, check=False).returncode == 0


def compile_stub(folder: Path, text: str) -> Path:
    (folder / "stub.c").write_text(text)
    target = folder / f"stub{library.PATH.suffix}"
    subprocess.run([COMPILER, "-shared", "-fPIC", str(folder / "stub.c"), "-o", str(target)], check=True)
    return target


@needs_compiler
def test_a_library_of_other_sources_is_refused(tmp_path):
    opened, why = library._open(compile_stub(tmp_path, "int strop_abi(void) { return 999; }"))
    assert opened is None
    assert "out of date (ABI 999" in why


@needs_compiler
def test_a_library_that_is_not_ours_is_refused(tmp_path):
    opened, why = library._open(compile_stub(tmp_path, "int other(void) { return 1; }"))
    assert opened is None
    assert "cannot be loaded" in why


def test_a_broken_or_missing_library_is_refused_in_words(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    assert library._open(broken)[0] is None
    assert "cannot be loaded" in library._open(broken)[1]
    assert "not compiled" in library._open(tmp_path / "absent.so")[1]


def test_the_environment_switches_it_off(monkeypatch):
    monkeypatch.setenv("STROP_NATIVE", "off")
    opened, why = library._found.__wrapped__()
    assert opened is None
    assert "STROP_NATIVE=off" in why


@needs_library
def test_the_environment_chooses_an_instruction_set(monkeypatch, restored):
    monkeypatch.setenv("STROP_NATIVE", "plain")
    assert library._found.__wrapped__()[0] is not None
    assert library.instruction_set() == "plain"
    monkeypatch.setenv("STROP_NATIVE", "sse9")
    with pytest.raises(UsageError, match="sse9"):
        library._found.__wrapped__()


@needs_library
def test_the_abi_of_the_sources_is_that_of_the_loader():
    header = (library.PATH.parent / "strop.h").read_text()
    assert f"#define STROP_ABI {library.ABI}\n" in header


def test_the_choice_is_made_from_the_tensors():
    x = torch.zeros(3, 4)
    with select.forced("torch"):
        assert not select.uses_native(x)
        assert select.describe() == "torch (forced)"
    if library.native() is not None:
        assert select.uses_native(x, x[:, :2], x[0])
        assert not select.uses_native(x.T)
        assert not select.uses_native(x, x.double())
        assert not select.uses_native(x, torch.zeros(3, 4, device="meta"))
        assert select.uses_native(torch.zeros(3, dtype=torch.uint8), dtype=torch.uint8)
        assert select.describe().startswith("native C, ")


def test_importing_the_loader_does_not_import_torch():
    code = "import strop.kernels.library, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
