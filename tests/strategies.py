"""Hypothesis strategies for valid session results, for every room that handles records.

Structure, numbers and texts are drawn by Hypothesis, so that failures shrink; which trial gets which of
the drawn numbers is decided by a drawn seed, so that a session of a hundred trials stays cheap to draw.
"""

from __future__ import annotations

import random
from typing import get_args

from hypothesis import strategies as st

from draftrank.catalog.backend import RecordedBackend
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.catalog.plain_text import fault_of_name
from draftrank.measure.evidence import (
    Conditions,
    Divergence,
    Environment,
    Judgement,
    Numerics,
    ProposalCheck,
    Quality,
    SamplingCheck,
)
from draftrank.measure.records import (
    BASELINE,
    CONTROL,
    Arm,
    DraftBuild,
    ForwardLatency,
    Machine,
    Session,
    SessionResult,
    SessionTask,
    Trial,
)

MAX_WHOLE = 2**53 - 1
MAX_NEW_TOKENS = 64
MAX_STEPS = 9
MAX_K = 5

shas = st.integers(0, 2**256 - 1).map(lambda number: f"{number:064x}")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = texts.filter(lambda name: fault_of_name(name) is None)
identifiers = st.from_regex(r"[a-z0-9](?:[a-z0-9.-]{0,10}[a-z0-9])?", fullmatch=True).filter(
    lambda name: name not in (BASELINE, CONTROL)
)
wholes = st.integers(0, MAX_WHOLE)
backends = st.sampled_from(get_args(RecordedBackend))
dtypes = st.sampled_from(["fp32", "bf16", "fp16", "int8", "gguf", "q4_k_m"])
seconds = st.floats(0.0, 1e6, allow_nan=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-MAX_WHOLE, MAX_WHOLE) | st.floats(-1e9, 1e9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)

machines = st.builds(
    Machine,
    machine_class=identifiers,
    cpu=texts,
    cores=wholes,
    threads=wholes,
    memory_bytes=wholes,
    gpu=st.none() | texts,
    platform=texts,
    python=texts,
    packages=st.dictionaries(texts, texts, max_size=3),
)
modes = st.just(DecodingMode()) | st.builds(
    DecodingMode,
    temperature=st.just(0.0) | st.floats(0.001, 10.0),
    top_k=st.none() | st.integers(1, 100),
    top_p=st.none() | st.floats(0.01, 1.0),
    seed=wholes,
)
draft_builds = st.builds(
    DraftBuild,
    recipe=st.dictionaries(texts, json_values, max_size=3),
    recipe_sha256=shas,
    weights_sha256=st.none() | shas,
    techniques=st.lists(texts, max_size=3).map(tuple),
    trained=st.booleans(),
    parameters=wholes,
    bytes_on_disk=wholes,
    build_s=seconds,
)
latencies = st.builds(
    ForwardLatency,
    part=st.sampled_from(["target", "draft"]),
    tokens=st.integers(1, 100),
    context=wholes,
    median_s=seconds,
    samples=st.integers(1, 100),
)
shares = st.floats(0.0, 1.0)
conditions = st.builds(
    Conditions,
    others_cpus=st.none() | seconds,
    steal=st.none() | shares,
    memory_stalled=st.none() | shares,
    gpu_throttled_by=st.lists(texts, max_size=2).map(tuple),
)
judgements = st.builds(
    Judgement,
    divergence=st.none()
    | st.builds(
        Divergence,
        index=wholes,
        gap=st.none() | seconds,
        baseline_gap=st.none() | seconds,
        before=st.none() | texts,
        text=st.none() | texts,
        baseline_text=st.none() | texts,
    ),
    quality=st.none()
    | st.builds(
        Quality,
        log_likelihood=st.floats(-99, 0),
        rouge_l=st.none() | shares,
        correct=st.none() | st.booleans(),
    ),
    proposal=st.none() | st.builds(ProposalCheck, tokens=wholes, gap=st.none() | seconds, rounding=seconds),
)
numerics = st.builds(
    Numerics,
    positions=wholes,
    forward_tokens=st.lists(st.integers(2, 9), max_size=2).map(tuple),
    quantiles=st.lists(seconds, max_size=3).map(tuple),
    gap_quantiles=st.lists(seconds, max_size=3).map(tuple),
)
sampling_checks = st.builds(
    SamplingCheck, task=texts, prompt=texts, draws=wholes, bins=wholes, statistic=seconds, p_value=shares
)
environments = st.builds(
    Environment,
    affinity=st.lists(wholes, max_size=3).map(tuple),
    thread_variables=st.dictionaries(texts, texts, max_size=2),
    suite_commit=st.none() | texts,
    suite_dirty=st.none() | st.booleans(),
    job_url=st.none() | st.just("https://ci.example.org/jobs/1"),
)
moments = st.datetimes().map(lambda moment: f"{moment.replace(microsecond=0).isoformat()}Z")


@st.composite
def session_tasks(draw: st.DrawFn) -> SessionTask:
    prompts = draw(st.lists(names, min_size=1, max_size=2, unique=True))
    return SessionTask(
        task=draw(identifiers),
        task_sha256=draw(shas),
        prompts=tuple(prompts),
        turns=tuple(draw(st.integers(1, 2)) for _ in prompts),
        prompts_sha256=draw(shas),
        max_new_tokens=draw(st.integers(MAX_NEW_TOKENS, 10_000)),
    )


