"""What is said of transformers' `generate` is what it did."""

from __future__ import annotations

import random

import pytest

from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine.backends.transformers.generate import GenerateDecoder
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import Request, autoregressive, speculative
from draftrank.engine.proposers.draft_model import ModelProposer
from models import ARCHITECTURES, small_model

K = 3
STOPS = frozenset({2, 5, 7})


def requests(mode=None, **changes):
    for seed in range(6):
        prompt = tuple(random.Random(seed).choices(range(8, 20), k=12))
        yield Request(
            prompt, 24, **{"stop_tokens": STOPS, "mode": mode or DecodingMode(), "seed": seed} | changes
        )


def decoders(target, architecture):
    draft = TransformersRuntime(small_model(architecture, layers=2))
    return {
        "plain": GenerateDecoder(target),
        "assisted": GenerateDecoder(target, draft=draft, num_speculative_tokens=K),
        "lookup": GenerateDecoder(target, num_speculative_tokens=K, max_ngram=2),
    }


def adds_up(decoding, k):
    accepted = sum(i * steps for i, steps in enumerate(decoding.accept_histogram))
    assert len(decoding.token_ids) == 1 + decoding.steps + accepted
    assert sum(decoding.accept_histogram) == decoding.steps
    assert (len(decoding.accept_histogram), len(decoding.offered)) == (k + 1, k)
    reached = [sum(decoding.accept_histogram[i:]) for i in range(k + 1)]
    for i, offered in enumerate(decoding.offered):
        assert reached[i + 1] <= offered <= reached[i]
    assert sum(decoding.offered) <= decoding.proposed
    assert min(decoding.prefill_s, decoding.decode_s, decoding.propose_s, decoding.verify_s) >= 0
    assert decoding.propose_s + decoding.verify_s <= decoding.decode_s


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_outputs_are_the_engines_and_the_counts_add_up(architecture):
    target = TransformersRuntime(small_model(architecture))
    for name, decoder in decoders(target, architecture).items():
        for request in requests():
            ours, theirs = autoregressive(target, request), decoder.decode(request)
            assert (theirs.token_ids, theirs.finish) == (ours.token_ids, ours.finish)
            adds_up(theirs, 0 if name == "plain" else K)
            if name == "plain":
                assert theirs.steps == ours.steps


def test_a_draft_that_is_the_target_has_all_its_tokens_accepted_as_in_the_engine():
    target, twin = TransformersRuntime(small_model("llama")), TransformersRuntime(small_model("llama"))
    decoder = GenerateDecoder(target, draft=twin, num_speculative_tokens=K)
    for request in requests(stop_tokens=frozenset()):
        theirs = decoder.decode(request)
        ours = speculative(target, ModelProposer(twin), request, K)
        # 4 tokens come with the prefill: 3 of them stand for a step; 20 more take 5 full steps.
        assert theirs.accept_histogram == (0, 0, 1, 5)
        assert theirs.draft_forwards == 5 * K
        assert ours.token_ids == theirs.token_ids


def test_sampling_is_seeded_and_adds_up():
    target = TransformersRuntime(small_model("llama"))
    mode = DecodingMode(temperature=0.8, top_p=0.9)
    for name, decoder in decoders(target, "llama").items():
        outputs = set()
        for request in requests(mode):
            first = decoder.decode(request)
            assert decoder.decode(request).token_ids == first.token_ids
            adds_up(first, 0 if name == "plain" else K)
            outputs.add(first.token_ids)
        assert len(outputs) > 1


def test_the_models_own_generation_settings_do_not_count_and_come_back():
    target = TransformersRuntime(small_model("llama"))
    model = target.model
    settings = model.generation_config
    settings.repetition_penalty = 9.0
    settings.do_sample = True
    (request, *_) = requests()
    decoding = GenerateDecoder(target).decode(request)
    assert decoding.token_ids == autoregressive(target, request).token_ids
    assert model.generation_config is settings
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
