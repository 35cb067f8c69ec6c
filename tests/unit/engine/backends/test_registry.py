"""Backends by name: for the engine a new one is a file of its own and an entry beside the others."""

from __future__ import annotations

from draftrank.engine.backends import registry
from draftrank.engine.backends.registry import open_runtime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposers.ngram import NgramProposer
from models import small_model
from runtimes import check_rollbacks

STUB = '''
import torch

from draftrank.engine.backends.base import Capabilities, Runtime


class StubRuntime(Runtime):
    """Reads the whole sequence anew in every forward."""

    name = "stub"

    def __init__(self, model):
        self.model, self._tokens = model, []
        self.vocabulary_size = model.config.vocab_size
        self.context_window = model.config.max_position_embeddings
        self.capabilities = Capabilities()

    @property
    def length(self):
        return len(self._tokens)

    def reserve(self, tokens):
        pass

    @torch.inference_mode()
    def forward(self, tokens, keep=None, tree=None):
        self._tokens += tokens
        return self.model(torch.tensor([self._tokens]), use_cache=False).logits[0, -(keep or len(tokens)) :]

    def rollback(self, count):
        del self._tokens[len(self._tokens) - count :]

    def reset(self):
        self._tokens = []
'''


def test_a_new_backend_is_one_file_and_one_line(tmp_path, monkeypatch):
    (tmp_path / "stub_backend.py").write_text(STUB)
    monkeypatch.syspath_prepend(tmp_path)
    entry = registry._Entry("stub_backend:StubRuntime", "stub_backend:StubRuntime")
    monkeypatch.setitem(registry._BACKENDS, "stub", entry)
    model = small_model("llama")
    stub = open_runtime(model, "stub")
    check_rollbacks(stub, model, [([5, 6, 7], 1), ([8], 0), ([9, 9, 4], 4), ([3], 0)])
    request = Request((5, 6, 7, 5, 6), 12, frozenset())
    expected = autoregressive(open_runtime(model, "transformers"), request).token_ids
    assert autoregressive(stub, request).token_ids == expected
    assert speculative(stub, NgramProposer(1, 2), request, 3).token_ids == expected
