"""Trains a draft towards its target: word-level knowledge distillation (Hinton et al. 2015,
arXiv:1503.02531; for drafts: DistillSpec, Zhou et al. 2023, arXiv:2310.08461).

The work is a pure function of the declaration: the order of sequences comes from its seed, layers
stay in evaluation mode (no dropout), and a checkpoint holds all the rest of the state. So a run that
was interrupted ends bit for bit like one that was not, on the same machine with as many threads.

Weights that a sparsifying step set to zero stay zero.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from draftrank.building.steps.distill import Distill
from draftrank.building.text.conversation_row import ANSWER, TEMPLATE
from draftrank.building.text.corpus import Corpus, corpus_key, self_generated_corpus
from draftrank.building.training.head_pair import HeadPair
from draftrank.building.training.hidden_matching import HiddenMatching
from draftrank.building.training.objective import (
    Closeness,
    chunk_positions,
    closeness_in_chunks,
    loss_in_chunks,
)
from draftrank.building.training.on_policy import rewritten
from draftrank.building.training.schedule import (
    evaluation_points,
    learning_rate_factor,
    no_longer_better,
    order,
    seed_of,
    split_sequences,
)
from draftrank.building.training.target_states import target_states
from draftrank.building.training.training_time_test import TrainingTimeTest
from draftrank.catalog.base import sha256_of_json
from draftrank.errors import BuildError
from draftrank.models.architecture import Architecture
from draftrank.models.cache import publish_file
from draftrank.models.eagle import Eagle3Fusion, eagle3_layer
from draftrank.models.forms import FEATURES
from draftrank.models.loading import DTYPES, DtypeName, compute_dtype, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from draftrank.building.working_draft import BuildContext, WorkingDraft

CHECKPOINT_S = 30.0
"""Seconds between checkpoints."""
_FURTHER_WEIGHT = 0.8
"""Weight of each token ahead, relative to the one before it."""
_MEAN_SHARE = 0.05
"""Share of the updates averaged for the first and the last loss of the notes."""


@dataclass(slots=True)
class _State:
    """What a checkpoint holds beside tensors."""

    updates_done: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    kl_before: float = 0.0
    agreement_before: float = 0.0
    evaluations: list[float] = field(default_factory=list)
    """Agreement at each evaluation so far."""
    ended_early: bool = False


def distill(spec: Distill, draft: WorkingDraft, context: BuildContext) -> dict[str, Any]:
    """Trains `draft.model` in place and returns what is worth noting: losses, the agreement of the
    most likely tokens on held-out answers before and after, tokens seen, seconds.

    With the teacher `origin` the ready-made model stands for the target in all of this.

    Weights, gradients and losses are fp32; where `compute_dtype` is bf16, matrices are multiplied in
    bf16 (autocast), and the target runs in bf16.

    Raises:
        BuildError: the corpus is too small to keep sequences aside, or the loss is no longer finite.
    """
    corpus = self_generated_corpus(spec.data, context)
    training, held_out = split_sequences(len(corpus), spec.seed)
    trainer = _Trainer(spec, draft, context, corpus)
    passes = [order(training, spec.seed, number) for number in range(spec.passes)]
    batches = [batch for sequences in passes for batch in torch.split(sequences, spec.batch_sequences)]
    state = trainer.resume()
    if state is None:
        before = trainer.closeness(held_out)
        state = _State(kl_before=before.mean_kl, agreement_before=before.agreement)
    total = sum(len(batch) for batch in batches) * corpus.tokens.shape[1]
    with context.progress.stage("distil", total) as stage:
        stage.advance(state.tokens_seen)
        for seen, note in trainer.train(batches, held_out, state):
            stage.advance(seen, note)
    trainer.settle()
    after = trainer.closeness(held_out)
    further = [trainer.closeness(held_out, step + 1).agreement for step in range(1, spec.ttt_steps)]
    trainer.finish()
    averaged = max(1, round(len(batches) * _MEAN_SHARE))
    return {
        "updates": state.updates_done,
        "tokens_seen": state.tokens_seen,
        "seconds": round(state.seconds, 3),
        "tokens_per_s": round(state.tokens_seen / max(state.seconds, 1e-9), 1),
        "first_loss": _mean(state.losses[:averaged]),
        "last_loss": _mean(state.losses[-averaged:]),
        "held_out_kl_before": state.kl_before,
        "held_out_kl_after": after.mean_kl,
        "held_out_agreement_before": state.agreement_before,
        "held_out_agreement_after": after.agreement,
        "held_out_sequences": len(held_out),
        **({"held_out_agreement_ahead": further} if further else {}),
        "compute_dtype": trainer.dtype,
        **({"evaluations": state.evaluations} if spec.evaluations else {}),
    }


@torch.inference_mode()
def _training_dtype(model: PreTrainedModel, device: str) -> DtypeName:
    """See `compute_dtype`; fp32 where code of the model's family adds tensors of two types under autocast (DBRX)."""
    dtype = compute_dtype(device)
    if dtype != "fp32":
        try:
            with torch.autocast(device, DTYPES[dtype]):
                model(torch.zeros(1, 4, dtype=torch.int64, device=device), use_cache=False)
        except RuntimeError:
            return "fp32"
    return dtype


