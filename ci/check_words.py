"""Holds the repository to its terms: a table of words that are not used, each with the one that is. Prints
`file:line: word → use` for every hit; exit code 1 where there are any.

`docs/methodology.md` defines the terms. Published results, the changelog, which names what was renamed, and the prompts of tasks
keep their words. A line that must name an old word, such as one that reads older records, contains `(old word)`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORDS: dict[str, str] = {
    r"read_hidden_states|read_features|target features": "eagle_head, EAGLE-3 head, hidden states",
    r"feature_steps|further_ahead": "ttt_steps",
    r"\bopenings\b": "prompt_prefixes, prompt prefixes",
    r"refuse_overlaps": "check_contamination, contamination check",
    r"\b_?(?:MOST|LEAST)_[A-Z]": "MAX_, MIN_",
    r"[Kk]ey[-/ ]value cache": "KV cache",
    r"\b[Pp]romises?\b(?!\()": "predicted speedup, guarantee",
    r"[Bb]ehind n-grams": "in a cascade behind prompt lookup",
    r"\bgo(?:es)? on where\b": "resumes",
    r"nothing that could be told": "no measurable difference, with the interval",
    r"the random numbers of a step": "random numbers drawn per step",
    r"[Hh]olds? it off": "mitigations",
    r"\bkin\b": "tree attention mask, parent index",
    r"\bevened\b": "RMS norm",
    r"\bshared heads\b": "kv heads",
    r"\bwhat is held\b": "KV cache",
    r"\bunasked\b": "(state what it does)",
    r"[Ss]uffix votes": "suffix decoding",
    r"--precision\b": "--target-ci",
    r"--dtype gguf\b": "--backend llama.cpp",
}
"""Not used anywhere."""
TEXT_WORDS: dict[str, str] = {
    r"\bturned\b": "rotary embedding",
    r"\bfeed\(|\bfed\b": "forward",
    r"\bforg(?:et|ets|ot|otten)\b": "rollback, crop",
    r"\bkeep_path\b|\bsettle[sd]?\b": "commit",
    r"\bmixed (?:draft|model|features)s?\b|kind: mixed": "cascade",
    r"--(?:native|fused|captured)\b": "--backend",
    r"\btorch-(?:eager|fused|native|captured)\b": "backend",
}
"""Not used in text: documents, templates, workflows. A line moves to `WORDS` when the code is rid of its word, as do
`--fused` and its like in help texts."""
TEXT = ("*.md", "leaderboard/templates/*", "leaderboard/static/*", ".github/*", "Makefile")
EXEMPT = (
    "ci/check_words.py", "CHANGELOG.md", "LICENSE", "leaderboard/results/*", "leaderboard/*.json", "drafts/*/kept/*",
    "tasks/prompts/*", "suite/draftrank/store/migrations/*", "*.png", "*.lock", "ci/constraints.txt",
)  # fmt: skip
KEPT = "(old word)"
PUBLISHED = re.compile(r"<!-- (board|boards|leaders|servings)\b[^>]*-->.*?<!-- /\1 -->", re.DOTALL)


def files() -> Iterator[str]:
    """The repository's own files by their paths, without those that keep their words."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.split("\0"):
        if name and (ROOT / name).is_file() and not any(fnmatch(name, pattern) for pattern in EXEMPT):
            yield name


def hits(name: str, text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, word and what to use instead, for each word of a file that is not used."""
    if name.endswith(".md"):
        text = PUBLISHED.sub(lambda match: "\n" * match[0].count("\n"), text)
    words = WORDS | TEXT_WORDS if any(fnmatch(name, pattern) for pattern in TEXT) else WORDS
    for word, use in words.items():
        for match in re.finditer(word, text):
            begin, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
            if KEPT not in text[begin : end if end >= 0 else None]:
                yield text.count("\n", 0, match.start()) + 1, match[0], use


def main() -> int:
    """Checks every file; prints each hit."""
    found = 0
    for name in files():
        try:
            text = (ROOT / name).read_text("utf-8")
        except UnicodeDecodeError:
            continue  # not text
        for line, word, use in sorted(hits(name, text)):
            found += 1
            print(f"{name}:{line}: {word} → {use}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
