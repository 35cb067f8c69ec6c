"""What servers answer, in the suite's terms: steps and acceptance against counts by hand, and every way of failing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftrank.errors import MissingDataError
from draftrank.serving.base import Completion, CompletionRequest, Engine, Speculation
from draftrank.serving.engines import find_engine
from draftrank.serving.http import Client, ServerError
from draftrank.serving.llama_cpp import LlamaCpp
from draftrank.serving.llama_cpp import arguments as llama_arguments
from draftrank.serving.sending import ATTEMPTS, in_turn
from draftrank.serving.sglang import Sglang
from draftrank.serving.sglang import arguments as sglang_arguments
from draftrank.serving.vllm import Vllm, configuration
from model_server import ModelServer, output_of, serving

PROMPT = (5, 11, 42)
ENGINES: dict[str, Engine] = {
    "vllm": Vllm(Path("python")),
    "llama.cpp": LlamaCpp(Path("llama-server")),
    "sglang": Sglang(Path("python")),
}
FORMS = list(ENGINES)


def complete(
    server: ModelServer,
    limit: int = 20,
    stop: frozenset[int] = frozenset(),
    top: int = 0,
    idle_s: float = 20.0,
) -> Completion:
    server.stop = stop
    with serving(server) as port:
        client = Client(port, idle_s=idle_s)
        request = CompletionRequest(PROMPT, limit, stop, top)
        return asyncio.run(ENGINES[server.form].complete(client, request))


@pytest.mark.parametrize("form", FORMS)
def test_plain_decoding_takes_a_step_for_every_token_behind_the_first(form: str) -> None:
    found = complete(ModelServer(form))
    assert found.token_ids == tuple(output_of(list(PROMPT), 20))
    assert (found.steps, found.accepted, found.finish, found.disagreement) == (19, 0, "length", None)
    assert found.decode_s >= 0.0 < found.prefill_s


@settings(max_examples=60)
@given(
    form=st.sampled_from(FORMS),
    script=st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=6),
    limit=st.integers(1, 25),
    stop=st.frozensets(st.integers(0, 96), max_size=6),
)
def test_steps_and_accepted_tokens_are_those_that_were_emitted(
    form: str, script: list[int | None], limit: int, stop: frozenset[int]
) -> None:
    """Accepted tokens behind the end, which both servers count, count for nothing."""
    found = complete(ModelServer(form, tuple(script)), limit, stop)
    expected = output_of(list(PROMPT), limit, stop)
    done, steps = 1, 0
    while done < len(expected):  # by hand: each step gives the accepted tokens and one more
        done += (script[steps % len(script)] or 0) + 1
        steps += 1
    assert found.token_ids == tuple(expected)
    assert found.disagreement is None
    assert (found.steps, found.accepted) == (steps, len(expected) - 1 - steps)
    assert (found.proposed is None) == (form == "sglang")  # which does not tell
    assert found.finish == ("stop" if expected[-1] in stop else "length")


@settings(max_examples=40)
@given(left_out=st.sets(st.integers(0, 19)), script=st.sampled_from([(), (2, None), (3, 0, 1)]))
def test_tokens_that_the_stream_left_out_are_asked_for_where_they_belong(
    left_out: set[int], script: tuple[int | None, ...]
) -> None:
    """In the toy server a token id is left out wherever it stands, so more places than drawn may be missing."""
    expected = output_of(list(PROMPT), 20)
    unfinished = frozenset(expected[index] for index in left_out)
    missing = frozenset(index for index, token in enumerate(expected) if token in unfinished)
    server = ModelServer("llama.cpp", script, unfinished=unfinished)
    engine, request = ENGINES["llama.cpp"], CompletionRequest(PROMPT, 20, frozenset())
    with serving(server) as port:
        client = Client(port)
        streamed = asyncio.run(engine.complete(client, request))
        whole = asyncio.run(engine.filled(client, request, streamed))
    assert streamed.gaps == missing
    assert streamed.token_ids == tuple(token for token in expected if token not in unfinished)
    assert sum(tokens for _, tokens in streamed.arrivals) == 20
    assert (whole.token_ids, whole.gaps, whole.disagreement) == (tuple(expected), frozenset(), None)
    begins = [index for index in sorted(missing) if index - 1 not in missing]
    assert [len(asked["prompt"]) - len(PROMPT) for asked in server.requests] == [0, *begins]


def test_one_token_asked_for_at_a_character_that_takes_several_is_told() -> None:
    """The plain server is asked so at a divergence: then the stream brings no token at all."""
    expected = output_of(list(PROMPT), 1)
    server = ModelServer("llama.cpp", unfinished=frozenset(expected))
    with serving(server) as port:
        (found,) = in_turn(ENGINES["llama.cpp"], Client(port), [CompletionRequest(PROMPT, 1, frozenset())])
    assert (found.token_ids, found.finish, found.disagreement) == (tuple(expected), "length", None)


def test_the_most_likely_tokens_come_best_first() -> None:
    found = complete(ModelServer("vllm"), 4, top=2)
    assert [best for (best, _), *_ in found.top] == list(found.token_ids)
    assert {round(one - two, 6) for (_, one), (_, two) in found.top} == {1.5}


@pytest.mark.parametrize("form", FORMS)
def test_counts_that_contradict_the_output_are_told(form: str) -> None:
    found = complete(ModelServer(form, (2, 0, 1), fault="wrong counts"))
    assert found.token_ids == tuple(output_of(list(PROMPT), 20))
    assert found.disagreement is not None


def test_a_server_with_other_stop_tokens_is_told() -> None:
    stop = frozenset(output_of(list(PROMPT), 20)[5:6])
    with serving(ModelServer("llama.cpp")) as port:
        request = CompletionRequest(PROMPT, 20, stop)
        found = asyncio.run(ENGINES["llama.cpp"].complete(Client(port), request))
    assert found.disagreement is not None
    assert "went on behind a stop token" in found.disagreement


def test_a_contradiction_is_asked_about_again_and_then_kept() -> None:
    server = ModelServer("vllm", (2, 0, 1), fault="joins steps")
    with serving(server) as port:
        (found,) = in_turn(ENGINES["vllm"], Client(port), [CompletionRequest(PROMPT, 20, frozenset())])
    assert found.disagreement is not None
    assert found.joined
    assert len(server.requests) == ATTEMPTS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("refuses", "the prompt is too long"),
        ("cut", "broke off"),
        ("no end", "without saying why"),
        ("hangs", "nothing came for 0.2 s"),
    ],
)
def test_an_answer_that_is_none_is_an_error(form: str, fault: str, told: str) -> None:
    with pytest.raises(ServerError, match=told):
        complete(ModelServer(form, (2, 0), fault=fault), idle_s=0.2 if fault == "hangs" else 20.0)


def test_no_server_is_an_error() -> None:
    with pytest.raises(ServerError, match="no server answers"):
        asyncio.run(Client(1).text("/health"))


def test_drafts_become_speculative_configurations() -> None:
    ngram = Speculation("ngram", 4, max_ngram=3, min_ngram=2)
    head = Speculation("eagle3", 3, Path("/drafts/head"))
    assert configuration(ngram) == {
        "method": "ngram",
        "num_speculative_tokens": 4,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 2,
    }
    assert configuration(head) == {"method": "eagle3", "num_speculative_tokens": 3, "model": "/drafts/head"}
    assert "ngram-simple" in llama_arguments(ngram, "f32")
    assert {"draft-eagle3", "/drafts/head"} <= set(llama_arguments(head, "f32"))
    told = " ".join(sglang_arguments(head))
    assert told == (
        "--speculative-algorithm EAGLE3 --speculative-draft-model-path /drafts/head --speculative-num-steps 3 "
        "--speculative-eagle-topk 1 --speculative-num-draft-tokens 4"
    )
    own = Speculation("ngram", 4, options={"speculative-num-draft-tokens": 8}, own=True)
    assert " ".join(sglang_arguments(own)) == (
        "--speculative-algorithm NGRAM --speculative-num-draft-tokens 8"
    )


def test_an_engine_that_is_not_here_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    for name, make in (("vllm", "make engine-vllm"), ("llama.cpp", "make engine-llama-cpp")):
        with pytest.raises(MissingDataError, match=make):
            find_engine(name, tmp_path)
    monkeypatch.setenv("DRAFTRANK_VLLM", "/env/bin/python")
    assert find_engine("vllm", tmp_path).program == Path("/env/bin/python")
    server = tmp_path / ".engines/llama.cpp/build/bin/llama-server"
    server.parent.mkdir(parents=True)
    server.touch()
    assert find_engine("llama.cpp", tmp_path).program == server


@pytest.mark.parametrize(
    ("engine", "said", "version"),
    [
        (Vllm, "0.32.0+cpu", "0.32.0"),
        (LlamaCpp, "version: 0.6.0-dev (build 11434, commit abc)", "b11434"),
        (LlamaCpp, "version: 6543 (abc)", "b6543"),
        (Sglang, "0.5.23", "0.5.23"),
    ],
)
def test_versions_are_those_that_programs_tell(
    tmp_path: Path, engine: type[Engine], said: str, version: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    assert engine(program).version() == version
    program.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 1\n")
    with pytest.raises(ServerError, match="no such module"):
        engine(program).version()
