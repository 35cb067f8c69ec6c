"""The torch runtime: what it computes equals the plain model, whatever was read and rolled back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrank.engine.backends.transformers.attention import LIBRARY, NAME
from draftrank.engine.backends.transformers.runtime import TransformersRuntime, padded_rows
from examples import examples
from models import ARCHITECTURES, own_logits, small_model
from runtimes import check_rollbacks

MODELS = {name: small_model(name) for name in ARCHITECTURES}
tokens = st.lists(st.integers(3, 60), min_size=1, max_size=12)


@pytest.mark.parametrize("name", ARCHITECTURES)
@examples(25)
@given(moves=st.lists(st.tuples(tokens, st.integers(0, 12)), min_size=1, max_size=6))
def test_rolled_back_caches_equal_fresh_ones(name, moves):
    check_rollbacks(TransformersRuntime(MODELS[name]), MODELS[name], moves)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keep_returns_the_last_rows(name):
    runtime = TransformersRuntime(MODELS[name])
    sequence = list(range(3, 20))
    kept = runtime.forward(sequence, keep=2)
    torch.testing.assert_close(kept, own_logits(MODELS[name], sequence)[-2:], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("new", [1, 2, 3, 5, 97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_attention_is_the_librarys(name, new, dtype):
    """Sliding windows, single tokens, verifications and prefills; bf16 within its rounding."""
    model = small_model(name, window=256).to(dtype)
    held = list(range(3, 50))
    fed = [3 + place % 50 for place in range(new)]
    found = []
    for attention in (NAME, LIBRARY):
        runtime = TransformersRuntime(model)
        model.set_attn_implementation(attention)
        runtime.forward(held)
        found.append(runtime.forward(fed).float())
    torch.testing.assert_close(
        found[0],
        found[1],
        **({"atol": 1e-4, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.2, "rtol": 0.1}),
    )


def test_padded_feeds_leave_no_trace():
    """Also where the window has no room for the padding."""
    model = small_model("gpt2", window=24)
    runtime = TransformersRuntime(model)
    runtime._pads = True
    held = list(range(3, 20))
    runtime.forward(held)
    for fed in ([5, 6], [7, 8, 9], [9, 9]):
        logits = runtime.forward(fed)
        held += fed
        with torch.inference_mode():
            expected = model(torch.tensor([held]), use_cache=False).logits[0, -len(fed) :]
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=1e-4)
        assert runtime.length == len(held)


def test_rows_are_padded_where_the_product_is_slow():
    assert [padded_rows(count) for count in range(1, 13)] == [1, 4, 4, 4, 5, 6, 8, 8, 9, 10, 12, 12]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reserving_keeps_what_is_held(name):
    runtime = TransformersRuntime(MODELS[name])
    runtime.reserve(4)
    runtime.forward([5, 6, 7])
    runtime.reserve(64)
    logits = runtime.forward([8, 9])
    torch.testing.assert_close(logits, own_logits(MODELS[name], [5, 6, 7, 8, 9])[-2:], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reset_forgets_everything(name):
    runtime = TransformersRuntime(MODELS[name])
    runtime.forward([5, 6, 7])
    runtime.reset()
    assert runtime.length == 0
    torch.testing.assert_close(
        runtime.forward([9, 4]), own_logits(MODELS[name], [9, 4]), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_first_layers_share_cache_with_the_full_model(name):
    runtime = TransformersRuntime(MODELS[name])
    view = runtime.first_layers(2)
    runtime.forward([5, 6, 7])
    assert view.length == 3
    alone = TransformersRuntime(MODELS[name]).first_layers(2)
    expected = alone.forward([5, 6, 7, 8, 9])[-2:]
    torch.testing.assert_close(view.forward([8, 9]), expected, atol=2e-4, rtol=1e-4)
    view.rollback(2)
    torch.testing.assert_close(
        runtime.forward([8, 9]), own_logits(MODELS[name], [5, 6, 7, 8, 9])[-2:], atol=2e-4, rtol=1e-4
    )


def test_the_whole_model_is_no_early_exit():
    with pytest.raises(Exception, match="use at most 2"):
        TransformersRuntime(MODELS["llama"]).first_layers(3)
