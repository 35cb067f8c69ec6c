"""Heads that the package `speculators` makes, and what its own modules compute of them. Run by a Python that has it:

python speculators_heads.py make FOLDER OPTIONS     a random head as the package saves it, below FOLDER/head
python speculators_heads.py compute FOLDER          what it computes of the head in FOLDER/head

Both write FOLDER/computed.safetensors: `embedded` [tokens, hidden], `states` [tokens, 3 · hidden], `hidden` [tokens,
hidden] and `logits` [tokens, draft vocabulary], float32. OPTIONS are JSON: `vocabulary`, `ids`, `norm_before_residual`,
`aux_layers`, `layer` (fields of a LlamaConfig).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from speculators import SpeculatorModel
from speculators.config import SpeculatorsConfig, VerifierConfig
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.proposals.greedy import GreedyTokenProposalConfig
from transformers import LlamaConfig

TOKENS = 7


def make(folder: Path, options: dict) -> Eagle3DraftModel:
    """Builds a random head and saves it."""
    config = Eagle3SpeculatorConfig(
        transformer_layer_config=LlamaConfig(**options["layer"]),
        draft_vocab_size=len(options["ids"]) or options["layer"]["vocab_size"],
        norm_before_residual=options["norm_before_residual"],
        eagle_aux_hidden_state_layer_ids=options["aux_layers"],
        speculators_config=SpeculatorsConfig(
            algorithm="eagle3",
            proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=3)],
            default_proposal_method="greedy",
            verifier=VerifierConfig(name_or_path=None, architectures=["LlamaForCausalLM"]),
        ),
    )
    torch.manual_seed(3)
    model = Eagle3DraftModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("verifier") or (
                name == "embed_tokens.weight" and not options["own_embedding"]
            ):
                continue
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
            if parameter.ndim == 1:
                parameter.add_(1.0)
    if options["ids"]:
        ids = torch.tensor(options["ids"])
        marked = torch.zeros(options["layer"]["vocab_size"], dtype=torch.bool)
        marked[ids] = True
        model.load_vocab_mappings(marked, ids - torch.arange(len(ids)))
    model.save_pretrained(folder / "head")
    return model


@torch.no_grad()
def compute(model: Eagle3DraftModel, folder: Path) -> None:
    """Runs one step of the package's own forward and keeps what its layer and its output see."""
    model.eval().float()
    generator = torch.Generator().manual_seed(5)
    embedding = torch.randn(model.embed_tokens.weight.shape, generator=generator)
    model.embed_tokens.weight.copy_(embedding)
    tokens = torch.randint(0, model.verifier_vocab_size, (1, TOKENS), generator=generator)
    states = torch.randn(1, TOKENS, model.fc.in_features, generator=generator)
    kept = {}
    model.layers[0].register_forward_hook(lambda _m, _i, output: kept.update(hidden=output))
    model.lm_head.register_forward_hook(lambda _m, _i, output: kept.update(logits=output))
    model(states, tokens, document_ids=torch.zeros(1, TOKENS, dtype=torch.long), ttt_steps=1)
    found = {
        "embedded": embedding[tokens[0]],
        "states": states[0],
        **{key: one[0] for key, one in kept.items()},
    }
    save_file({key: one.contiguous() for key, one in found.items()}, folder / "computed.safetensors")


if __name__ == "__main__":
    place = Path(sys.argv[2])
    if sys.argv[1] == "make":
        made = make(place, json.loads(sys.argv[3]))
    else:
        made = SpeculatorModel.from_pretrained(place / "head")
    compute(made, place)
