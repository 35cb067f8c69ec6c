"""What proposes, told from recorded recipes of every version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import arm_of, build, result
from draftrank.board.proposers import proposer_of
from draftrank.board.ranking import build_boards

HEAD = [{"kind": "eagle_head"}, {"kind": "trim_vocabulary"}, {"kind": "distill"}]
OWN_HEAD = [
    {"kind": "drop_layers"},
    {"kind": "read_hidden_states"},  # (old word)
    {"kind": "distill"},
]
OLD_HEAD = [
    {"kind": "drop_layers"},
    {"kind": "read_features"},  # (old word)
    {"kind": "distill"},
    {"kind": "quantize"},
]  # (old word)


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        ({"kind": "ngram"}, "n-gram"),
        ({"kind": "suffix"}, "suffix decoding"),
        ({"kind": "early_exit", "layers": 6}, "early exit"),
        ({"kind": "eagle", "steps": HEAD[1:]}, "EAGLE-3 head"),
        ({"kind": "draft_model", "steps": OWN_HEAD}, "EAGLE head"),
        ({"kind": "model", "steps": OLD_HEAD}, "EAGLE head"),
        ({"kind": "cascade", "min_probability": 0.5, "steps": HEAD}, "suffix decoding + EAGLE-3 head"),
        ({"kind": "cascade", "min_probability": 0.5, "steps": OWN_HEAD}, "suffix decoding + EAGLE head"),
        ({"kind": "mixed", "min_probability": 0.5, "steps": OLD_HEAD}, "suffix decoding + EAGLE head"),
        ({"kind": "mixed", "steps": OLD_HEAD[::2]}, "n-gram + distilled draft model"),
        ({"kind": "model", "steps": [{"kind": "drop_layers"}]}, "layer-dropped draft model"),
        ({"kind": "model", "steps": [{"kind": "quantize"}]}, "quantized draft model"),
        ({"kind": "model", "steps": [{"kind": "drop_layers"}, {"kind": "distill"}]}, "distilled draft model"),
        ({"kind": "model", "steps": [{"kind": "random"}, {"kind": "drop_layers"}]}, "random draft model"),
        ({"kind": "model", "steps": [{"kind": "trim_vocabulary"}]}, "draft model"),
        ({"kind": "later", "steps": []}, "one + suffix decoding"),
    ],
)
def test_a_draft_is_named_by_what_proposes(draft, words):
    assert proposer_of({"draft": draft}, ("one", "suffix")) == words


def test_in_a_server_the_model_of_a_cascade_proposes_alone():
    cascade = {"kind": "cascade", "min_probability": 0.5, "steps": HEAD}
    assert proposer_of({"draft": cascade}, (), served=True) == "EAGLE-3 head"
    assert proposer_of({"draft": {"kind": "ngram"}}, (), served=True) == "n-gram"


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["model", "mixed", "kind"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "steps", "x"]), inner)
    ),
)


@given(PLAIN, st.lists(st.text(max_size=5), max_size=3))
def test_any_record_gets_a_name(draft, techniques):
    assert isinstance(proposer_of({"draft": draft}, techniques), str)
    assert proposer_of({}, ()) == "unknown"


def test_rows_and_plots_carry_it():
    recipe = build("a").recipe | {"draft": {"kind": "mixed", "min_probability": 0.5, "steps": OLD_HEAD}}
    made = build("a", recipe=recipe, techniques=("layer dropping", "target features", "suffix"))  # (old word)
    arms = [arm_of("a", draft=made), arm_of("dead", draft=None, failure="no")]
    (board,) = build_boards([result({"a": 1.5}, arms=arms)])
    assert [row.proposer for row in board.rows] == ["suffix decoding + EAGLE head", "unknown"]
    assert board.rows[0].techniques == ("layer dropping", "EAGLE head", "suffix decoding")
