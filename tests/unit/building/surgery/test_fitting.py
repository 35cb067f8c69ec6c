"""What a family cannot have is refused before anything is built, with the reason and what would work."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from draftrank.building.surgery.fitting import (
    require_alike,
    require_called_head,
    require_channels,
    require_depth,
    require_heads,
    require_hidden,
    require_independent_heads,
)
from draftrank.errors import BuildError
from draftrank.models.architecture import Architecture
from models import small_model


def draft_of(name):
    model = small_model(name)
    return SimpleNamespace(model=model, architecture=Architecture.of(model))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("llama", "intermediate_size"),
        ("opt", "ffn_dim"),
        ("gpt2", "n_inner"),
        ("phi3", "intermediate_size"),
        ("gpt_bigcode", "n_inner"),
        ("falcon", "ffn_hidden_size"),
        ("modernbert-decoder", "intermediate_size"),
    ],
)
def test_the_size_of_the_feed_forward_network_is_found_in_the_configuration(name, field):
    draft = draft_of(name)
    assert require_channels(draft.architecture, draft.model) == field


@pytest.mark.parametrize(
    ("require", "name", "reason"),
    [
        (require_channels, "mixtral", "mixtures of experts, .* router: use drop_layers"),
        (require_channels, "mamba2", "no feed-forward network: use drop_layers"),
        (require_channels, "bloom", "derives the size of its feed-forward network"),
        (require_heads, "phi3", "by one matrix"),
        (require_heads, "deepseek_v3", r"latent vector \(MLA\)"),
        (require_heads, "lfm2", "not attention over a KV cache"),
        (require_heads, "gpt_oss", "more than queries, keys and values of each head"),
        (require_heads, "gpt_neo", "derives the size of a head"),
        (require_heads, "modernbert-decoder", "derives the size of a head"),
        (require_channels, "bitnet", "norm their channels"),
        (require_heads, "helium", "size of its attention from the hidden size"),
        (require_hidden, "jais2", "centres its norms"),
        (require_hidden, "falcon_h1", "matrices beside those of attention and feed-forward network"),
    ],
)
def test_widths_that_a_family_cannot_have_are_refused(require, name, reason):
    draft = draft_of(name)
    with pytest.raises(BuildError, match=reason):
        require(draft.architecture, draft.model)


def test_heads_that_read_one_another_are_refused():
    for name in ("llama", "gemma3", "qwen3"):
        draft = draft_of(name)
        require_independent_heads(draft.architecture, draft.model)
    draft = draft_of("diffllama")
    require_heads(draft.architecture, draft.model)
    with pytest.raises(BuildError, match=r"heads of diffllama read one another's values.*: use prune_ffn"):
        require_independent_heads(draft.architecture, draft.model)


@pytest.mark.parametrize("keep", [2, (0, 2)])
def test_parts_that_are_made_for_all_layers_are_known_before_a_cut(keep):
    with pytest.raises(BuildError, match="other parts of this gemma4_text model are made for all"):
        require_depth(draft_of("gemma4_text"), keep)


def test_layers_of_different_kinds_share_no_weights():
    require_alike(draft_of("llama"))
    with pytest.raises(BuildError, match="layers of lfm2 are of different kinds"):
        require_alike(draft_of("lfm2"))


def test_layers_that_depend_on_their_index_are_refused_before_they_are_moved():
    require_depth(draft_of("deepseek_v3"), 2)
    require_depth(draft_of("llama"), [0, 2, 7])  # what is not there is for the step to say
    draft = draft_of("minimax")
    with pytest.raises(BuildError, match="derives what a layer computes from its index"):
        require_depth(draft, 2)
    assert len(draft.architecture.layers(draft.model)) == 3


def test_a_hybrid_keeps_a_layer_that_counts_tokens():
    require_depth(draft_of("lfm2"), (0, 2))
    require_depth(draft_of("lfm2"), 2)  # which ones is measured later
    require_depth(draft_of("mamba2"), (0, 1))  # the model counts by itself
    with pytest.raises(BuildError, match=r"none is among the layers 0, 1: keep one of 2$"):
        require_depth(draft_of("lfm2"), (0, 1))
    draft = draft_of("lfm2")
    with pytest.raises(BuildError, match=r"keep one of 2$"):
        draft.architecture.keep_layers(draft.model, (1,))


def test_a_head_whose_weight_the_model_reads_stays_one_matrix():
    require_called_head(draft_of("llama"))
    with pytest.raises(BuildError, match="the code of mamba2 reads the weight of its head"):
        require_called_head(draft_of("mamba2"))
