"""A draft that reads the target's states is trained to do what it does when it proposes."""

from __future__ import annotations

import pytest
import torch

from draftrank.building.training.distillation import shifted
from draftrank.building.training.training_time_test import TrainingTimeTest, visible
from draftrank.engine.backends.transformers.runtime import TransformersEagleRuntime
from draftrank.models.architecture import Architecture
from models import small_eagle3

LENGTH = 24


@pytest.fixture
def reader():
    return small_eagle3(seed=4)


def own_states(reader, tokens, features, remembered=None):
    """What the head reads of itself: what its layer gives, before the norm."""
    shape = Architecture.of(reader)
    return shape.states_of_layers(reader, tokens, (0,), features, remembered).chunk(2, -1)[0]


def test_each_forward_of_training_is_a_step_of_decoding(reader):
    """Position p+n of the forward n tokens ahead holds what the head makes of n own tokens behind position p."""
    torch.manual_seed(0)
    tokens = torch.randint(3, 60, (2, LENGTH))
    features = shifted(torch.randn(2, LENGTH, 32))
    remembered, trained, read = TrainingTimeTest(), [], features
    with torch.no_grad():
        for _ in range(4):
            trained.append(own_states(reader, tokens, read, remembered))
            read = shifted(trained[-1])
        torch.testing.assert_close(trained[0], own_states(reader, tokens, features))
    runtime = TransformersEagleRuntime(reader)
    for row in range(len(tokens)):
        for held in range(1, LENGTH - 3):
            runtime.reset()
            runtime.offer(features[row, :held])
            runtime.forward(tokens[row, :held].tolist(), keep=1)
            for ahead, states in enumerate(trained):
                torch.testing.assert_close(
                    runtime._own_states()[-1], states[row, held - 1 + ahead], atol=1e-4, rtol=1e-4
                )
                runtime.forward(tokens[row, held + ahead : held + ahead + 1].tolist())


def test_the_loss_of_a_token_ahead_reaches_every_forward_before_it(reader):
    """Through the state that was read and through keys and values: the gradient is that of the whole chain."""
    reader = reader.double()
    tokens = torch.randint(3, 60, (1, 8), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    first, way = (torch.randn(1, 8, 32, dtype=torch.float64, generator=generator) for _ in range(2))
    wanted = torch.randn(1, 8, 32, dtype=torch.float64, generator=generator)

    def loss(read):
        remembered = TrainingTimeTest()
        for _ in range(3):
            own = own_states(reader, tokens, read, remembered)
            read = shifted(own)
        return (own * wanted).sum()

    first.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(first), first)
    with torch.no_grad():
        slope = (loss(first + 1e-3 * way) - loss(first - 1e-3 * way)) / 2e-3
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-2, atol=1e-3)


def test_every_position_is_seen_once():
    """Of each position before it, and of itself, a token sees one of the keys that were made of it."""
    for ahead in range(4):
        seen = visible(6, ahead, torch.device("cpu")).view(6, ahead + 1, 6)
        expected = torch.ones(6, 6).tril()
        # positions before the first that can be so far ahead have nothing to see there
        assert torch.equal(seen.sum(1)[ahead:], expected.long()[ahead:])
        assert seen[torch.arange(ahead, 6), ahead, torch.arange(ahead, 6)].all()
