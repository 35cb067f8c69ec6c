"""Layers with a state roll back as if nothing had been read, at the cost that is stated."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftrank.engine.backends.registry import open_runtime
from draftrank.engine.backends.transformers.runtime import TransformersEagleRuntime
from draftrank.engine.backends.transformers.snapshot_cache import SnapshotCache
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposer import ProposerContext
from draftrank.engine.proposers.candidates import branching_of
from draftrank.engine.proposers.eagle import EagleProposer
from draftrank.engine.proposers.early_exit import EarlyExitDraft
from draftrank.errors import IncompatibleDraftError
from draftrank.models.architecture import Architecture
from examples import examples
from models import own_logits, small_eagle3, small_model
from proposers import ScriptedProposer

SAMPLE = ("deepseek_v4", "falcon_h1", "jamba", "lfm2", "mamba2")
"""Compressed attention, hybrid layers, layers that read singly, convolutions, and nothing but recurrence."""
MODELS = {name: small_model(name) for name in SAMPLE}
RUNTIMES = {name: open_runtime(model, "transformers") for name, model in MODELS.items()}

tokens = st.lists(st.integers(3, 60), min_size=1, max_size=6)
steps = st.lists(st.tuples(tokens, st.integers(0, 7), st.booleans()), min_size=1, max_size=5)


@pytest.mark.parametrize("name", SAMPLE)
@examples(5)
@given(prompt=st.lists(st.integers(3, 60), min_size=1, max_size=20), steps=steps)
def test_what_was_taken_back_was_never_read(name, prompt, steps):
    """Whether one step takes back more than the step before has read, all of it, or nothing."""
    runtime = RUNTIMES[name]
    runtime.reset()
    runtime.reserve(64)
    runtime.forward(prompt, keep=1)
    text = list(prompt)
    for read, back, commits in steps:
        found = runtime.forward(read)
        text += read
        torch.testing.assert_close(found, own_logits(MODELS[name], text)[-len(read) :], atol=2e-4, rtol=1e-3)
        back = min(back, len(read) if commits else len(text) - 1)
        if commits:
            runtime.commit(len(text) - len(read), range(len(read) - back))
        else:
            runtime.rollback(back)
        del text[len(text) - back :]
        assert runtime.length == len(text)
    torch.testing.assert_close(
        runtime.forward([9, 8]), own_logits(MODELS[name], [*text, 9, 8])[-2:], atol=2e-4, rtol=1e-3
    )


@pytest.mark.parametrize("name", ["jamba", "mamba", "zamba", "lfm2"])
def test_states_are_those_of_the_tokens_that_stand(name):
    """Mamba of the first kind begins anew with several tokens in transformers, so that three of these read them one by one."""
    own = small_model(name)
    runtime = open_runtime(copy.deepcopy(own), "transformers")
    assert bool(runtime.fallback) == (name != "lfm2")
    runtime.keep_hidden_states((0, 2))
    shape = Architecture.of(own)

    def states(text):
        with torch.inference_mode():
            return shape.states_of_layers(own, torch.tensor([text]), (0, 2))[0]

    def assert_close(text, count):
        torch.testing.assert_close(runtime.hidden_states((0, 2)), states(text)[-count:], atol=3e-4, rtol=1e-3)

    runtime.forward([5, 9, 11, 4], keep=1)
    assert_close([5, 9, 11, 4], 4)
    runtime.forward([7, 8, 30, 31])
    assert_close([5, 9, 11, 4, 7, 8, 30, 31], 4)
    runtime.commit(4, (0, 1))
    assert_close([5, 9, 11, 4, 7, 8], 2)
    runtime.forward([40, 41])
    assert_close([5, 9, 11, 4, 7, 8, 40, 41], 2)


@pytest.mark.parametrize("name", ["jamba", "mamba", "zamba", "lfm2"])
def test_a_head_that_reads_such_a_target_leaves_its_output_as_it_is(name):
    runtime = open_runtime(small_model(name), "transformers")
    request = Request((5, 9, 11, 4), 20)
    output = autoregressive(runtime, request).token_ids
    found = speculative(runtime, EagleProposer(runtime, TransformersEagleRuntime(small_eagle3())), request, 3)
    assert found.token_ids == output
    assert found.draft_forwards


class Forwards:
    """How many tokens each forward of a model reads."""

    def __init__(self, model):
        self.read = []
        model.register_forward_pre_hook(self._begun, with_kwargs=True)

    def _begun(self, _module, _positional, named):
        self.read.append(named["input_ids"].shape[1])


@pytest.mark.parametrize("name", ["lfm2", "mamba2"])
def test_a_step_that_rejects_reads_its_accepted_tokens_again_and_no_other_step_reads_more(name):
    model = small_model(name)
    runtime = open_runtime(model, "transformers")
    forwards = Forwards(model)
    request = Request((5, 9, 11, 4), 13)
    output = autoregressive(runtime, request).token_ids
    assert forwards.read == [4] + [1] * 12
    forwards.read.clear()
    found = speculative(runtime, ScriptedProposer(output, 4, 0.0), request, 3)
    assert found.token_ids == output
    assert forwards.read == [4, 4, 4, 4]
    forwards.read.clear()
    rejected = [max(set(range(3, 9)) - {token}) for token in output]
    found = speculative(runtime, ScriptedProposer(rejected, 4, 0.0), request, 3)
    assert found.token_ids == output
    assert forwards.read[:6] == [4, 4, 1, 4, 1, 4]


def test_a_rollback_behind_the_saved_state_reads_the_whole_text_again():
    model = small_model("lfm2")
    runtime = open_runtime(model, "transformers")
    forwards = Forwards(model)
    runtime.forward([5, 9, 11, 4])
    runtime.forward([7])
    runtime.forward([8])
    runtime.rollback(4)
    runtime.forward([30])
    assert forwards.read == [4, 1, 1, 2, 1]


@pytest.mark.parametrize("name", ["bamba", "jamba", "mamba2"])
def test_such_models_say_that_they_read_no_trees_and_have_no_first_layers(name, tmp_path):
    runtime = open_runtime(small_model(name), "transformers")
    assert isinstance(runtime._cache, SnapshotCache)
    assert not runtime.capabilities.trees
    assert not runtime.capabilities.first_layers
    context = ProposerContext(runtime, None, tmp_path, "fp32", "cpu", branch_above_probability=0.1)
    with pytest.raises(IncompatibleDraftError, match="chains of tokens only with this target"):
        branching_of(context)
    with pytest.raises(IncompatibleDraftError, match="first layers of this target"):
        EarlyExitDraft(kind="early_exit", layers=1).open(context)
