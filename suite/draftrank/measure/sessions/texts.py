"""The texts of a session as its target reads them: prompts, warm-up and the contexts of side measurements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from draftrank.engine.loop import ContextOverflowError
from draftrank.errors import InvalidInputError
from draftrank.measure.fidelity.numerics import MIN_TOKENS
from draftrank.measure.records import BASELINE, Trial
from draftrank.measure.sessions.plan import SessionPlan
from draftrank.measure.sessions.schedule import Block
from draftrank.models.prompting import render_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WARM_UP_TOKENS = 12
WARM_UP_CONTEXT = 256
SAMPLING_CONTEXT = 32
LATENCY_CONTEXT = 1024
"""Longest context in which forwards are timed."""


class SessionTexts:
    """Token ids of all that a session lets its models read."""

    def __init__(
        self,
        plan: SessionPlan,
        tokenizer: PreTrainedTokenizerBase,
        context_window: int,
        stop_tokens: frozenset[int],
    ) -> None:
        self._plan = plan
        self._tokenizer = tokenizer
        self._context_window = context_window
        self.stop_tokens = stop_tokens
        """Ids that end an output."""

    def render(
        self, task_index: int, prompt_index: int, turn: int, answers: Sequence[Sequence[int]]
    ) -> tuple[int, ...]:
        """Token ids of a prompt turn in the context of the turns before."""
        entry = self._plan.tasks[task_index]
        turns = entry.prompts[prompt_index].turns[: turn + 1]
        rendered = render_turns(
            self._tokenizer,
            self._plan.target.prompt_format,
            turns,
            answers,
            entry.task.system_prompt,
            self.stop_tokens,
        )
        return tuple(rendered)

    def reference_answer(self, block: Block) -> str | None:
        """The exact answer to a conversation's last turn, where the task has one."""
        prompt = self._plan.tasks[block.task].prompts[block.prompt]
        return prompt.reference if block.turn == len(prompt.turns) - 1 else None

    def text(self, token_ids: Sequence[int]) -> str:
        """An output as text."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def rounding_texts(self, trials: Iterable[Trial]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Prompts with the baseline's outputs on which rounding is measured."""
        outputs = {
            (trial.task, trial.prompt): trial.token_ids
            for trial in trials
            if (trial.arm, *trial.key[3:]) == (BASELINE, 0, 0, 0)
        }
        texts: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for prompt_index in range(max(len(entry.prompts) for entry in self._plan.tasks)):
            for task_index, entry in enumerate(self._plan.tasks):
                if prompt_index < len(entry.prompts):
                    output = outputs[entry.task.id, entry.prompts[prompt_index].id]
                    texts.append((self.render(task_index, prompt_index, 0, ()), output))
            if sum(len(output) - 1 for _, output in texts) >= MIN_TOKENS:
                break  # after whole rounds, so that every task has the same say
        return texts

    def check_room(self) -> None:
        """Refuses the whole session before the run when some prompt can outgrow the window.

        Raises:
            ContextOverflowError: with the first such prompt of each task.
        """
        problems: dict[str, str] = {}
        for place, needed in self._plan.tokens_needed():
            if needed > self._context_window:
                problems.setdefault(place.partition("/")[0], f"{place} needs {needed}")
        if problems:
            raise ContextOverflowError(
                f"the target holds {self._context_window} tokens, but {'; '.join(problems.values())}: "
                "lower max_new_tokens or leave these tasks out"
            )

    def check_ids(self, rows: int) -> None:
        """Refuses the whole session before the run when a prompt has tokens that the target's embedding, of so many rows, does
        not.

        Raises:
            InvalidInputError: its tokenizer is that of another model.
        """
        for entry, rendered in zip(self._plan.tasks, self._plan.rendered, strict=True):
            for prompt, ids in zip(entry.prompts, rendered, strict=True):
                if ids and max(ids) >= rows:
                    raise InvalidInputError.single(
                        f"its tokenizer gives token {max(ids)} for {entry.task.id}/{prompt.id}, and the model has {rows} rows",
                        file=str(self._plan.target_folder.path / "config.json"),
                        field="vocab_size",
                        fix="put the tokenizer and the weights of one model together",
                    )

    @property
    def warm_up_tokens(self) -> int:
        """Length of an output that warms up."""
        return max(1, min(WARM_UP_TOKENS, self._context_window // 4))

    def warm_up_prompt(self, num_speculative_tokens: int, draft_window: int | None = None) -> tuple[int, ...]:
        """A prompt of the session's own, cut to a usual length that leaves room for every forward."""
        window = min(self._context_window, draft_window or self._context_window)
        room = window - self.warm_up_tokens - num_speculative_tokens - 1
        longest = max((self.render(index, 0, 0, ()) for index in range(len(self._plan.tasks))), key=len)
        return longest[: max(1, min(WARM_UP_CONTEXT, room))]

    def latency_contexts(
        self, num_speculative_tokens: int, draft_window: int | None
    ) -> tuple[tuple[int, ...], ...]:
        """A short and a long context, as trials have in the middle of their output; one if they are alike."""
        window = min(self._context_window, draft_window or self._context_window)
        room = window - num_speculative_tokens - 1
        middles = {}
        for index, entry in enumerate(self._plan.tasks):
            prompt = self.render(index, 0, 0, ())
            middles[len(prompt) + entry.max_new_tokens // 2] = prompt
        short, long = (max(1, min(end, room, LATENCY_CONTEXT)) for end in (min(middles), max(middles)))
        text = middles[max(middles)] * 2  # what it says does not matter
        return tuple(text[:length] for length in ((short, long) if long > 1.5 * short else (long,)))

    def sampling_context(self) -> tuple[int, ...]:
        """Where samples are tested: the end of a prompt is enough, and every draw starts by feeding it."""
        return self.render(0, 0, 0, ())[-SAMPLING_CONTEXT:]
