"""What a session is to measure, and what makes two of them the same."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftrank.catalog.backend import Backend, Device
from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.prompts import TaskPrompts
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.sources.base import file_sha256
from draftrank.catalog.target import Target
from draftrank.catalog.task import Suite
from draftrank.measure.evidence import utc_now
from draftrank.measure.machine.environment import read_environment
from draftrank.measure.records import BASELINE, CONTROL, Arm, DraftBuild, Machine, Session, SessionTask
from draftrank.measure.statistics.stopping import DEFAULT_TARGET_CI
from draftrank.models.prompting import render_turns
from draftrank.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from draftrank.models.target_folder import TargetFolder

MEASURING_VERSION = 5
"""Raised when the engine or the session changes what trials mean, so that old ones are not reused."""


@dataclass(frozen=True, slots=True)
class DraftArm:
    """A draft that takes part, with what its build gave."""

    recipe: Recipe
    build: DraftBuild | None
    """None when the build failed."""
    folder: Path | None
    """The built draft; None for drafts without weights of their own."""
    failure: str | None = None
    """Why the build failed, or why the draft may not be measured."""
    backend: Backend | None = None
    """What runs its model; None: what runs the target."""
    dtype: str | None = None
    """What its model's weights are loaded in, unless its build says otherwise; None: as the target's."""


@dataclass(frozen=True)  # without slots: it keeps what it has rendered
class SessionPlan:
    """Everything that decides what a session measures."""

    target: Target
    target_folder: TargetFolder
    suite: Suite
    tasks: tuple[TaskPrompts, ...]
    drafts: tuple[DraftArm, ...]
    backend: Backend = "transformers"
    dtype: str = "fp32"
    """`Dtype`, or of a GGUF file its own quantization."""
    device: Device = "cpu"
    mode: DecodingMode = DecodingMode()
    seed: int = 0
    target_ci: float | None = DEFAULT_TARGET_CI
    """See `Session.target_ci`."""
    budget_s: float | None = None
    """See `Session.budget_s`."""
    warnings: tuple[str, ...] = ()
    skipped_tasks: tuple[str, ...] = ()
    references: tuple[Arm, ...] = ()
    """Arms of other implementations; see `measure.sessions.references`."""
    watch: bool = True
    """Whether to watch the machine, and to decode anew what it disturbed."""
    target_file: Path | None = None
    """The target's GGUF file, where llama.cpp decodes it."""
    workspace: Path | None = None
    """Where the declarations lie, for its git state."""

    @cached_property
    def rendered(self) -> tuple[Rendered, ...]:
        """Every task's prompts as the target reads them.

        Raises:
            InvalidInputError: the chat template cannot render one.
        """
        from draftrank.models.loading import load_tokenizer

        tokenizer = load_tokenizer(self.target_folder.path)
        return tuple(render(tokenizer, self.target, entry) for entry in self.tasks)

    @property
    def session_tasks(self) -> tuple[SessionTask, ...]:
        """The records of the tasks."""
        return tuple(
            session_task(entry, rendered) for entry, rendered in zip(self.tasks, self.rendered, strict=True)
        )

    def tokens_needed(self) -> Iterator[tuple[str, int]]:
        """Of every prompt, as task/prompt: tokens of all its turns, with every answer as long as it may get."""
        for entry, rendered in zip(self.tasks, self.rendered, strict=True):
            for prompt, ids in zip(entry.prompts, rendered, strict=True):
                yield f"{entry.task.id}/{prompt.id}", len(ids) + len(prompt.turns) * entry.max_new_tokens

    @property
    def short_windows(self) -> tuple[str, ...]:
        """A warning for every draft whose context window a prompt can outgrow."""
        found = []
        for arm in self.drafts:
            window = arm.build.context_window if arm.build else None
            beyond = [one for one in self.tokens_needed() if window is not None and one[1] > window]
            if beyond:
                place, most = max(beyond, key=lambda one: one[1])
                found.append(
                    f"{arm.recipe.id} reads at most {window} tokens, which {len(beyond)} of "
                    f"{sum(len(entry.prompts) for entry in self.tasks)} prompts can outgrow (most: {place}, up to "
                    f"{most}): behind them it proposes nothing"
                )
        return tuple(found)

    def measurement(self) -> dict[str, Any]:
        """What a record that is made now tells of this plan: the fields of `Measurement`, but for the machine."""
        now = utc_now()
        return {
            "id": f"{now[:10]}-{uuid.uuid4().hex[:12]}",
            "created_at": now,
            "draftrank_version": __version__,
            "target": self.target.id,
            "target_sha256": self.target.content_sha256(),
            "target_weights_sha256": self.target_folder.weights_sha256,
            "dtype": self.dtype,
            "device": self.device,
            "suite": self.suite.id,
            "suite_sha256": self.suite.content_sha256(),
            "tasks": self.session_tasks,
            "skipped_tasks": self.skipped_tasks,
        }

    def sha256(self, machine: Machine) -> str:
        """Hash of the plan on a machine: equal hashes measure the same thing."""
        return sha256_of_json(
            {
                "version": [MEASURING_VERSION, __version__],
                "machine": machine.model_dump(mode="json"),
                "target": [self.target.content_sha256(), self.target_folder.weights_sha256],
                "target_files": _small_files_sha256(self.target_folder.path),
                "suite": self.suite.content_sha256(),
                "tasks": [task.model_dump(mode="json") for task in self.session_tasks],
                "drafts": [
                    [
                        arm.recipe.id,
                        arm.recipe.content_sha256(),
                        arm.build.weights_sha256 if arm.build else "build failed",
                        [arm.backend, arm.dtype],
                    ]
                    for arm in self.drafts
                ],
                "backend": self.backend,
                "dtype": self.dtype,
                "device": self.device,
                "mode": self.mode.model_dump(mode="json"),
                "seed": self.seed,
                "stopping": [self.target_ci, self.budget_s],
                "references": [arm.model_dump(mode="json") for arm in self.references],
            }
        )