class _Trainer:
    """The draft, its target, the optimizer and the text."""

    def __init__(self, spec: Distill, draft: WorkingDraft, context: BuildContext, corpus: Corpus) -> None:
        self.spec = spec
        self.corpus = corpus
        # Earlier code wrote checkpoint.pt, with a single optimizer, which this cannot read.
        self.checkpoint: Path = context.scratch / "training.pt"
        self.device = context.device
        self.draft = draft.model.eval()
        self.dtype: DtypeName = _training_dtype(self.draft, context.device)
        self.shape = draft.architecture
        self.target = load_model(context.model_folder, self.dtype, context.device)
        self.target_shape = Architecture.of(self.target)
        self.scaled = _scaled(self.draft)
        self.trained = _unfreeze(self.draft, self.shape, with_head=spec.train_head)
        self.zeros = _zeros_of(draft, self.trained)
        self.heads = HeadPair(
            self.draft, self.target, frozen_in=None if spec.train_head else DTYPES[self.dtype]
        )
        self.fusion: Eagle3Fusion | None = getattr(self.draft, FEATURES, None)
        self.read_layers: tuple[int, ...] = self.fusion.layers if self.fusion is not None else ()
        self.chunk = chunk_positions(int(self.draft.config.vocab_size))
        self.states: Tensor | None = None
        if spec.cache_target_states:
            key = corpus_key(spec.data, context)
            if context.own_vocabulary is not None:
                key = sha256_of_json([key, context.own_vocabulary.model_dump(mode="json")])
            self.states = target_states(self.target, corpus, key, context, self.read_layers)
        self.matching: HiddenMatching | None = None
        if spec.hidden_weight:
            self.matching = HiddenMatching(draft, self.target, self.target_shape)
        of_tokens = [
            *self.shape.embedding(self.draft).parameters(),
            *self.shape.head(self.draft).parameters(),
        ]
        self.optimizers = _optimizers(spec, self.trained.values(), of_tokens)

    def train(self, batches: list[Tensor], held_out: Tensor, state: _State) -> Iterator[tuple[int, str]]:
        """Goes on from `state` and yields the tokens of each update with a remark on the loss."""
        saved = began = time.monotonic()
        seconds_before = state.seconds
        looks = evaluation_points(len(batches), self.spec.evaluations)
        agreement = ""
        for update in range(state.updates_done, len(batches)):
            if state.ended_early:
                break
            loss = self._update(batches[update], update, len(batches))
            seen = len(batches[update]) * self.corpus.tokens.shape[1]
            state.losses.append(loss)
            state.updates_done += 1
            state.tokens_seen += seen
            if state.updates_done in looks:
                state.evaluations.append(self.closeness(held_out).agreement)
                state.ended_early = no_longer_better(state.evaluations, self.spec.stop_after)
                agreement = f", agreement {state.evaluations[-1]:.3f}"
            now = time.monotonic()
            state.seconds = seconds_before + now - began
            if now - saved >= CHECKPOINT_S or state.ended_early or state.updates_done == len(batches):
                self._save(state)
                saved = time.monotonic()
            left = state.seconds / state.updates_done * (len(batches) - state.updates_done)
            rate = state.tokens_seen / max(state.seconds, 1e-9)
            yield seen, f"loss {loss:.3f}{agreement}, {rate:,.0f} tokens/s, {left / 60:.0f} min left"

    @torch.no_grad()
    def closeness(self, indices: Tensor, ahead: int = 1) -> Closeness:
        """Draft and target on the answers of some sequences; of a draft that reads features, on the so-manieth token
        ahead of the target."""
        total = Closeness()
        for batch in torch.split(indices, self.spec.batch_sequences):
            tokens, places = self._text(batch, answers_only=True)
            with self._precision():
                states = self._target_states(batch, tokens)
                features = self._features(states)
                final = self._final(states)
                remembered = self._remembered(ahead)
                for _ in range(ahead - 1):
                    features = shifted(self._states(tokens, features, remembered)[1])
                hidden, _ = self._states(tokens, features, remembered)
                ours = hidden.flatten(0, 1).index_select(0, places)
                theirs = final.flatten(0, 1).index_select(0, places)
                total += closeness_in_chunks(
                    ours, self.heads.ours, theirs, self.heads.all_theirs, self.chunk, self.heads.kept
                )
        return total

    def resume(self) -> _State | None:
        """Takes up the checkpoint of an interrupted run, if there is one."""
        if not self.checkpoint.is_file():
            return None
        found = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(found["parameters"][name])
        for optimizer, content in zip(self.optimizers, found["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        return _State(**found["state"])

    @torch.no_grad()
    def settle(self) -> None:
        """Leaves the weights as they are used, and in them what bf16 can express, if that is asked for."""
        for linear in self.scaled:
            parametrize.remove_parametrizations(linear, "weight")
        if self.spec.round_weights:
            for parameter in self.draft.parameters():
                if parameter.requires_grad:
                    parameter.copy_(parameter.bfloat16())

    def finish(self) -> None:
        """Leaves the model as it came: nothing to train, no gradients."""
        self.draft.requires_grad_(False)
        for parameter in self.trained.values():
            parameter.grad = None

    def _update(self, batch: Tensor, update: int, updates: int) -> float:
        factor = learning_rate_factor(update, updates, self.spec.warmup_fraction)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.spec.learning_rate * factor
            optimizer.zero_grad(set_to_none=True)
        tokens, places = self._text(batch)
        if self._writes_itself(update):
            tokens = self._rewritten(batch, tokens, update)
        places = self._sayable(tokens, places)
        loss, rows = 0.0, tokens.shape[1]
        size = self.spec.micro_batch_sequences or len(batch)
        for first in range(0, len(batch), size):
            part = (places >= first * rows) & (places < (first + size) * rows)
            loss += self._add_gradients(
                batch[first : first + size],
                tokens[first : first + size],
                places[part] - first * rows,
                positions=len(places),
                share=len(batch[first : first + size]) / len(batch),
            )
        if not math.isfinite(loss):
            raise BuildError(
                f"the loss is no longer finite after {update} updates: lower learning_rate or gradient_clip"
            )
        nn.utils.clip_grad_norm_(self.trained.values(), self.spec.gradient_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            for name, zero in self.zeros.items():
                self.trained[name].masked_fill_(zero, 0.0)
        return loss

    def _add_gradients(
        self, batch: Tensor, tokens: Tensor, places: Tensor, *, positions: int, share: float
    ) -> float:
        """One forward for each token ahead, then one backward through all of them; returns this part of the update's loss.

        A head learns to give a state that it can continue from, not only to say the next token: the loss of each token ahead
        reaches every forward before it, through the states and the keys and values that it read.
        """
        matching = self.matching
        weights = [_FURTHER_WEIGHT**step for step in range(self.spec.ttt_steps)]
        remembered = self._remembered(self.spec.ttt_steps)
        ends: list[Tensor] = []
        with self._precision(), matching or nullcontext():
            states = self._target_states(batch, tokens)
            features = self._features(states)
            for _ in weights:
                hidden, own = self._states(tokens, features, remembered)
                ends.append(hidden.flatten(0, 1).index_select(0, places))
                features = shifted(own) if self.fusion is not None else None
            total, found = loss_in_chunks(
                self.spec.objective,
                ends,
                [weight / sum(weights) for weight in weights],
                self.heads.ours,
                self._final(states).flatten(0, 1).index_select(0, places),
                self.heads.theirs,
                self._spoken(tokens.flatten()[places + 1]),
                self.chunk,
                positions,
            )
        gradients: list[Tensor | None] = [*found]
        if matching is not None:
            distance = matching.distance() * (self.spec.hidden_weight * share)
            ends.append(distance)
            gradients.append(None)
            total += float(distance.detach())
        torch.autograd.backward(ends, gradients)
        return total

    def _writes_itself(self, update: int) -> bool:
        """Spreads the updates on the draft's own text evenly."""
        share = self.spec.on_policy_share
        return int((update + 1) * share) > int(update * share)

    def _rewritten(self, batch: Tensor, tokens: Tensor, update: int) -> Tensor:
        answers = (self.corpus.roles[batch] == ANSWER).to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed_of(self.spec.seed, f"own/{update}"))
        with self._precision():
            return rewritten(self.draft, tokens, answers, self.spec.data.answer_temperature, generator)

    def _sayable(self, tokens: Tensor, places: Tensor) -> Tensor:
        """The places whose next token the objective can use."""
        if self.heads.kept is None or self.spec.objective != "cross_entropy":
            return places
        return places[torch.isin(tokens.flatten()[places + 1], self.heads.kept)]

    def _spoken(self, tokens: Tensor) -> Tensor:
        """Tokens as the head numbers them."""
        if self.heads.kept is None or self.spec.objective != "cross_entropy":
            return tokens
        return torch.searchsorted(self.heads.kept, tokens)

    def _text(self, batch: Tensor, *, answers_only: bool = False) -> tuple[Tensor, Tensor]:
        """Token ids [sequences, length], and the flat places whose next token somebody wrote."""
        tokens = self.corpus.tokens[batch].to(self.device, torch.int64)
        roles = self.corpus.roles[batch].to(self.device)
        counted = roles == ANSWER if answers_only else roles != TEMPLATE
        counted[:, 0] = False  # nothing predicts the first token
        return tokens, counted.flatten().nonzero().squeeze(1) - 1

    def _states(
        self, tokens: Tensor, features: Tensor | None, remembered: TrainingTimeTest | None = None
    ) -> tuple[Tensor, Tensor]:
        """Final hidden states, and what a head reads of itself a token further ahead."""
        if self.fusion is None:
            hidden = self.shape.hidden_states(self.draft, tokens, features, remembered)
            return hidden, hidden
        both = self.shape.states_of_layers(self.draft, tokens, (0,), features, remembered)
        own, hidden = both.chunk(2, -1)
        return hidden, own

    def _remembered(self, forwards: int) -> TrainingTimeTest | None:
        """For so many forwards over the same text, each a token further ahead of the target."""
        return TrainingTimeTest() if forwards > 1 else None

    @torch.no_grad()
    def _target_states(self, batch: Tensor, tokens: Tensor) -> Tensor:
        if self.states is not None:
            return self.states[batch].to(self.device)
        return self.target_shape.states_of_layers(self.target, tokens, self.read_layers)

    def _final(self, states: Tensor) -> Tensor:
        """Of the target's states those after its final norm."""
        return states[..., states.shape[-1] - int(self.target.config.hidden_size) :]

    def _features(self, states: Tensor) -> Tensor | None:
        """What the draft reads beside each token: the target's states before it, reduced to one."""
        return None if self.fusion is None else shifted(self.fusion.reduce(states))

    def _precision(self) -> AbstractContextManager[Any]:
        if self.dtype == "fp32":
            return nullcontext()
        return torch.autocast(self.device, DTYPES[self.dtype])

    def _save(self, state: _State) -> None:
        content = {
            "parameters": {name: parameter.detach() for name, parameter in self.trained.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "state": asdict(state),
        }
        publish_file(self.checkpoint, lambda staged: torch.save(content, staged))


class _PerColumn(nn.Module):
    """A matrix that is trained as if every number that it reads had size 1.

    AdamW changes all weights of a matrix at one rate: weights that read large numbers would change the result more.
    """

    size: Tensor

    def __init__(self, size: Tensor) -> None:
        """`size`: of each column's input."""
        super().__init__()
        self.register_buffer("size", size, persistent=False)

    def forward(self, trained: Tensor) -> Tensor:
        """The matrix as it is used."""
        return trained / self.size

    def right_inverse(self, used: Tensor) -> Tensor:
        """The matrix as it is trained."""
        return used * self.size


def _scaled(model: PreTrainedModel) -> list[nn.Linear]:
    """Matrices of a model that are trained by columns: those that read the normed state of an EAGLE-3 head which is as large
    as the state itself."""
    layer = eagle3_layer(model)
    if layer is None or not layer.norm_before_residual:
        return []
    norm = layer.hidden_norm.weight.detach()
    size = torch.cat([torch.ones_like(norm), norm.square().mean().sqrt().expand_as(norm)])
    found = [getattr(layer.self_attn, f"{name}_proj") for name in "qkv"]
    for linear in found:
        parametrize.register_parametrization(linear, "weight", _PerColumn(size))
    return found


def shifted(states: Tensor) -> Tensor:
    """Each position's state moved to the next one; nothing stands before the first. [batch, length, hidden]"""
    return torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _unfreeze(model: PreTrainedModel, shape: Architecture, *, with_head: bool) -> dict[str, nn.Parameter]:
    """Lets a model train, its embedding and head only where asked for; returns what trains, by name."""
    model.requires_grad_(True)
    if not with_head:
        shape.embedding(model).requires_grad_(False)
        shape.head(model).requires_grad_(False)
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _optimizers(
    spec: Distill, trained: Iterable[nn.Parameter], of_tokens: Iterable[nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """What changes the weights. Muon, where it is declared, has the matrices between hidden states; AdamW has the rest, among
    it matrices `of_tokens`, whose rows are seldom needed together. Norms and biases do not decay."""
    apart = {id(one) for one in of_tokens}
    mine: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for one in trained:
        if one.ndim < 2:
            vectors.append(one)
        elif spec.optimizer == "muon" and one.ndim == 2 and id(one) not in apart:
            mine.append(one)
        else:
            matrices.append(one)
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": spec.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=spec.learning_rate,
            betas=(0.9, 0.95),
        )
    ]
    if mine:
        found.append(
            torch.optim.Muon(
                mine, lr=spec.learning_rate, weight_decay=spec.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return found


def _zeros_of(draft: WorkingDraft, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Where weights of a sparse draft are zero, by parameter."""
    if "zeros" not in draft.notes:
        return {}
    ends = ".weight", ".parametrizations.weight.original"  # the latter of a matrix that is trained by columns
    named = {name + end for name in draft.architecture.linear_layers(draft.model) for end in ends}
    masks = {name: weight == 0 for name, weight in trained.items() if name in named}
    return {name: mask for name, mask in masks.items() if bool(mask.any())}
