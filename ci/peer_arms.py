"""The arms of `bench_peers.py`: this engine, transformers, servers and flashspec, each plain and with drafts, opened on the same
weights. Servers without load are paused."""

from __future__ import annotations

import argparse
import gc
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from bench_engine import flashspec_decoder
from draftrank import Workspace
from draftrank.board.formats import UNKNOWN
from draftrank.catalog.programs import NAMES, Program
from draftrank.catalog.recipe import Recipe
from draftrank.engine.backends.base import Runtime
from draftrank.engine.backends.registry import load_runtime, open_runtime
from draftrank.engine.backends.transformers.generate import GenerateDecoder
from draftrank.engine.loop import Decoding, Request, autoregressive, speculative
from draftrank.engine.proposers.ngram import NgramDraft
from draftrank.errors import BuildError, DraftrankError, MissingDataError
from draftrank.jobs.session import RunRequest, plan_run
from draftrank.measure.machine.fingerprint import package_version, read_machine
from draftrank.measure.sessions.bench import Bench
from draftrank.models.gguf_format import quantization_of
from draftrank.models.loading import load_model
from draftrank.models.target_folder import gguf_file
from draftrank.progress import Progress
from draftrank.serving.base import Completion, CompletionRequest, Engine, Served
from draftrank.serving.engines import find_engine
from draftrank.serving.http import ServerError
from draftrank.serving.process import free_port, running
from draftrank.serving.sending import in_turn
from draftrank.version import __version__
from draftrank.workflows.speculation import export_draft, gguf_of_target, speculation_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PLAIN, AGAIN = "plain", "plain, again"
NAME = "draftrank"
CONTEXT = 2048
MAX_FAILURES = 3
"""Failed requests after which an arm is out."""
WAKING = 16
"""Tokens of the prompt of the request that wakes an arm."""
Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """What an arm made of one prompt."""

    token_ids: Ids
    prefill_s: float
    """Seconds to the first token."""
    decode_s: float
    """Seconds from the first token to the last."""
    steps: int | None = None
    """Verifications after the prefill; None where the engine does not tell."""

    @classmethod
    def of(cls, found: Decoding | Completion) -> Output:
        """Of this engine, of `generate` or of a server."""
        return cls(found.token_ids, found.prefill_s, found.decode_s, found.steps)

    def rated(self, part: str) -> tuple[int, float]:
        """Tokens and their seconds: of the `whole`, or `decoding` behind the first token."""
        whole = part == "whole"
        return len(self.token_ids) - (not whole), self.decode_s + whole * self.prefill_s


Decode = Callable[[Ids, int], Output]
"""Continues token ids by at most so many tokens."""


