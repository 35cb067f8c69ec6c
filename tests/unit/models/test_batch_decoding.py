"""Texts that are written side by side, token by token, are those of the model's forward over the whole of them."""

from __future__ import annotations

import pytest
import torch

from draftrank.models.batch_decoding import BatchDecoder
from families import NOT_SUPPORTED
from models import EVERY_FAMILY, small_model

SAMPLE = {
    "llama",
    "gemma3",
    "mixtral",
    "deepseek_v2",
    "bloom",
    "falcon-alibi",
    "gpt_neo",
    "mamba",
    "lfm2",
    "qwen3_next",
    "qwen4_exp_text",  # looks up positions text by text
}
OTHERWISE = {*NOT_SUPPORTED, "zamba2"}
"""Those that no engine runs: Zamba2 computes a single token otherwise than several."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SAMPLE else pytest.mark.nightly)
        for name in (*EVERY_FAMILY, "qwen4_exp_text")
        if name not in OTHERWISE
    ],
)
@torch.inference_mode()
def test_every_family_writes_what_its_own_forward_says(name):
    """Longer than every window, so that windows slide."""
    model = small_model(name)
    texts = torch.randint(3, 61, (3, 30), generator=torch.Generator().manual_seed(1))
    decoder = BatchDecoder(model, 30)
    rows = [decoder.next_logits(texts[:, :9])]
    rows += [decoder.next_logits(texts[:, place : place + 1]) for place in range(9, 30)]
    expected = model(texts, use_cache=False).logits[:, 8:]
    torch.testing.assert_close(torch.stack(rows, 1), expected, atol=2e-3, rtol=1e-3)
