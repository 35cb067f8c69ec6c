"""Text that the target writes itself, for calibration and distillation.

An instruct model given only the opening of a user turn writes a plausible user message and then answers
it (Magpie, Xu et al. 2024, arXiv:2406.08464). So no data licence is in the way, no test prompt is copied,
and the draft sees what it will have to predict. Prompts can also be declared; the answers are the target's
in either case.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftrank.building.text.conversation_row import (
    ANSWER,
    PROMPT,
    TEMPLATE,
    ConversationRow,
    RowRules,
    row_rules,
)
from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.prompts import prompts_of
from draftrank.catalog.self_generated import SelfGenerated
from draftrank.errors import BuildError
from draftrank.models.batch_decoding import BatchDecoder
from draftrank.models.cache import only_process, publish_file, remove_folder, scratch_folder
from draftrank.models.loading import compute_dtype, load_model, load_tokenizer
from draftrank.models.stop_tokens import read_stop_tokens, stop_ids_of_config
from draftrank.models.token_bytes import TokenBytes
from draftrank.models.translation import Translation
from draftrank.progress import Stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from draftrank.building.working_draft import BuildContext

CODE_VERSION = 1
"""Raised when an equal declaration gives another corpus."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows of equal length without padding."""

    tokens: Tensor
    """int32 [sequences, sequence_tokens]: token ids."""
    roles: Tensor
    """uint8 [sequences, sequence_tokens]: `TEMPLATE`, `PROMPT` or `ANSWER` for each token."""

    @classmethod
    def read(cls, path: Path) -> Corpus:
        """A finished corpus from its file."""
        found = load_file(path)
        return cls(found["tokens"], found["roles"])

    def __len__(self) -> int:
        return self.tokens.shape[0]


def self_generated_corpus(spec: SelfGenerated, context: BuildContext) -> Corpus:
    """The corpus a recipe declares: read from the cache, or written by the target, batch by batch.

    Every batch has a seed of its own and finished ones are kept, so an interrupted corpus goes on and
    ends the same. The target computes in `compute_dtype`.

    Raises:
        InvalidInputError: a chat target without a usable chat template, or given prompts that are not what
            is declared.
        MissingDataError: given prompts cannot be had.
        BuildError: the rows are too short for the template.
    """
    key = corpus_key(spec, context)
    final = corpus_path(context.cache, key)
    context.corpora.add(key)
    if not final.is_file():
        with only_process(final, context.progress, "the same corpus"):
            if not final.is_file():
                model = load_model(context.target_folder, compute_dtype(context.device), context.device)
                scratch = scratch_folder(context.cache, f"corpus-{key}")
                parts = _write_batches(spec, model, scratch, context)
                joined = {name: torch.cat([part[name] for part in parts]) for name in ("tokens", "roles")}
                publish_file(final, lambda path: save_file(joined, path))
                remove_folder(scratch)
    return Corpus.read(final) if context.own_vocabulary is None else _retokenized(final, spec, context)


def require_writable(spec: SelfGenerated, context: BuildContext) -> None:
    """Refuses a text that the target cannot write, where it is not written yet; raises as `self_generated_corpus`."""
    if not corpus_path(context.cache, corpus_key(spec, context)).is_file():
        _rules(spec, context)
        if spec.prompts:
            prompts_of(spec.prompts.source, spec.prompts.read, context.fetch, "data.prompts")


def _rules(spec: SelfGenerated, context: BuildContext) -> tuple[PreTrainedTokenizerBase, RowRules]:
    """The target's tokenizer, and what its rows have in common."""
    tokenizer = load_tokenizer(context.target_folder)
    stop_ids = read_stop_tokens(context.target_folder, tokenizer)
    return tokenizer, row_rules(tokenizer, context.target.prompt_format, spec.sequence_tokens, stop_ids)


def _retokenized(written: Path, spec: SelfGenerated, context: BuildContext) -> Corpus:
    """The target's text in the draft's own tokens, from the cache or made now; see `retokenized`."""
    folder = context.model_folder
    key = sha256_of_json([written.stem, CODE_VERSION, _tokenizer_sha256(folder)])
    final = corpus_path(context.cache, key)
    if not final.is_file():
        with (
            only_process(final, context.progress, "the same corpus"),
            context.progress.stage("tokenize the corpus"),
        ):
            target, own = (TokenBytes(load_tokenizer(path)) for path in (context.target_folder, folder))
            found = retokenized(Corpus.read(written), Translation(target, own), spec.sequence_tokens)
            publish_file(final, lambda path: save_file(found, path))
    return Corpus.read(final)


