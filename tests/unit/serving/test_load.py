"""Load on a server: how many at once, in which order, with which stamps, and what becomes of requests that fail."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftrank.errors import InvalidInputError, MissingDataError
from draftrank.serving.base import CompletionRequest, Counts, Engine, Served, Speculation
from draftrank.serving.engines import engine_elsewhere
from draftrank.serving.http import Client, ServerError
from draftrank.serving.llama_cpp import LlamaCpp
from draftrank.serving.load import Load, counters_of, model_of, put_load, version_of
from draftrank.serving.sending import with_whole_outputs
from draftrank.serving.vllm import Vllm, configuration, past_joined, past_the_end
from model_server import ModelServer, output_of, serving

ENGINES: dict[str, Engine] = {"vllm": Vllm(Path("python")), "llama.cpp": LlamaCpp(Path("llama-server"))}
REQUESTS = [CompletionRequest((3, number), 8 + number, frozenset()) for number in range(6)]


def load(
    server: ModelServer, concurrency: int, order: list[int], idle_s: float = 20.0, **more: object
) -> Load:
    with serving(server) as port:
        client = Client(port, idle_s=idle_s)
        return put_load(ENGINES[server.form], client, REQUESTS, order, concurrency, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", list(ENGINES))
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_closed_loop_keeps_so_many_in_flight_and_stamps_every_token(form: str, concurrency: int) -> None:
    server = ModelServer(form, (2, None, 0), delay_s=0.002)
    order = [4, 0, 2, 1, 3, 5, 0]
    done = []
    found = load(server, concurrency, order, done=lambda: done.append(1))
    assert server.most == concurrency
    assert [answer.request for answer in found.answers] == order
    assert len(done) == 7
    assert found.failed == 0
    assert gc.isenabled()
    for answer in found.answers:
        request, completion = REQUESTS[answer.request], answer.completion
        assert completion is not None
        assert completion.token_ids == tuple(output_of(list(request.prompt), request.max_new_tokens))
        assert sum(tokens for _, tokens in completion.arrivals) == len(completion.token_ids)
        moments = [answer.sent, *(moment for moment, _ in completion.arrivals)]
        assert moments == sorted(moments)
        assert answer.ended == moments[-1]
    assert found.wall_s >= max(answer.ended - answer.sent for answer in found.answers)


def test_an_open_loop_sends_at_its_moments_and_waits_for_room() -> None:
    moments = [0.0, 0.0, 0.0, 0.3]
    server = ModelServer(delay_s=0.005)
    found = load(server, 2, [0, 1, 2, 3], moments=moments)
    assert server.most == 2
    sent = [answer.sent - found.began for answer in found.answers]
    assert sent[3] >= 0.29
    first = min(answer.ended for answer in found.answers[:2]) - found.began
    assert sent[2] >= first  # there was no room before


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("cut", "broke off"),
        ("no end", "without saying why"),
        ("refuses", "too long"),
        ("hangs", "nothing came"),
    ],
)
def test_requests_that_fail_are_told_and_after_some_no_more_are_sent(fault: str, told: str) -> None:
    server = ModelServer(fault=fault, after=2)
    found = load(server, 1, [0, 1, 2, 3, 4, 5, 0, 1], idle_s=0.3)
    failures = [answer.failure for answer in found.answers]
    assert failures[:2] == [None, None]
    assert all(told in (failure or "") for failure in failures[2:5])
    assert failures[5:] == ["not sent: 3 requests in a row failed"] * 3
    assert found.failed == 6


def test_nothing_more_is_sent_to_a_server_that_has_ended() -> None:
    found = load(ModelServer(fault="cut", after=1), 1, [0, 1, 2, 3], alive=lambda: False)
    assert [answer.failure for answer in found.answers][2:] == ["not sent: the server has ended"] * 2


@given(
    accepted=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    cut=st.integers(0, 3),
    joints=st.lists(st.booleans(), min_size=13, max_size=13),
)
def test_events_that_join_steps_contradict_nothing(accepted: list[int], cut: int, joints: list[bool]) -> None:
    """However whole steps are joined, and whatever of the last one lies behind the end."""
    beyond = min(cut, accepted[-1])
    steps = [1, *(tokens + 1 for tokens in accepted)]
    steps[-1] -= beyond
    events = [steps[0]]
    for size, joint in zip(steps[1:], joints, strict=False):
        if joint:
            events[-1] += size
        else:
            events.append(size)
    found = past_joined(events, accepted)
    assert found is not None
    assert found <= beyond
    if not any(joints[: len(accepted)]):
        assert past_the_end(events, accepted) == (beyond, None)


@given(accepted=st.lists(st.integers(1, 3), min_size=1, max_size=8), more=st.integers(1, 3))
def test_counts_that_no_joining_explains_stay_contradictions(accepted: list[int], more: int) -> None:
    events = [1, *(tokens + 1 for tokens in accepted)]
    assert past_joined(events, [*accepted, more]) is None
    assert past_joined(events, [accepted[0] + 4, *accepted[1:], 1]) is None


def test_counters_are_summed_and_a_plain_server_has_none() -> None:
    server = ModelServer("vllm", (2, None, 0))
    with serving(server) as port:
        client = Client(port)
        before = counters_of(ENGINES["vllm"], client)
        put_load(ENGINES["vllm"], client, REQUESTS, [0, 1], 2)
        after = counters_of(ENGINES["vllm"], client)
        assert before == Counts(0, 0, 0)
        assert after is not None
        assert after.since(before) == after == Counts(*server.counts)
        assert after.proposed == 3 * after.drafts > after.accepted > 0
        assert before.since(after) is None  # a counter went back
        assert counters_of(ENGINES["llama.cpp"], client) is None
    assert counters_of(ENGINES["vllm"], Client(1)) is None
    with serving(ModelServer("vllm")) as port:
        assert counters_of(ENGINES["vllm"], Client(port)) is None


def test_a_server_that_runs_tells_its_version_and_model() -> None:
    engine = engine_elsewhere("vllm")
    with serving(ModelServer(name="theirs")) as port:
        client = Client.at(f"http://127.0.0.1:{port}", token="secret")
        assert (version_of(engine, client), model_of(client)) == ("0.32.0", "theirs")
        with pytest.raises(ServerError, match="status 404"):
            version_of(engine_elsewhere("llama.cpp"), client)
    with pytest.raises(MissingDataError, match="make engine-vllm"):
        engine.launch(Served(Path("m"), "m", 1, 64, "bf16", 1), None)


def test_the_token_goes_into_the_header_and_into_no_error() -> None:
    server = ModelServer()
    with serving(server) as port:
        client = Client.at(f"http://127.0.0.1:{port}", token="s3cret")
        with pytest.raises(ServerError) as error:
            version_of(engine_elsewhere("llama.cpp"), client)
    assert "s3cret" not in str(error.value)
    assert server.authorizations == {"Bearer s3cret"}


@pytest.mark.parametrize("name", list(ENGINES))
def test_what_a_server_is_declared_with_reaches_its_command(name: str) -> None:
    served = Served(
        *(Path("m"), "m", 1, 64, "bf16", 1),
        max_requests=8,
        flags=("--more", "1"),
        environment={"SOME": "x"},
        kv_cache_gib=3,
    )
    launch = ENGINES[name].launch(served, None)
    assert launch.command[-2:] == ("--more", "1")
    assert launch.environment["SOME"] == "x"
    assert "8" in launch.command
    assert name == "vllm" or "512" in launch.command  # each of eight requests has the whole context


def test_vllm_compiles_its_forwards_on_a_gpu_alone() -> None:
    commands = [
        ENGINES["vllm"].launch(Served(Path("m"), "m", 1, 64, "bf16", 1, device), None).command
        for device in ("cpu", "cuda")
    ]
    assert ["--enforce-eager" in command for command in commands] == [True, False]


def test_methods_of_an_engine_are_passed_on_under_its_own_names() -> None:
    vllm, llama = ENGINES["vllm"], ENGINES["llama.cpp"]
    told = Speculation("mtp", 2, options={"max_model_len": 64}, own=True)
    vllm.check(told)
    assert configuration(told) == {"method": "mtp", "num_speculative_tokens": 2, "max_model_len": 64}
    own = Speculation("ngram-mod", 2, options={"spec-ngram-mod-n-match": 8}, own=True)
    llama.check(own)
    assert llama.launch(Served(Path("m"), "m", 1, 64, "bf16", 1), own).command[-4:] == (
        *("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "8"),
    )


@pytest.mark.parametrize(
    ("engine", "speculation", "field"),
    [
        ("vllm", Speculation("mind_reading", 2, own=True), "draft.method"),
        ("vllm", Speculation("mtp", 2, options={"model": "them/theirs"}, own=True), "draft.options.model"),
        ("vllm", Speculation("mtp", 2, options={"trust_remote_code": True}, own=True), "trust_remote_code"),
        ("llama.cpp", Speculation("suffix", 2), "draft.method"),
        ("llama.cpp", Speculation("ngram-mod", 2, options={"hf-repo": "a/b"}, own=True), "hf-repo"),
        (
            "llama.cpp",
            Speculation("ngram-mod", 2, options={"spec-draft-model": "x"}, own=True),
            "draft-model",
        ),
    ],
)
def test_methods_and_options_that_an_engine_does_not_have_are_refused(
    engine: str, speculation: Speculation, field: str
) -> None:
    with pytest.raises(InvalidInputError) as error:
        ENGINES[engine].check(speculation)
    assert field in (error.value.problems[0].field or "")


def test_tokens_that_a_stream_left_out_are_asked_for_after_the_round():
    prompt, engine = CompletionRequest((5, 11, 42), 12, frozenset()), LlamaCpp(Path("x"))
    expected = output_of([5, 11, 42], 12)
    server = ModelServer("llama.cpp", (2, None), unfinished=frozenset(expected[4:6]))
    with serving(server) as port:
        client = Client(port)
        load = put_load(engine, client, [prompt], [0], 1)
        assert len(server.requests) == 1
        whole = with_whole_outputs(engine, client, [prompt], load)
    (before,), (after,) = load.answers, whole.answers
    assert before.completion is not None
    assert before.completion.gaps
    assert after.completion is not None
    assert after.completion.token_ids == tuple(expected)
    assert sum(tokens for _, tokens in before.completion.arrivals) == 12
    came, first = before.completion.token_ids, min(before.completion.gaps)
    others = replace(before.completion, token_ids=(*came[:first], came[first] + 1, *came[first + 1 :]))
    with serving(ModelServer("llama.cpp")) as port:
        otherwise = replace(load, answers=(replace(before, completion=others),))
        (other,) = with_whole_outputs(engine, Client(port), [prompt], otherwise).answers
    assert other.completion is None
    assert "left out tokens 3 to 5, and asked for them it goes on otherwise" in (other.failure or "")