@st.composite
def sessions(draw: st.DrawFn, min_drafts: int = 1, max_drafts: int = 3) -> Session:
    """A session's header: baseline, mostly its control, then drafts sorted by id."""
    names = draw(st.lists(identifiers, min_size=min_drafts, max_size=max_drafts, unique=True))
    arms = [Arm(id=BASELINE, kind="baseline", num_speculative_tokens=0)]
    if draw(st.booleans()) or draw(st.booleans()):
        arms.append(Arm(id=CONTROL, kind="control", num_speculative_tokens=0))
    arms += [
        Arm(
            id=name,
            kind="draft",
            num_speculative_tokens=draw(st.integers(1, MAX_K)),
            draft=draw(st.none() | draft_builds),
            peak_memory_bytes=draw(st.none() | wholes),
            latencies=tuple(draw(st.lists(latencies, max_size=2))),
            failure=draw(st.none() | texts),
            lossy=draw(st.booleans()),
            sampling=draw(st.none() | sampling_checks),
            backend=draw(st.none() | backends),
            dtype=draw(st.none() | dtypes),
        )
        for name in sorted(names)
    ]
    created_at = draw(moments)
    return Session(
        id=f"{created_at[:10]}-{draw(st.integers(0, 2**40)):010x}",
        plan_sha256=draw(shas),
        created_at=created_at,
        finished_at=draw(st.none() | moments),
        suite=draw(identifiers),
        suite_sha256=draw(shas),
        draftrank_version=draw(texts),
        target=draw(identifiers),
        target_sha256=draw(shas),
        target_weights_sha256=draw(shas),
        target_parameters=draw(wholes),
        dtype=draw(dtypes),
        device=draw(st.sampled_from(["cpu", "cuda"])),
        backend=draw(backends),
        mode=draw(modes),
        seed=draw(wholes),
        repeats=draw(st.integers(1, 2)),
        machine=draw(machines),
        tasks=tuple(draw(st.lists(session_tasks(), min_size=1, max_size=2, unique_by=lambda t: t.task))),
        arms=tuple(arms),
        warnings=tuple(draw(st.lists(texts, max_size=2, unique=True))),
        skipped_tasks=tuple(draw(st.lists(identifiers, max_size=2, unique=True))),
        target_ci=draw(st.none() | st.floats(0.001, 1.0)),
        budget_s=draw(st.none() | seconds),
        stopped_by=draw(st.sampled_from([None, "repeats", "target_ci", "spread", "budget"])),
        numerics=draw(st.none() | numerics),
        environment=draw(st.none() | environments),
    )


@st.composite
def session_results(
    draw: st.DrawFn, min_drafts: int = 1, max_drafts: int = 3, *, complete: bool = False
) -> SessionResult:
    """A session with trials; `complete`: every arm decoded every prompt turn in every repeat."""
    session = draw(sessions(min_drafts, max_drafts))
    seed = draw(st.integers(0, 2**32))
    times = draw(st.lists(seconds, min_size=1, max_size=6))
    evidence = draw(
        st.lists(st.tuples(st.none() | conditions, st.none() | judgements), min_size=1, max_size=3)
    )
    tokens = draw(st.lists(wholes, min_size=1, max_size=6))
    share = 1.0 if complete else draw(st.sampled_from([0.0, 0.5, 1.0]))
    chance = random.Random(seed)
    trials = [
        trial(session, arm, task.task, prompt, turn, repeat, position, chance, times, tokens, evidence)
        for task in session.tasks
        for prompt, turns in zip(task.prompts, task.turns, strict=True)
        for turn in range(turns)
        for repeat in range(session.repeats)
        for position, arm in enumerate(chance.sample(session.arms, len(session.arms)))
        if chance.random() < share
    ]
    return SessionResult(session=session, trials=tuple(trials))


def trial(
    session: Session,
    arm: Arm,
    task: str,
    prompt: str,
    turn: int,
    repeat: int,
    position: int,
    chance: random.Random,
    times: list[float],
    tokens: list[int],
    evidence: list[tuple[Conditions | None, Judgement | None]],
) -> Trial:
    """A trial that adds up: its counts come from single steps, as in the engine.

    Each step proposes some tokens and accepts a part of them; values are picked from `times` (seconds)
    and `tokens` (ids).
    """
    k = arm.num_speculative_tokens
    steps = []
    for _ in range(chance.randint(0, MAX_STEPS)):
        proposed = chance.randint(0, k)
        steps.append((proposed, chance.randint(0, proposed)))
    emitted = 1 + sum(accepted + 1 for _, accepted in steps)
    decode_s, propose_s, verify_s = (chance.choice(times) if steps else 0.0 for _ in range(3))
    known = chance.choice(evidence)
    return Trial(
        arm=arm.id,
        task=task,
        prompt=prompt,
        turn=turn,
        repeat=repeat,
        position=position,
        process=chance.randint(0, 2),
        started_at=session.created_at,
        prompt_tokens=chance.randint(1, 2000),
        token_ids=tuple(chance.choice(tokens) for _ in range(emitted)),
        finish=chance.choice(("stop", "length")),
        steps=len(steps),
        accept_histogram=tuple(sum(accepted == n for _, accepted in steps) for n in range(k + 1)),
        offered=tuple(sum(p > n and accepted >= n for p, accepted in steps) for n in range(k)),
        proposal_sizes=chance.choice(
            (None, tuple(sum(proposed == n for proposed, _ in steps) for n in range(k + 1)))
        ),
        proposed=sum(p for p, _ in steps),
        draft_forwards=sum(p for p, _ in steps),
        prefill_s=chance.choice(times),
        decode_s=decode_s,
        propose_s=propose_s,
        verify_s=verify_s,
        attempt=(len(prompt) + turn) % 2,  # the same for all arms: an attempt is made by all
        conditions=known[0],
        judgement=known[1],
    )
