"""Runs every kind of draft on a tiny random model of every decoder family, and writes what came of it:
`suite/draftrank/catalog/architectures.json`, which `draftrank list architectures` shows, and `docs/architectures.md`.

A cell is run as a session runs it: the draft is built, its proposals are verified by the target, and the output must be
the target's own, token for token. `ci/architectures.py llama opt` runs some families again and leaves the others.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from draftrank import kinds  # noqa: E402
from draftrank.building.pipeline import build_draft  # noqa: E402
from draftrank.catalog.architectures import FILE  # noqa: E402
from draftrank.catalog.recipe import Recipe  # noqa: E402
from draftrank.catalog.sources.base import FetchContext  # noqa: E402
from draftrank.catalog.target import Target  # noqa: E402
from draftrank.engine.backends.blocks import SUPPORTED  # noqa: E402
from draftrank.engine.backends.registry import open_runtime  # noqa: E402
from draftrank.engine.loop import Request, autoregressive, speculative  # noqa: E402
from draftrank.engine.proposer import ProposerContext  # noqa: E402
from draftrank.errors import DraftrankError, IncompatibleDraftError  # noqa: E402
from draftrank.models.loading import load_model, window_of_folder  # noqa: E402
from draftrank.models.target_folder import TargetFolder, ensure_target  # noqa: E402
from models import TABLE_FAMILIES, model_type, small_model, small_tokenizer  # noqa: E402

PAGE = ROOT / "docs" / "architectures.md"
TEXT = {"kind": "self_generated", "tokens": 1_000, "sequence_tokens": 64}
DISTILL = {"kind": "distill", "data": TEXT, "batch_sequences": 8}
STEPS: dict[str, list[dict[str, Any]]] = {
    "pretrained": [
        {"kind": "pretrained", "licence": "MIT", "source": {"kind": "local", "path": "model"}},
    ],
    "random": [{"kind": "random"}],
    "drop_layers": [{"kind": "drop_layers", "keep": 2, "select": "ends"}],
    "merge_layers": [{"kind": "merge_layers", "keep": 2}],
    "prune_ffn": [{"kind": "prune_ffn", "keep_channels": 24}],
    "prune_heads": [{"kind": "prune_heads", "keep_groups": 1}],
    "prune_hidden": [{"kind": "prune_hidden", "keep_channels": 16}],
    "factorize": [{"kind": "factorize", "keep_parameters": 0.5}],
    "tie_layers": [{"kind": "tie_layers", "blocks": 2}],
    "trim_vocabulary": [{"kind": "trim_vocabulary", "keep_tokens": 60}],
    "factorize_head": [{"kind": "factorize_head", "rank": 8}],
    "sparsify": [{"kind": "sparsify", "method": "wanda", "sparsity": 0.5}],
    "distill": [DISTILL],
    "quantize": [{"kind": "quantize", "scheme": "dynamic_int8"}],
}
"""The steps that each column's draft is made by."""
NOT_RUN = {
    "norm_before_residual": "changes only a head that `eagle head` made",
    "write_gguf": "needs a target that is a GGUF file",
}
"""Steps without a column, and why."""
WITHOUT_ROW = {
    "their tokens read the ones behind them (`xlm`: unless its configuration says `causal`), so keys and values of a text "
    "change with every token": ("cpmant", "xlm", "xlnet"),
    "it cuts the bytes of each forward into patches by themselves, so that a text in pieces gives other logits": ("blt",),
    "they read the keys and values of the Gemma 4 model that they assist": (
        "gemma4_assistant", "gemma4_unified_assistant",
    ),
    "it is GPT-2 under another name": ("gpt-sw3",),
    "they are encoders, which decode only where their configuration says `is_decoder`": (
        "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert",
        "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
    ),
    "they are the decoders of encoder-decoder models": (
        "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "musicgen", "musicgen_melody", "mvp",
        "pegasus", "plbart", "prophetnet", "trocr", "whisper",
    ),
    "they read or write images or sound; text parts that are families of their own have rows": (
        "dots3_note", "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "git", "got_ocr2", "llama4", "mllama",
        "moshi", "moss_transcribe_diarize", "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp",
    ),
}  # fmt: skip
"""The other causal language models of transformers by `model_type`, and why they have no row."""
DRAFTS: dict[str, dict[str, Any]] = {
    "copying": {"kind": "ngram"},
    "early_exit": {"kind": "early_exit", "layers": 2},
    **{kind: {"kind": "draft_model", "steps": steps, "calibration": TEXT} for kind, steps in STEPS.items()},
    "eagle_head": {"kind": "eagle", "aux_hidden_states": [1, 2], "steps": [DISTILL]},
}
BACKENDS = ("transformers", "cpp", "cuda-graphs")
COLUMNS = (*BACKENDS, *DRAFTS)
REQUEST = Request(prompt=tuple(range(3, 15)), max_new_tokens=20)
_BUILT = re.compile(r" /\S*/(drafts/[0-9a-f]{64}|model)(?= )")
"""The folder of a model, which another run has elsewhere."""
_REFUSED = re.compile(r"^small: (step 1 \(\w+\) cannot be done: )?")
"""What a refusal of a draft begins with."""
FAILED = "FAILED: "
"""Begins what was not refused in words."""


