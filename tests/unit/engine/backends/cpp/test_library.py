"""The kernels are compiled once, anew where anything they depend on changed, and what is missing is said."""

from __future__ import annotations

import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrank.engine.backends.cpp import library
from draftrank.engine.backends.cpp.decoder import MAX_TOKENS
from draftrank.errors import InvalidInputError
from examples import examples


def write_compiler(folder, script):
    """One that tells its version, and does as it is told."""
    folder.mkdir()
    file = folder / "g++"
    file.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{script}\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def compiled():
    """The kernels as the other tests have them."""
    return library.library()._name


@pytest.fixture
def uncompiled(monkeypatch, tmp_path, compiled):  # noqa: ARG001
    """An empty cache, and nothing loaded."""
    monkeypatch.setenv("DRAFTRANK_KERNELS", str(tmp_path / "kernels"))
    library.library.cache_clear()
    yield tmp_path / "kernels"
    library.library.cache_clear()


def test_it_is_compiled_once(uncompiled, monkeypatch, compiled):
    """By a compiler that copies what the real one has made, and is as fast as that."""
    write_compiler(uncompiled.parent / "bin", f'while [ "$1" != -o ]; do shift; done; cp {compiled} "$2"')
    monkeypatch.setenv("PATH", f"{uncompiled.parent}/bin:/usr/bin:/bin")
    library.library()
    (made,) = uncompiled.iterdir()
    before = made.stat().st_mtime_ns
    library.library.cache_clear()
    library.library()
    assert [file.stat().st_mtime_ns for file in uncompiled.iterdir()] == [before]
    monkeypatch.setattr(library, "_processor", lambda: b"another")
    library.library.cache_clear()
    library.library()
    assert len(list(uncompiled.iterdir())) == 2


def test_without_a_compiler_the_way_out_is_told(uncompiled, monkeypatch):
    monkeypatch.setenv("PATH", str(uncompiled))
    with pytest.raises(InvalidInputError, match=r"no C\+\+ compiler is here.*use --backend transformers"):
        library.library()


def test_what_the_compiler_says_is_told(uncompiled, monkeypatch, tmp_path):
    write_compiler(tmp_path / "bin", 'echo "no room left" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(InvalidInputError, match="no room left"):
        library.library()
    assert list(uncompiled.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(uncompiled):
    uncompiled.write_text("a file")
    with pytest.raises(InvalidInputError, match=r"cannot be written to .*kernels.*DRAFTRANK_KERNELS"):
        library.library()


@examples(60)
@given(
    outputs=st.integers(1, 70),
    inputs=st.integers(1, 70),
    count=st.integers(1, MAX_TOKENS + 9),
    bf16=st.booleans(),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_torch(outputs, inputs, count, bf16, seed):
    torch.manual_seed(seed)
    weight = torch.randn(outputs, inputs)
    vectors = torch.randn(count, inputs)
    if bf16:
        weight, vectors = weight.bfloat16(), vectors.bfloat16()
    found = library.Weights(weight).times(vectors)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, vectors.float() @ weight.float().T, atol=1e-4, rtol=1e-4)
