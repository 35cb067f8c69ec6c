"""Measurements that go wrong on purpose: each must be found out, and none may be ranked.

Every fault is put into the real component of a real session on a small random target. Time is counted
in forwards instead of read from a clock, so that an honest session is always quiet, is ranked, and each
fault stands alone.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from draftrank import Store, Workspace, run, summarise, verify
from draftrank.catalog.decoding_mode import DecodingMode
from draftrank.engine import loop, stamps
from draftrank.engine.backends import registry
from draftrank.engine.backends.cpp.runtime import CppRuntime
from draftrank.engine.backends.transformers.runtime import TransformersRuntime
from draftrank.engine.loop import Decoding
from draftrank.engine.proposers.draft_model import ModelDraft, ModelProposer
from draftrank.engine.proposers.ngram import NgramProposer
from draftrank.engine.verification import Verdict
from draftrank.errors import UnsupportedModelError
from draftrank.jobs.session import build
from draftrank.measure.cost import latency
from draftrank.measure.evidence import Conditions
from draftrank.measure.fidelity.stale_proposals import stale_steps
from draftrank.measure.gates.verdict import judge
from draftrank.measure.machine.conditions import Watch
from draftrank.measure.sessions import bench, plan, session
from draftrank.store.bundle import publish
from forging import forge
from tiny_workspace import write_tiny_workspace
from workspaces import plain_request, write_prompts

at_night = pytest.mark.nightly
"""What shares its fault and its law with a case that runs by day."""
LAYER_S = 0.01
MAX_NEW_TOKENS = 48
SAMPLING = DecodingMode(temperature=0.8, top_p=0.9)


class Clock:
    """A stopwatch and a time of day that move only when a model runs."""

    def __init__(self) -> None:
        self.stopwatch = 0.0
        self.wall = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
        self.rate = 1.0
        """How fast the stopwatch goes; the time of day always goes right."""

    def pass_by(self, seconds: float) -> None:
        self.stopwatch += seconds * self.rate
        self.wall += seconds

    def perf_counter(self) -> float:
        return self.stopwatch

    def utc_now(self) -> str:
        self.pass_by(0.005)  # to keep a trial takes a moment
        return datetime.fromtimestamp(self.wall, UTC).isoformat(timespec="milliseconds")


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    """The clock of everything in this module: a forward costs its layers, and a little per token."""
    clock = Clock()
    for backend in (TransformersRuntime, CppRuntime):

        def timed(self, tokens, keep=None, tree=None, *, forward=backend.forward):
            clock.pass_by(LAYER_S * len(self._cache.layers) * (1 + 0.02 * (len(tokens) - 1)))
            return forward(self, tokens, keep, tree)

        monkeypatch.setattr(backend, "forward", timed)
    chain = CppRuntime.chain

    def timed_chain(self, unseen, count, stop_below=None):
        chosen = chain(self, unseen, count, stop_below)
        clock.pass_by(LAYER_S * len(self._cache.layers) * len(chosen))
        return chosen

    monkeypatch.setattr(CppRuntime, "chain", timed_chain)
    monkeypatch.setattr(loop, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(stamps, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(latency, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(bench, "utc_now", clock.utc_now)
    monkeypatch.setattr(Watch, "end", lambda _: Conditions())  # other tests may load the machine
    return clock


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = write_tiny_workspace(tmp_path_factory.mktemp("faults"))
    task = root / "tasks" / "small.yaml"
    task.write_text(task.read_text().replace("max_new_tokens: 12", f"max_new_tokens: {MAX_NEW_TOKENS}"))
    return root


@pytest.fixture(scope="module")
def long_root(tmp_path_factory) -> Path:
    """With as many prompts as a quick suite has."""
    root = write_tiny_workspace(tmp_path_factory.mktemp("long"))
    write_prompts(root, [{"id": f"p{number}", "turns": [f"{number} dogs and a cat"]} for number in range(12)])
    return root


def measure(root, tmp_path, draft="ngram", *, repeats=1, **request):
    """The arm of a session that must not rank it, and by their gates why not."""
    workspace = Workspace.open(root)
    with Store.open(tmp_path / "results.sqlite") as store:
        result = run(
            workspace, plain_request("tiny", drafts=(draft,), repeats=repeats, fresh=True, **request), store
        )
    assert result.session.finished_at is not None  # one bad arm never ends a session
    summary = summarise(result)
    arm = next(arm for arm in summary.arms if arm.arm.id == draft)
    verdict = judge(summary, arm)
    assert not verdict.ranked
    return arm, {finding.gate: finding.reason for finding in verdict.findings}


@pytest.mark.parametrize(
    "request_", [{}, {"dtype": "bf16"}, {"mode": SAMPLING}], ids=["fp32", "bf16", "sampling"]
)
def test_without_a_fault_every_draft_is_ranked(root, tmp_path, request_):
    workspace = Workspace.open(root)
    with Store.open(tmp_path / "results.sqlite") as store:
        summary = summarise(run(workspace, plain_request("tiny", repeats=1, **request_), store))
    verdicts = [judge(summary, arm) for arm in summary.arms if arm.arm.kind == "draft"]
    assert [verdict.reason for verdict in verdicts] == [None] * 4


# Wrong tokens


class Lenient:
    """A verification that takes one wrong token for every so many that it judged."""

    def __init__(self, one_in: int) -> None:
        self.one_in, self.judged, self.taken = one_in, 0, 0

    def __call__(self, logits, proposal, sampler, typical, by=None):
        verdict = loop_verify(logits, proposal, sampler, typical, by)
        self.judged += len(proposal.tokens)
        if verdict.accepted == len(proposal.tokens) or self.judged < self.one_in * (self.taken + 1):
            return verdict
        self.taken += 1
        accepted = verdict.accepted + 1
        return Verdict(accepted, sampler.choose(logits[accepted : accepted + 1]))


loop_verify = loop.verify


@pytest.mark.parametrize(
    ("draft", "dtype"),
    [
        ("ngram", "fp32"),
        ("shallow", "bf16"),
        pytest.param("ngram", "bf16", marks=at_night),
        pytest.param("shallow", "fp32", marks=at_night),
    ],
)
def test_a_verifier_that_accepts_one_wrong_token_in_200(root, tmp_path, monkeypatch, draft, dtype):
    lenient = Lenient(200)
    monkeypatch.setattr(loop, "verify", lenient)
    arm, gates = measure(root, tmp_path, draft, dtype=dtype, repeats=2)
    assert lenient.taken > 0
    assert "not-lossless" in gates
    assert 1 <= arm.fidelity.breaks <= lenient.taken
    broken = arm.fidelity.earliest("break")
    assert broken.text != broken.baseline_text
    assert (broken.before == "") == (broken.index == 0)


def roll_back_one_short(monkeypatch):
    rollback = TransformersRuntime.rollback
    monkeypatch.setattr(
        TransformersRuntime, "rollback", lambda self, count: rollback(self, max(0, count - 1))
    )


def commit_one_too_many(monkeypatch):
    """Of tokens that were rejected, the first stays."""
    commit = TransformersRuntime.commit

    def faulty(self, root, path):
        commit(self, root, (*path, len(path)) if self.length - root > len(path) else path)

    monkeypatch.setattr(TransformersRuntime, "commit", faulty)


@pytest.mark.parametrize("break_it", [roll_back_one_short, commit_one_too_many])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cache_rolled_back_one_position_short_starts_no_session(
    root, tmp_path, monkeypatch, dtype, break_it
):
    break_it(monkeypatch)
    with pytest.raises(
        UnsupportedModelError, match="not computed by the backend transformers as transformers computes it"
    ):
        measure(root, tmp_path, dtype=dtype)


@pytest.mark.parametrize("request_", [{}, {"mode": SAMPLING}], ids=["fp32", "sampling"])
def test_a_cache_rolled_back_one_position_short(root, tmp_path, monkeypatch, request_):
    commit_one_too_many(monkeypatch)
    monkeypatch.setattr(registry, "check_forward", lambda _: None)
    arm, gates = measure(root, tmp_path, **request_)
    assert "failed" in gates
    assert "rejected tokens were not taken back" in arm.arm.failure


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_wrong_cache_shows_in_the_output_too(root, tmp_path, monkeypatch, dtype):
    commit_one_too_many(monkeypatch)
    monkeypatch.setattr(registry, "check_forward", lambda _: None)
    monkeypatch.setattr(bench, "check_cache", lambda *_: None)
    arm, gates = measure(root, tmp_path, dtype=dtype)
    assert "not-lossless" in gates
    assert arm.fidelity.breaks


# A draft that does not read what stands


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("transformers", "bf16"),
        ("cpp", "fp32"),
        ("cpp", "bf16"),
        pytest.param("transformers", "fp32", marks=at_night),
    ],
)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=at_night)])
def test_honest_drafts_propose_what_a_fresh_cache_would(long_root, tmp_path, dtype, backend, seed):
    with Store.open(tmp_path / "results.sqlite") as store:
        request = plain_request("tiny", repeats=1, dtype=dtype, backend=backend, seed=seed, fresh=True)
        result = run(Workspace.open(long_root), request, store)
    for arm in result.session.arms:
        trials = [trial for trial in result.trials if trial.arm == arm.id]
        stale, checked = stale_steps(trials)
        assert not stale
        # an output may end before a whole step is proposed
        assert (len(trials) - 3 <= checked) if arm.kind == "draft" else checked == 0


@pytest.mark.parametrize(
    ("draft", "request_"),
    [
        pytest.param("shallow", {"dtype": "bf16"}, id="shallow-bf16"),
        pytest.param("int8", {}, id="int8-fp32"),
        pytest.param("shallow", {"backend": "cpp"}, id="shallow-cpp"),
        pytest.param("int8", {"backend": "cpp"}, id="int8-cpp"),
        pytest.param("shallow", {}, id="shallow-fp32", marks=at_night),
        pytest.param("int8", {"dtype": "bf16"}, id="int8-bf16", marks=at_night),
    ],
)
def test_a_draft_that_keeps_one_stale_token(long_root, tmp_path, monkeypatch, draft, request_):
    """Its cache's newest token is another one than what stands, its length is right; it begins anew with each prompt."""
    propose, accept, stale = ModelProposer.propose, ModelProposer.accept, set()

    def accepting(self, accepted):
        accept(self, accepted)
        stale.add(id(self))

    def proposed(self, context, count):
        if id(self) in stale:
            held = self._draft.length
            self._draft.rollback(1)
            self._draft.forward([3 + (context[held - 1] + 17) % 200])
        return propose(self, context, count)

    begin = ModelProposer.begin

    def begun(self, *given):
        stale.discard(id(self))
        begin(self, *given)

    for name, faulty in {"accept": accepting, "propose": proposed, "begin": begun}.items():
        monkeypatch.setattr(ModelProposer, name, faulty)
    arm, gates = measure(long_root, tmp_path, draft, **request_)
    assert arm.fidelity.status in ("identical", "ties")
    assert gates.keys() == {"stale-proposals"}


