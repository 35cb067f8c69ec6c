"""Products with the blocks of GGUF files: exactly the numbers of the package `gguf`, the same bits for any division of
vectors, and the sums of an independent product within what rounding in fp32 explains."""

from __future__ import annotations

import pytest
import torch
from gguf import GGML_QUANT_SIZES
from hypothesis import given
from hypothesis import strategies as st

from block_models import KINDS, numbers_of, random_blocks
from draftrank.engine.backends.cpp import library
from draftrank.engine.backends.cpp.decoder import MAX_TOKENS
from examples import examples

kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
FLAGS = {
    "as this machine": None,
    "AVX-512": "-march=x86-64-v4",
    "AVX2": "-march=x86-64-v3",
    "none": "-march=x86-64",
}
"""Processors whose kernels this one can run too."""


def weights(kind, outputs, blocks, seed=0):
    """Packed, and as they are in fp32 [outputs, inputs]."""
    stored = random_blocks(kind, outputs, blocks * GGML_QUANT_SIZES[kind][0], seed)
    return library.Weights(stored, blocks=kind), numbers_of(stored, kind)


@kinds
@pytest.mark.parametrize("outputs", [1, 31, 32, 75])
def test_every_number_is_the_files(kind, outputs):
    """To the last bit: a vector with a single one reads a column."""
    packed, expected = weights(kind, outputs, 45 if GGML_QUANT_SIZES[kind][0] == 1 else 2)
    assert torch.equal(packed.times(torch.eye(expected.shape[1])), expected.T)


@kinds
@examples(25)
@given(
    outputs=st.integers(1, 70),
    blocks=st.integers(1, 5),
    count=st.integers(1, MAX_TOKENS + 9),
    seed=st.integers(0, 99),
)
def test_products_are_those_of_the_dequantized_matrix(kind, outputs, blocks, count, seed):
    """Vectors that bf16 has are not rounded. A sum of n products is then n roundings in fp32 off, of the sizes of what is added;
    a minimum is as large as the numbers it is added to, so that is at most four times the largest weight each."""
    packed, matrix = weights(kind, outputs, blocks, seed)
    vectors = (
        torch.randn(count, matrix.shape[1], generator=torch.Generator().manual_seed(seed)).bfloat16().float()
    )
    exact = vectors.double() @ matrix.double().T
    largest = matrix.abs().amax(-1).double()
    allowed = 2**-24 * (matrix.shape[1] + 8) * 4 * vectors.abs().double().sum(-1, keepdim=True) * largest
    assert ((packed.times(vectors) - exact).abs() <= allowed).all()


@kinds
@examples(15)
@given(
    outputs=st.integers(1, 70), blocks=st.integers(1, 5), count=st.integers(2, MAX_TOKENS + 9), data=st.data()
)
def test_a_vector_has_the_same_bits_beside_any_others(kind, outputs, blocks, count, data):
    packed, matrix = weights(kind, outputs, blocks)
    vectors = torch.randn(count, matrix.shape[1], generator=torch.Generator().manual_seed(count))
    together = packed.times(vectors)
    begin = data.draw(st.integers(0, count - 1))
    end = data.draw(st.integers(begin + 1, count))
    assert torch.equal(packed.times(vectors[begin:end]), together[begin:end])