class Family:
    """One tiny target in a folder of its own."""

    def __init__(self, name: str, root: Path) -> None:
        tokenizer = small_tokenizer()
        model = small_model(name, vocabulary=len(tokenizer))
        model.save_pretrained(root / "model")
        tokenizer.save_pretrained(root / "model")
        self._root = root
        self._context = FetchContext(root / "cache", (root,))
        self._target = Target.model_validate_json(
            json.dumps(
                {
                    "schema_version": 1,
                    "id": "tiny",
                    "title": "Tiny",
                    "licence": "MIT",
                    "source": {"kind": "local", "path": "model"},
                    "prompt_format": "completion",
                    **({} if window_of_folder(root / "model") else {"context_window": 256}),
                }
            )
        )

    @cached_property
    def _folder(self) -> TargetFolder:
        return ensure_target(self._target, self._context)

    def run(self, column: str) -> None:
        """Runs one cell; whatever it raises is what it shows."""
        if column in BACKENDS:
            self._run_backend(column)
        else:
            self._run_draft(DRAFTS[column])

    def _run_backend(self, backend: Any) -> None:
        device = "cuda" if backend == "cuda-graphs" and torch.cuda.is_available() else "cpu"
        model = load_model(self._folder.path, "fp32", device)
        if backend == "cuda-graphs" and device == "cpu" and model.config.model_type in SUPPORTED:
            raise IncompatibleDraftError("it needs a GPU, and the table was made on a machine without one")
        decoded = autoregressive(open_runtime(model, backend), REQUEST)
        own = load_model(self._folder.path, "fp32", device)
        ids = list(REQUEST.prompt)
        with torch.inference_mode():  # greedy, each time from the whole text: no cache of anybody's
            for token in decoded.token_ids:
                logits = own(torch.tensor([ids], device=device), use_cache=False).logits[0, -1].float()
                best = logits.topk(2).values
                if int(logits.argmax()) != token and float(best[0] - best[1]) > 1e-3:
                    raise AssertionError("another output than the model's own forward gives")
                ids.append(token)

    def _run_draft(self, draft: dict[str, Any]) -> None:
        recipe = Recipe.model_validate_json(
            json.dumps(
                {
                    "schema_version": 1,
                    "id": "small",
                    "target": "tiny",
                    "title": "Small",
                    "authors": [{"name": "A"}],
                    "draft": draft,
                    "speculate": {"num_speculative_tokens": 3},
                }
            )
        )
        target = open_runtime(load_model(self._folder.path, "fp32", "cpu"), "transformers")
        built = build_draft(recipe, self._target, self._folder, self._context)
        context = ProposerContext(target, built.folder, self._folder.path, "fp32", "cpu")
        with torch.inference_mode():
            expected = autoregressive(target, REQUEST)
            found = speculative(target, recipe.draft.open(context), REQUEST, 3)
        if found.token_ids != expected.token_ids:
            raise AssertionError("another output than plain decoding gives")