# Reports that are not true


def change_decodings(monkeypatch, change, arms=("speculative",)):
    """Lets `change(decoding)` replace what the loop reports."""
    for name in arms:
        original = getattr(bench, name)
        monkeypatch.setattr(bench, name, lambda *given, original=original: change(original(*given)))


def inflated_forwards(decoding):
    return dataclasses.replace(decoding, draft_forwards=3 * decoding.draft_forwards)


def inflated_proposals(decoding):
    return dataclasses.replace(decoding, proposed=4 * decoding.proposed)


def hidden_proposals(decoding):
    return dataclasses.replace(decoding, proposed=sum(decoding.offered) // 2)


def steps_for_free(decoding):
    """As few steps as k allows, for a better acceptance length."""
    histogram = best_histogram(decoding.token_ids, len(decoding.offered))
    return dataclasses.replace(
        decoding, steps=sum(histogram), accept_histogram=histogram, proposal_sizes=histogram
    )


def best_histogram(token_ids, k):
    full, rest = divmod(len(token_ids) - 1, k + 1)
    histogram = [0] * k + [full]
    if rest:
        histogram[rest - 1] += 1
    return tuple(histogram)


@pytest.mark.parametrize("fault", [inflated_forwards, inflated_proposals, hidden_proposals, steps_for_free])
def test_a_report_of_tokens_that_were_not_proposed(root, tmp_path, monkeypatch, fault):
    change_decodings(monkeypatch, fault)
    _, gates = measure(root, tmp_path, "shallow")
    assert "implausible-counts" in gates
    assert "implausible counts: small/" in next(iter(gates.values()))


def test_a_histogram_that_counts_an_accepted_token_twice(root, tmp_path, monkeypatch):
    """Refused by the record itself: the arm fails, the session goes on."""

    def double(decoding):
        histogram = [*decoding.accept_histogram]
        histogram[0], histogram[1] = histogram[0] - 1, histogram[1] + 1
        return dataclasses.replace(decoding, accept_histogram=tuple(histogram))

    change_decodings(monkeypatch, double)
    arm, gates = measure(root, tmp_path)
    assert "failed" in gates
    assert arm.arm.failure == (
        "what it measured contradicts itself: tokens differ from steps plus accepted tokens"
    )


def test_a_proposer_that_offers_more_than_it_was_asked_for(root, tmp_path, monkeypatch):
    propose = NgramProposer.propose
    monkeypatch.setattr(NgramProposer, "propose", lambda self, context, _: propose(self, context, 3))
    arm, gates = measure(root, tmp_path)
    assert "failed" in gates
    assert "tokens where at most" in arm.arm.failure


def test_a_truncated_output(root, tmp_path, monkeypatch):
    speculative = bench.speculative

    def shorter(target, proposer, request, *rest):
        return speculative(target, proposer, dataclasses.replace(request, max_new_tokens=20), *rest)

    monkeypatch.setattr(bench, "speculative", shorter)
    _, gates = measure(root, tmp_path)
    assert {"not-lossless", "implausible-outputs"} <= gates.keys()
    _, gates = measure(root, tmp_path, mode=SAMPLING)
    assert gates.keys() == {"implausible-outputs"}


# Clocks


@pytest.mark.parametrize("arm", ["autoregressive", "speculative"])
def test_a_stopwatch_that_jumps_forward_now_and_then(root, tmp_path, monkeypatch, arm):
    original, trials = getattr(bench, arm), []

    def jumping(*given):
        trials.append(given)
        decoding = original(*given)
        if len(trials) % 4 == 0:
            decoding = dataclasses.replace(decoding, decode_s=decoding.decode_s + 0.4)
        return decoding

    monkeypatch.setattr(bench, arm, jumping)
    _, gates = measure(root, tmp_path)
    assert "implausible-clock" in gates


def test_a_stopwatch_that_jumps_backwards_between_two_readings(root, tmp_path, clock, monkeypatch):
    propose = NgramProposer.propose

    def jumping(self, context, count):
        clock.stopwatch -= 0.02
        return propose(self, context, count)

    monkeypatch.setattr(NgramProposer, "propose", jumping)
    arm, gates = measure(root, tmp_path)
    assert "failed" in gates
    assert "propose_s Input should be greater than or equal to 0" in arm.arm.failure


def test_a_stopwatch_that_loses_time_between_its_readings(root, tmp_path, clock, monkeypatch):
    verify = loop.verify

    def jumping(*given):
        clock.stopwatch -= 0.01
        return verify(*given)

    monkeypatch.setattr(loop, "verify", jumping)
    _, gates = measure(root, tmp_path)
    assert "implausible-times" in gates


@pytest.mark.parametrize("rate", [0.05, 0.6, 0.85])
def test_a_stopwatch_that_runs_slow_for_one_arm(root, tmp_path, clock, monkeypatch, rate):
    monkeypatch.setattr(sys.modules[__name__], "LAYER_S", 0.05)  # trials of seconds, as real ones
    speculative = bench.speculative

    def slow(*given):
        clock.rate = rate
        decoding = speculative(*given)
        clock.rate = 1.0
        return decoding

    monkeypatch.setattr(bench, "speculative", slow)
    _, gates = measure(root, tmp_path)
    assert "implausible-clock" in gates
    if rate == 0.05:
        assert {"implausible-speedup", "skipped-work"} <= gates.keys()


# Seconds that were changed afterwards


@pytest.fixture
def bundles(tmp_path, clock, monkeypatch):
    """A workspace with six prompts, and the published bundles of three drafts measured in it."""
    for module in (plan, session):
        monkeypatch.setattr(module, "utc_now", clock.utc_now)
    root = write_tiny_workspace(tmp_path / "workspace")
    words = ("one", "two", "three", "dog", "and", "a")
    rows = [{"id": word, "turns": [f"{word} the cat sat on the mat " * 3]} for word in words]
    write_prompts(root, rows)
    workspace = Workspace.open(root)
    with Store.open(tmp_path / "results.sqlite") as store:
        request = plain_request("tiny", drafts=("ngram", "shallow", "early-exit"), repeats=1)
        result = run(workspace, request, store)
    return workspace, [publish(result, tmp_path / "all", (draft,))[0] for draft in request.drafts]


def test_honest_seconds_hold_in_a_re_run_and_false_ones_do_not(bundles, tmp_path):
    workspace, paths = bundles

    def verified(path):
        return {one.name: one for one in next(verify(workspace, path, seed=1)).checks}

    for path in paths:
        checks = verified(path)
        assert [one for one in checks.values() if one.status == "fails"] == []
        assert checks["step cost"].status == "holds"
        assert "1.000 times as long here as published" in checks["step cost"].detail
    for share in (0.1, 0.05):
        hidden = verified(forge(path, tmp_path / "hidden.json", share, hide=True))
        assert [one.name for one in hidden.values() if one.status == "fails"] == ["step cost"]
        assert f"{1 / (1 - share):.3f} times as long here as published" in hidden["step cost"].detail


# Work that is not done


def replay(known, clock):
    """Speculative decoding that has the answer already and only goes through the motions."""

    def replayed(target, _proposer, request, k, _typical):
        if request not in known:
            known[request] = loop.autoregressive(target, request)
        found = known[request]
        tokens = found.token_ids
        target.reset()
        started = clock.perf_counter()
        target.forward((*request.prompt, *tokens[:-1]), keep=1)
        taken = clock.perf_counter() - started
        histogram = best_histogram(tokens, k)
        offered = tuple(sum(histogram[position + 1 :]) for position in range(k))
        return Decoding(
            token_ids=tokens,
            finish=found.finish,
            steps=sum(histogram),
            accept_histogram=histogram,
            offered=offered,
            proposal_sizes=histogram,
            proposed=sum(offered),
            draft_forwards=0,
            prefill_s=found.prefill_s,
            decode_s=taken,
            propose_s=0.0,
            verify_s=taken,
        )

    return replayed


def test_an_arm_that_skips_work(root, tmp_path, clock, monkeypatch):
    monkeypatch.setattr(bench, "speculative", replay({}, clock))
    arm, gates = measure(root, tmp_path)
    assert arm.fidelity.status == "identical"
    assert "skipped-work" in gates


def test_an_arm_that_does_not_even_run_the_target(root, tmp_path, clock, monkeypatch):
    replayed, known = replay({}, clock), {}

    def cached(target, proposer, request, *rest):
        if request.prompt not in known:
            known[request.prompt] = replayed(target, proposer, request, *rest)
        else:
            target.reset()
        return known[request.prompt]

    monkeypatch.setattr(bench, "speculative", cached)
    arm, gates = measure(root, tmp_path)
    assert "failed" in gates
    assert "cache holds 0 tokens" in arm.arm.failure


# Another vocabulary


def test_a_draft_whose_tokenizer_has_other_ids_is_refused(root, tmp_path):
    (arm,) = build(Workspace.open(root), "tiny", ("shallow",))
    path = arm.folder / "tokenizer.json"
    text = path.read_text("utf-8")
    try:
        content = json.loads(text)
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        path.write_text(json.dumps(content), "utf-8")
        found, gates = measure(root, tmp_path, "shallow")
    finally:
        path.write_text(text, "utf-8")
    assert "failed" in gates
    assert "the vocabularies differ in 2 tokens" in found.arm.failure


def test_a_draft_with_permuted_weights_and_the_right_tokenizer(root, tmp_path, monkeypatch):
    """The lossless rule protects the output, so only what it accepts gives it away."""
    opened = ModelDraft.open

    def permuted(self, context):
        proposer = opened(self, context)
        model = proposer.runtime().model
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight.data = embedding.weight.data.roll(101, dims=0)
        return proposer

    monkeypatch.setattr(ModelDraft, "open", permuted)
    arm, gates = measure(root, tmp_path, "shallow")
    assert arm.fidelity.status == "identical"
    assert gates.keys() == {"accepts-nothing"}