def retokenized(corpus: Corpus, translation: Translation, length: int) -> dict[str, Tensor]:
    """A corpus of the target's in the tokens of a draft with another tokenizer, in rows of `length`.

    Runs of one role are tokenized each by itself, and rows are cut anew from the joined text of all rows; what does not
    fill the last one is left out.

    Returns:
        `tokens` int32 and `roles` uint8, both [sequences, length].

    Raises:
        BuildError: the text does not fill a row.
    """
    tokens: list[int] = []
    roles: list[int] = []
    for row, row_roles in zip(corpus.tokens.tolist(), corpus.roles.tolist(), strict=True):
        translation.begin()
        pairs = zip(row_roles, row, strict=True)
        for place, (role, run) in enumerate(itertools.groupby(pairs, key=lambda pair: pair[0])):
            own = translation.read([token for _, token in run], opens=place == 0)
            tokens += own
            roles += [role] * len(own)
    count = len(tokens) // length
    if not count:
        raise BuildError(
            f"the corpus has {len(tokens)} tokens of the draft's, fewer than a row of {length}: raise data.tokens"
        )
    kept = count * length
    return {
        "tokens": torch.tensor(tokens[:kept], dtype=torch.int32).view(count, length),
        "roles": torch.tensor(roles[:kept], dtype=torch.uint8).view(count, length),
    }


def corpus_path(cache: Path, key: str) -> Path:
    """Where the corpus of this key lies once it is written."""
    return cache / "corpora" / f"{key}.safetensors"


def corpus_key(spec: SelfGenerated, context: BuildContext) -> str:
    """Identity of a corpus: sha256 (hex) over all that decides its text."""
    stop_ids = stop_ids_of_config(context.target_folder)
    return sha256_of_json(
        {
            "code_version": CODE_VERSION,
            "spec": spec.model_dump(mode="json", exclude_none=True),
            "target_weights_sha256": context.target_weights_sha256,
            "prompt_format": context.target.prompt_format,
            "tokenizer_sha256": _tokenizer_sha256(context.target_folder),
            "dtype": compute_dtype(context.device),
            "device": context.device,
            **({"stop_ids_of_config": stop_ids} if stop_ids else {}),
        }
    )


def calibration_tokens(context: BuildContext) -> Tensor:
    """The text that this build's steps are calibrated on: int32 [sequences, sequence_tokens].

    Raises: see `self_generated_corpus`.
    """
    return self_generated_corpus(context.calibration, context).tokens


def _write_batches(
    spec: SelfGenerated, model: PreTrainedModel, scratch: Path, context: BuildContext
) -> list[dict[str, Tensor]]:
    tokenizer, rules = _rules(spec, context)
    sequences = -(-spec.tokens // spec.sequence_tokens)
    asked = given_prompts(spec, tokenizer, rules, context)
    parts = []
    with context.progress.stage("write the corpus", sequences * spec.sequence_tokens) as stage:
        pace = _Pace(stage, sequences * spec.sequence_tokens)
        for batch, first in enumerate(range(0, sequences, spec.batch_sequences)):
            rows = min(spec.batch_sequences, sequences - first)
            path = scratch / f"batch-{batch:06d}.safetensors"
            if path.is_file():
                pace.skip(rows * spec.sequence_tokens)
            else:
                generator = torch.Generator(context.device).manual_seed(_batch_seed(spec.seed, batch))
                given = (
                    [_from(asked, row, sequences) for row in range(first, first + rows)] if asked else None
                )
                written = write_rows(model, rules, rows, spec, generator, pace, given)
                publish_file(path, lambda staged, written=written: save_file(written, staged))  # type: ignore[misc]
            parts.append(load_file(path))
    return parts


def given_prompts(
    spec: SelfGenerated, tokenizer: PreTrainedTokenizerBase, rules: RowRules, context: BuildContext
) -> list[list[int]]:
    """The declared prompts or prompt_prefixes as tokens, in an order drawn from the seed; empty when none are declared.

    Raises: see `self_generated_corpus`.
    """
    if spec.prompts:
        found = prompts_of(spec.prompts.source, spec.prompts.read, context.fetch, "data.prompts")
        said = [prompt.turns[0] for prompt in found]
    else:
        said = list(spec.prompt_prefixes or ())
    if not said:
        return []
    texts = [rules.frame.lead + text.strip() for text in said]
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False).input_ids
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(spec.seed)).tolist()
    return [[token for token in encoded[place] if token not in rules.special_ids] for place in order]


def _from(prompts: list[list[int]], row: int, rows: int) -> Iterator[list[int]]:
    """A row's prompts: every prompt is used before one is used again."""
    return (prompts[place % len(prompts)] for place in itertools.count(row, rows))