@dataclass(slots=True)
class Arm:
    """One way of drafting in one engine, and what it gave."""

    engine: str
    draft: str
    decode: Decode | None = None
    failures: list[str] = field(default_factory=list)
    outputs: dict[tuple[int, int], Output] = field(default_factory=dict)
    """By prompt and round."""
    first_s: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds to the first token, by tokens of the prompt."""

    @property
    def id(self) -> str:
        """Engine and draft."""
        return f"{self.engine}, {self.draft}"

    def attempt(self, ids: Ids, tokens: int) -> Output | None:
        """Decodes; None when it fails, or has failed too often."""
        if self.decode is None or len(self.failures) >= MAX_FAILURES:
            return None
        gc.collect(1)
        gc.disable()
        try:
            return self.decode(ids, tokens)
        except Exception as error:  # noqa: BLE001
            self.failures.append(str(error) or type(error).__name__)
            return None
        finally:
            gc.enable()


class Peers:
    """Opens arms; what several of them need is made once."""

    def __init__(
        self, workspace: Workspace, options: argparse.Namespace, stack: ExitStack, progress: Progress
    ) -> None:
        """Builds this engine's drafts and chooses the prompts; servers will end with `stack`."""
        self._workspace, self._options, self._stack, self._progress = workspace, options, stack, progress
        drafts, dtype = tuple(options.drafts), options.dtype
        request = RunRequest(
            options.target, drafts, options.suite, backend=options.backend, dtype=dtype, device="cpu"
        )
        self._plan = plan_run(workspace, request, progress)
        self._bench, self._dtype = Bench.load(self._plan, progress), dtype
        self._folder, self._stops = self._plan.target_folder.path, self._bench.texts.stop_tokens
        self._threads = read_machine("cpu").threads
        self._scratch = workspace.cache / "scratch" / "peers"
        shutil.rmtree(self._scratch, ignore_errors=True)
        stack.callback(shutil.rmtree, self._scratch, ignore_errors=True)
        self._exports: dict[tuple[str, Program], Path | None] = {}
        self.prompts = list(islice(self._prompts(), options.prompts))

    def _prompts(self) -> Iterator[Ids]:
        """First turns, one of each task in turn, whose plain output here does not end before the limit."""
        tasks, tokens, decode = self._plan.tasks, self._options.tokens, self._own(None)
        for place in range(max(len(entry.prompts) for entry in tasks)):
            for index, entry in enumerate(tasks):
                if place < len(entry.prompts):
                    ids = self._bench.texts.render(index, place, 0, ())
                    if len(ids) + tokens <= CONTEXT and len(decode(ids, tokens).token_ids) == tokens:
                        yield ids

    def arms(self) -> Iterator[Arm]:
        """All of them, opened and warmed up; those that failed have no `decode`."""
        asked = self._options
        own = f"draftrank {__version__} {self._plan.backend}"
        yield self._opened(own, None, self._own)
        yield replace(self._opened(own, None, self._own), draft=AGAIN)
        for draft in asked.drafts:
            yield self._opened(own, draft, self._own)
        models = [draft for draft in asked.theirs if "EAGLE-3 head" not in self._recipe(draft).draft.traits]
        for draft in (None, *models):
            yield self._opened(f"transformers {package_version('transformers')}", draft, self._generate)
        yield from self._servers("llama.cpp")
        yield from self._servers("vllm")
        for draft in models:
            told = f"flashspec {package_version('flashspec') or ''}".strip()
            yield self._opened(told, draft, self._flashspec)

    def _opened(self, engine: str, draft: str | None, opening: Callable[[str | None], Decode]) -> Arm:
        arm = Arm(engine, PLAIN if draft is None else f"{draft}, k={self._k(draft)}")
        with self._progress.stage(f"open {arm.id}"):
            try:
                decode = opening(draft)
                decode(self.prompts[0], self._options.tokens)  # the first forwards are slow
                arm.decode = decode
            except Exception as error:  # noqa: BLE001
                arm.failures.append(str(error) or type(error).__name__)
        return arm

    def _recipe(self, draft: str) -> Recipe:
        return self._workspace.recipe(self._plan.target.id, draft)

    def _k(self, draft: str) -> int:
        return self._recipe(draft).speculate.num_speculative_tokens

    def _exported(self, draft: str, program: Program) -> Path | None:
        """The draft in a program's form; None for one without weights."""
        if (draft, program) not in self._exports:
            to = self._scratch / program / draft
            found = export_draft(self._workspace, self._recipe(draft), program, to, self._progress)
            self._exports[draft, program] = found
        return self._exports[draft, program]

    # -- engines in this process -----------------------------------------------------------------

    def _own(self, draft: str | None) -> Decode:
        target = self._bench.target
        if draft is None:
            return self._here(lambda request: autoregressive(target, request))
        (arm,) = [arm for arm in self._plan.drafts if arm.recipe.id == draft]
        if arm.failure is not None:
            raise BuildError(arm.failure)
        proposer, k = self._bench.propose(arm), self._k(draft)
        return self._here(lambda request: speculative(target, proposer, request, k))

    def _generate(self, draft: str | None) -> Decode:
        kind, model = self._recipe(draft).draft if draft else None, self._assistant(draft)
        decoder = GenerateDecoder(
            self._library,
            draft=open_runtime(model, "transformers") if model else None,
            num_speculative_tokens=self._k(draft) if draft else 0,
            max_ngram=kind.max_ngram if isinstance(kind, NgramDraft) else None,
        )
        return self._here(decoder.decode)

    @cached_property
    def _library(self) -> Runtime:
        return load_runtime(self._folder, self._dtype, "cpu", "transformers")

    def _assistant(self, draft: str | None) -> PreTrainedModel | None:
        folder = self._exported(draft, "transformers") if draft else None
        return load_model(folder, self._dtype, "cpu", full_precision=True) if folder else None

    def _here(self, decode: Callable[[Request], Decoding]) -> Decode:
        def woken(ids: Ids, tokens: int) -> Output:
            decode(Request(ids[:WAKING], 2, self._stops))
            return Output.of(decode(Request(ids, tokens, self._stops)))

        return woken

    def _flashspec(self, draft: str | None) -> Decode:
        if package_version("flashspec") is None:
            raise MissingDataError("flashspec is not here: run `pip install flashspec`")
        assert draft is not None
        target, model = load_model(self._folder, self._dtype, "cpu"), self._assistant(draft)
        decoder = flashspec_decoder(target, model, self._folder, self._k(draft), tuple(self._stops))
        moments: list[float] = []
        target.register_forward_hook(lambda *_: moments.append(perf_counter()))

        def decode(ids: Ids, tokens: int) -> Output:
            decoder(ids[:WAKING], 2)
            moments[:] = [perf_counter()]
            found = decoder(ids, tokens)
            began, first = moments[:2]  # its first forward reads the prompt alone
            return Output(found, first - began, perf_counter() - first)

        return decode

    # -- servers ---------------------------------------------------------------------------------

    def _servers(self, name: Program) -> Iterator[Arm]:
        """Servers of an engine: of the target in the dtype, and for llama.cpp of the target's own GGUF file before."""
        try:
            engine = find_engine(name, self._workspace.root)
            version = engine.version()
            own = [quantization_of(self._own_file)] if name == "llama.cpp" else []
        except DraftrankError as error:
            yield Arm(NAMES[name], UNKNOWN, failures=[str(error)])
            return
        for form in (*own, self._dtype):
            for draft in (None, *self._options.theirs):
                opening = partial(self._served, engine, name, form in own)
                yield self._opened(f"{NAMES[name]} {version} {form}", draft, opening)

    def _served(self, engine: Engine, name: Program, as_is: bool, draft: str | None) -> Decode:
        speculation, model, dtype = None, self._folder, self._dtype
        if draft is not None:
            speculation = speculation_of(self._recipe(draft), self._exported(draft, name), self._k(draft))
            engine.check(speculation)
        if as_is:
            model, dtype = self._own_file, "fp16"  # of its KV cache, as llama-server chooses by itself
        elif name == "llama.cpp":
            model = self._new_file
        served = Served(model, NAME, free_port(), CONTEXT, dtype, self._threads, kv_cache_gib=1)
        launch = engine.launch(served, speculation)
        log = self._workspace.state / "logs" / "peers" / f"{name}-{dtype}-{draft or PLAIN}.log"
        log.unlink(missing_ok=True)
        starting = running(launch.command, served.port, log, name=NAME, environment=launch.environment)
        server = self._stack.enter_context(starting)

        def decode(ids: Ids, tokens: int) -> Output:
            server.resume()
            try:
                asked = [(ids[:WAKING], 2), (ids, tokens)]
                requests = [CompletionRequest(*one, self._stops) for one in asked]
                return Output.of(in_turn(engine, server.client, requests)[-1])
            except ServerError as error:
                raise server.ended(str(error)) from error
            finally:
                server.pause()

        return decode

    @cached_property
    def _own_file(self) -> Path:
        return gguf_file(self._plan.target, self._workspace.fetch_context(self._progress))

    @cached_property
    def _new_file(self) -> Path:
        target, to = self._plan.target, self._scratch / "target"
        return gguf_of_target(self._workspace, target, self._folder, self._dtype, to, self._progress)