def outcome(run: Callable[[], None]) -> str | None:
    """What one cell shows: None where it ran, else why not."""
    try:
        run()
    except DraftrankError as error:
        told, cause = _BUILT.sub("", " ".join(str(error).split())), error.__cause__
        unforeseen = not isinstance(cause, DraftrankError) and f": {type(cause).__name__}: " in told
        return f"{FAILED}{told}" if unforeseen else told
    except Exception as error:  # noqa: BLE001  # what was not foreseen is what the table shows
        return f"{FAILED}{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def main() -> int:
    """Runs the families named, or all; returns how many cells failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="some of them; the others stay as they were")
    chosen = parser.parse_args().families or TABLE_FAMILIES
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    known = json.loads(FILE.read_text("utf-8"))["families"] if FILE.is_file() else {}
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            family = Family(name, Path(folder))
            known[name] = {
                column: outcome(lambda column=column, family=family: family.run(column))  # type: ignore[misc]
                for column in COLUMNS
            }
        ran = sum(reason is None for reason in known[name].values())
        print(f"{name}: {ran} of {len(COLUMNS)}", flush=True)
        write({key: known[key] for key in TABLE_FAMILIES if key in known})
    failed = [
        (name, column, reason)
        for name, cells in known.items()
        for column, reason in cells.items()
        if reason is not None and reason.startswith(FAILED)
    ]
    for name, column, reason in failed:
        print(f"{name}, {column}: {reason}")
    return min(len(failed), 100)


def write(families: dict[str, dict[str, str | None]]) -> None:
    """Writes the table and the page."""
    content = {"transformers": transformers.__version__, "columns": COLUMNS, "families": families}
    FILE.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    PAGE.write_text(page(families), "utf-8")


def page(families: dict[str, dict[str, str | None]]) -> str:
    """The page: a matrix of marks, then the reasons by their numbers."""
    numbers: dict[str, int] = {}
    lines = [
        f"| family | {' | '.join(column.replace('_', ' ') for column in COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for name, cells in families.items():
        marks = []
        for column in COLUMNS:
            reason = cells[column]
            marks.append(
                "✓" if reason is None else str(numbers.setdefault(general(reason, name), len(numbers) + 1))
            )
        lines.append(f"| `{name}` | {' | '.join(marks)} |")
    reasons = "".join(f"{number}. {reason}\n" for reason, number in numbers.items())
    absent = "".join(
        f"- {', '.join(f'`{name}`' for name in names)}: {reason}.\n" for reason, names in WITHOUT_ROW.items()
    )
    not_run = "; ".join(f"`{kind}`, which {NOT_RUN[kind]}" for kind in kinds.STEPS if kind not in DRAFTS)
    return f"""# Model families

What runs on which decoder family of transformers {transformers.__version__}. `python ci/architectures.py` makes this page: it runs every
cell on a tiny random model, and a ✓ says that the draft was built, its proposals verified, and that the output was the
target's own, token for token. The model's parts are found in its module tree
([`models/discovery.py`](../suite/draftrank/models/discovery.py)). `draftrank list architectures` shows the same table.

- `transformers`, `cpp`, `cuda-graphs`: the [backend](backends.md) decodes the model and agrees with its own forward. `cuda-graphs`
  needs a GPU; without one, only what is not written for it is known.
- `copying`: n-grams of the context; `early exit`: the first two of three layers.
- The other columns are steps of a recipe ([declarations](declarations.md)), each alone; `eagle head` with `distill`
  after it.
- Not run here: {not_run}.

{chr(10).join(lines)}

## Reasons

{reasons}
## Without a row

The other causal language models of transformers:

{absent}"""


def general(reason: str, name: str) -> str:
    """A reason without the family's own name and the column's, so that cells share it."""
    reason = _REFUSED.sub("", reason)
    for told in dict.fromkeys((model_type(name), name)):
        reason = reason.replace(f"'{told}'", "…").replace(f" {told} ", " … ").replace(f"({told})", "(…)")
        if reason.startswith(f"{told} "):
            reason = f"…{reason.removeprefix(told)}"
    return reason


if __name__ == "__main__":
    sys.exit(main())