Rendered = tuple[tuple[int, ...], ...]
"""Of each prompt of a task: token ids of its whole conversation, with empty answers."""


def render(tokenizer: PreTrainedTokenizerBase, target: Target, entry: TaskPrompts) -> Rendered:
    """A task's prompts as a target reads them; raises as `render_turns`."""
    return tuple(
        tuple(
            render_turns(
                tokenizer,
                target.prompt_format,
                prompt.turns,
                ((),) * (len(prompt.turns) - 1),
                entry.task.system_prompt,
            )
        )
        for prompt in entry.prompts
    )


def session_task(entry: TaskPrompts, rendered: Rendered | None = None) -> SessionTask:
    """The record of a task as one session uses it; without token ids: what its declaration alone decides."""
    return SessionTask(
        task=entry.task.id,
        task_sha256=entry.task.content_sha256(),
        prompts=tuple(prompt.id for prompt in entry.prompts),
        turns=tuple(len(prompt.turns) for prompt in entry.prompts),
        prompts_sha256=sha256_of_json([[prompt.id, prompt.turns] for prompt in entry.prompts]),
        max_new_tokens=entry.max_new_tokens,
        rendered_sha256=None if rendered is None else sha256_of_json(rendered),
    )


def new_session(plan: SessionPlan, plan_sha256: str, machine: Machine) -> Session:
    """The header of a session that measures this plan, with nothing measured yet."""
    autoregressive = [
        Arm(id=BASELINE, kind="baseline", num_speculative_tokens=0, backend=plan.backend, dtype=plan.dtype),
        Arm(id=CONTROL, kind="control", num_speculative_tokens=0, backend=plan.backend, dtype=plan.dtype),
    ]
    drafts = [
        Arm(
            id=arm.recipe.id,
            kind="draft",
            num_speculative_tokens=arm.recipe.speculate.num_speculative_tokens,
            draft=arm.build,
            failure=arm.failure,
            lossy=arm.recipe.speculate.typical_acceptance is not None,
            backend=arm.backend or plan.backend,
            dtype=arm.dtype or plan.dtype,
        )
        for arm in plan.drafts
    ]
    as_generated = {"backend": "transformers", "dtype": plan.dtype}
    return Session(
        **plan.measurement(),
        plan_sha256=plan_sha256,
        finished_at=None,
        target_parameters=plan.target_folder.parameters,
        backend=plan.backend,
        mode=plan.mode,
        seed=plan.seed,
        repeats=plan.suite.repeats,
        machine=machine,
        arms=(*autoregressive, *drafts, *(arm.model_copy(update=as_generated) for arm in plan.references)),
        warnings=(*plan.warnings, *plan.short_windows),
        target_ci=plan.target_ci,
        budget_s=plan.budget_s,
        environment=read_environment(plan.device, plan.workspace),
    )


def trial_seed(mode: DecodingMode, cell: Sequence[str | int]) -> int:
    """Seed of one trial, equal for all arms of a block: 63 bits from the mode's seed and the cell."""
    digest = hashlib.sha256(repr((mode.seed, *cell)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _small_files_sha256(folder: Path) -> str:
    """Hash of a target's configuration, tokenizer and template: all its files beside the weights."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".txt", ".model"))
    return sha256_of_json([[path.name, file_sha256(path)] for path in files])
