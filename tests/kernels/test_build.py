"""`hatch_build.py`: the library is made where there is a compiler, and its absence breaks nothing."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from strop.kernels import library

ROOT = Path(__file__).parents[2]


class Console:
    def __init__(self):
        self.warnings = []

    def display_warning(self, text):
        self.warnings.append(text)


@pytest.fixture
def build(tmp_path, monkeypatch):
    """The module, with a copy of the sources to work on."""
    specification = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    sources = tmp_path / "native"
    shutil.copytree(ROOT / "src/strop/kernels/native", sources, ignore=shutil.ignore_patterns("_native.*"))
    monkeypatch.setattr(module, "SOURCES", sources)
    monkeypatch.delenv("CC", raising=False)
    return module


@pytest.fixture
def hook(build):
    class Hook(build.CustomBuildHook):
        app = Console()

        def __init__(self):
            """Without what hatchling hands over."""

    return Hook()


def test_the_library_is_made_opens_and_names_its_platform(build, hook):
    if not build._compilers():
        pytest.skip("no C compiler")
    build_data = {}
    hook.initialize("standard", build_data)
    assert hook.app.warnings == []
    assert build_data["tag"].startswith("py3-none-")
    assert build_data["tag"] != "py3-none-any"
    assert build_data["pure_python"] is False
    opened, why = library._open(build.library_path())
    assert opened is not None, why
    assert [path.name for path in build.SOURCES.parent.iterdir()] == ["native"]


@pytest.mark.parametrize("compiler", ["/nonexistent", sys.executable])
def test_without_a_working_compiler_the_installation_goes_on(build, hook, compiler, monkeypatch):
    monkeypatch.setenv("CC", compiler)
    build.library_path().write_bytes(b"from an earlier build")
    build_data = {}
    hook.initialize("standard", build_data)
    assert build_data == {}  # a wheel for every platform
    assert not build.library_path().exists()
    (warning,) = hook.app.warnings
    assert "without its native library" in warning
    assert compiler in warning


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the compiler here is a shell script")
def test_a_compiler_that_does_not_know_amx_makes_the_library_without(build, tmp_path, monkeypatch):
    if not build._compilers():
        pytest.skip("no C compiler")
    compiler = tmp_path / "old-cc"
    refuses = 'case "$*" in *-mamx*) echo unrecognized option >&2; exit 1;; esac'
    compiler.write_text(f'#!/bin/sh\n{refuses}\nexec {build._compilers()[0][0]} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    opened, why = library._open(build.compile_library())
    assert opened is not None, why
    assert not opened.strop_use(b"amx")
    assert opened.strop_use(b"plain")


def test_a_failing_compile_by_hand_leaves_the_earlier_library(build):
    if not build._compilers():
        pytest.skip("no C compiler")
    build.library_path().write_bytes(b"from an earlier build")
    for source in build.SOURCES.glob("*.c"):
        source.unlink()
    (build.SOURCES / "broken.c").write_text("this is not C")
    with pytest.raises(build.CompileError, match=r"broken\.c"):
        build.compile_library()
    assert build.library_path().read_bytes() == b"from an earlier build"


def test_no_compiler_at_all(build, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    with pytest.raises(build.CompileError, match="No C compiler was found"):
        build.compile_library()


def test_files_for_each_instruction_set_exist(build):
    for name in build.PER_ISA:
        assert (ROOT / "src/strop/kernels/native" / name).exists(), name
