"""From sources of every form to a folder that opens."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftrank.catalog.base import sha256_of_json
from draftrank.catalog.loading import load_declaration
from draftrank.catalog.sources.base import FetchContext, file_sha256
from draftrank.catalog.target import Target
from draftrank.drafting import target_folder as module
from draftrank.drafting.target_folder import ensure_target
from draftrank.errors import InvalidInputError, MissingDataError
from gguf_files import write_llama_file
from models import small_model

REPOSITORY = Path(__file__).parents[3]
IDS = torch.arange(3, 23)[None]


def declare(path: str, **changes) -> Target:
    fields = {
        "schema_version": 1,
        "id": "tiny",
        "title": "Tiny",
        "licence": "Apache-2.0",
        "source": {"kind": "local", "path": path},
        **changes,
    }
    return Target.model_validate_json(json.dumps(fields))


@pytest.fixture
def gguf_source(tmp_path, make_tokenizer):
    tokenizer = make_tokenizer()
    model = small_model("llama", vocabulary=len(tokenizer))
    write_llama_file(tmp_path / "tiny.gguf", model, tokenizer)
    return model, tokenizer, FetchContext(tmp_path / "cache", (tmp_path,))


def test_a_gguf_file_becomes_an_ordinary_folder(gguf_source, capfd):
    model, tokenizer, context = gguf_source
    folder = ensure_target(declare("tiny.gguf"), context)
    assert capfd.readouterr() == ("", "")
    opened = AutoModelForCausalLM.from_pretrained(folder.path)
    with torch.inference_mode():
        torch.testing.assert_close(opened(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    assert opened.generation_config.eos_token_id == 2
    assert {parameter.dtype for parameter in opened.parameters()} == {torch.float32}
    again = AutoTokenizer.from_pretrained(folder.path)
    text = "ab abab<|im_end|>\n naïve 😀"
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template
    assert folder.path.parent == context.cache / "targets"
    assert (folder.model_type, folder.context_window) == ("llama", 256)
    assert folder.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert folder.bytes_on_disk == (folder.path / "model.safetensors").stat().st_size


def test_it_is_converted_once(gguf_source, monkeypatch):
    _, _, context = gguf_source
    calls = []
    convert = module._convert
    monkeypatch.setattr(module, "_convert", lambda *given: calls.append(given) or convert(*given))
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: ensure_target(declare("tiny.gguf"), context), range(2))
    (context.roots[0] / "tiny.gguf").unlink()
    assert first == second == ensure_target(declare("tiny.gguf"), context)
    assert len(calls) == 1


def test_an_interrupted_conversion_leaves_nothing(gguf_source, monkeypatch):
    _, _, context = gguf_source

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "weights_sha256", interrupted)  # weights and tokenizer are written by then
        with pytest.raises(KeyboardInterrupt):
            ensure_target(declare("tiny.gguf"), context)
    assert not [path for path in (context.cache / "targets").rglob("*") if path.suffix != ".lock"]
    assert ensure_target(declare("tiny.gguf"), context).path.is_dir()


def test_a_changed_folder_is_not_trusted(gguf_source):
    _, _, context = gguf_source
    folder = ensure_target(declare("tiny.gguf"), context).path
    with (folder / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(MissingDataError, match="was changed"):
        ensure_target(declare("tiny.gguf"), context)


@pytest.fixture
def local_source(tmp_path, make_tokenizer):
    model = small_model("gemma3")
    model.save_pretrained(tmp_path / "model")
    make_tokenizer(None).save_pretrained(tmp_path / "model")
    return model, FetchContext(tmp_path / "cache", (tmp_path,))


def test_a_folder_is_used_where_it_lies_and_hashed_once(local_source, monkeypatch):
    model, context = local_source
    target = declare("model", prompt_format="completion")
    folder = ensure_target(target, context)
    assert folder.path == context.roots[0] / "model"
    assert not (folder.path / "draftrank.json").exists()
    assert folder.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (folder.model_type, folder.context_window) == ("gemma3_text", 256)
    with monkeypatch.context() as patch:
        patch.setattr(module, "weights_sha256", lambda _: pytest.fail("hashed again"))
        assert ensure_target(target, context) == folder
    small_model("gemma3", seed=1).save_pretrained(folder.path)
    assert ensure_target(target, context).weights_sha256 != folder.weights_sha256


def test_the_hash_is_that_of_the_files(local_source):
    _, context = local_source
    folder = ensure_target(declare("model", prompt_format="completion"), context)
    expected = [["model.safetensors", file_sha256(folder.path / "model.safetensors")]]
    assert folder.weights_sha256 == sha256_of_json(expected)


def test_a_declared_window_narrows_and_never_widens(local_source):
    _, context = local_source
    assert (
        ensure_target(declare("model", prompt_format="completion", context_window=64), context).context_window
        == 64
    )
    with pytest.raises(InvalidInputError, match=r"holds 256 tokens, not 512.*at most 256"):
        ensure_target(declare("model", prompt_format="completion", context_window=512), context)


def test_a_chat_target_needs_a_chat_template(local_source):
    with pytest.raises(InvalidInputError, match=r"no chat template.*prompt_format: completion"):
        ensure_target(declare("model"), local_source[1])


def test_folders_without_safetensors_are_refused(local_source):
    _, context = local_source
    (context.roots[0] / "model" / "model.safetensors").rename(context.roots[0] / "model" / "weights.bin")
    with pytest.raises(MissingDataError, match=r"no \*\.safetensors"):
        ensure_target(declare("model"), context)


def test_folders_without_configuration_are_refused(local_source):
    _, context = local_source
    (context.roots[0] / "model" / "config.json").unlink()
    with pytest.raises(InvalidInputError, match="no model that transformers can open"):
        ensure_target(declare("model"), context)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(InvalidInputError, match="not a GGUF file"):
        ensure_target(declare("weights.bin"), FetchContext(tmp_path / "cache", (tmp_path,)))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    with pytest.raises(InvalidInputError, match="transformers cannot read it"):
        ensure_target(declare("broken.gguf"), FetchContext(tmp_path / "cache", (tmp_path,)))


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "drafts").glob("*/target.yaml")), ids=lambda path: path.parent.name
)
def test_the_declared_targets_are_valid(path):
    assert load_declaration(path, Target).id == path.parent.name
    assert path.read_text().startswith(
        "# yaml-language-server: $schema=../../suite/draftrank/catalog/schemas/target.json"
    )