@torch.inference_mode()
def write_rows(
    model: PreTrainedModel,
    rules: RowRules,
    count: int,
    spec: SelfGenerated,
    generator: torch.Generator,
    pace: _Pace,
    given: Sequence[Iterator[list[int]]] | None = None,
) -> dict[str, Tensor]:
    """Writes `count` rows side by side, all at the same position, so that nothing is padded.

    Args:
        model: the target.
        rules: what its rows have in common.
        count: how many rows.
        spec: how they are sampled.
        generator: source of the randomness.
        pace: told of every token.
        given: the prompts of each row, or their prompt_prefixes; None: the target makes them up.

    Returns:
        `tokens` int32 and `roles` uint8, both [count, sequence_tokens], on the CPU.
    """
    length, opening = spec.sequence_tokens, rules.frame.opening
    sampler = _Sampler(rules, spec, generator, int(model.config.get_text_config().vocab_size))
    rows = [
        ConversationRow(
            rules, given=given[row] if given else None, continued=spec.prompt_prefixes is not None
        )
        for row in range(count)
    ]
    tokens = torch.zeros(count, length, dtype=torch.int64)
    roles = torch.full((count, length), TEMPLATE, dtype=torch.uint8)
    tokens[:, : len(opening)] = torch.tensor(opening)
    decoder = BatchDecoder(model, length)
    done = 0
    for position in range(len(opening), length):
        logits = decoder.next_logits(tokens[:, done:position].to(model.device))
        sampled = sampler.choose(logits, rows)
        placed = torch.tensor([row.push(token) for row, token in zip(rows, sampled, strict=True)])
        tokens[:, position] = placed[:, 0]
        roles[:, position] = placed[:, 1].to(torch.uint8)
        pace.advance(count * (position - done))
        done = position
    pace.advance(count * (length - done))
    return {"tokens": tokens.to(torch.int32), "roles": roles}


class _Sampler:
    """Chooses the next token of every row that is not under force."""

    def __init__(
        self, rules: RowRules, spec: SelfGenerated, generator: torch.Generator, vocabulary: int
    ) -> None:
        self._spec = spec
        self._generator = generator
        self._in_prompt = _additive_mask(rules.banned_in_prompt, vocabulary, generator.device)
        self._at_start = _additive_mask(rules.banned_at_start, vocabulary, generator.device)

    def choose(self, logits: Tensor, rows: Sequence[ConversationRow]) -> list[int]:
        """One token per row from logits [rows, vocabulary]; 0 for rows under force."""
        chosen = [0] * len(rows)
        free = [index for index, row in enumerate(rows) if not row.forced]
        prompts = [index for index in free if rows[index].role == PROMPT]
        answers = [index for index in free if rows[index].role == ANSWER]
        if prompts:
            masked = logits[prompts].float() + self._in_prompt
            starts = [place for place, index in enumerate(prompts) if not rows[index].written]
            masked[starts] += self._at_start
            self._put(chosen, prompts, self._draw(masked / self._spec.prompt_temperature))
        if answers:
            scores, temperature = logits[answers], self._spec.answer_temperature
            greedy = temperature == 0.0
            self._put(
                chosen, answers, scores.argmax(-1) if greedy else self._draw(scores.float() / temperature)
            )
        return chosen

    def _draw(self, scores: Tensor) -> Tensor:
        """Samples by inverting the cumulative distribution: one random number per row."""
        cumulative = torch.softmax(scores, -1).cumsum(-1)
        share = torch.rand(len(scores), 1, generator=self._generator, device=scores.device)
        found = torch.searchsorted(cumulative, share * cumulative[:, -1:], right=True)
        return found.clamp_(max=scores.shape[-1] - 1).squeeze(1)

    @staticmethod
    def _put(chosen: list[int], places: list[int], tokens: Tensor) -> None:
        for place, token in zip(places, tokens.tolist(), strict=True):
            chosen[place] = token


class _Pace:
    """Reports tokens done, their rate and the time left."""

    def __init__(self, stage: Stage, total: int) -> None:
        self._stage = stage
        self._left = total
        self._done = 0
        self._began = time.monotonic()

    def skip(self, tokens: int) -> None:
        """Tokens that were there already."""
        self._left -= tokens
        self._stage.advance(tokens)

    def advance(self, tokens: int) -> None:
        """Tokens written now."""
        self._left -= tokens
        self._done += tokens
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        self._stage.advance(tokens, f"{rate:,.0f} tokens/s, {self._left / rate / 60:.0f} min left")


def _additive_mask(banned: frozenset[int], vocabulary: int, device: torch.device) -> Tensor:
    mask = torch.zeros(vocabulary, device=device)
    mask[[token for token in sorted(banned) if token < vocabulary]] = float("-inf")
    return mask


def _batch_seed(seed: int, batch: int) -> int:
    digest = hashlib.sha256(f"corpus/{seed}/{batch}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def _tokenizer_sha256(folder: Path) -> str:
    """The template and the tokens decide the text as much as the weights do."""
    files = sorted(
        path
        for pattern in ("tokenizer*", "chat_template*", "generation_config.json", "special_tokens_map.json")
        for path in folder.glob(pattern)
    )
    return sha256_of_json([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files])
