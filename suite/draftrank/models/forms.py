"""What is done to a saved draft when it is loaded, where an ordinary model cannot express it.

A form is one line of JSON in the draft's `draftrank.json`. Building applies it to the model in memory and
notes it; loading applies it again to the ordinary model that the configuration describes, and then fills
the new parts from the folder's safetensors. A draft without forms is an ordinary folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from draftrank.catalog.base import Declared
from draftrank.errors import BuildError
from draftrank.models.eagle import Eagle3Fusion, Eagle3Layer
from draftrank.models.matrices import is_transposed, matrix, unfolded
from draftrank.models.quiet import quiet_transformers
from draftrank.models.resizing import replace_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FEATURES = "feature_fusion"
"""Name of the module, in the model, that joins embeddings and hidden states of the target."""


class LowRankLinear(nn.Module):
    """A linear layer as the product of two thin ones."""

    def __init__(self, inputs: int, rank: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, rank, bias=False)
        self.second = nn.Linear(rank, outputs, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        result: Tensor = self.second(self.first(hidden))
        return result


class TrimmedHead(nn.Module):
    """A head over some tokens that answers for all: the others get minus infinity, probability 0.

    So every rule of verification holds as it is, and token ids need no translation.
    """

    token_ids: Tensor
    """int64 [kept tokens], ascending."""

    def __init__(self, projection: nn.Module, kept: int, vocabulary: int) -> None:
        """Wraps a projection [..., hidden] to [..., kept] that answers for the first `kept` of so many tokens, until
        `token_ids` says otherwise."""
        super().__init__()
        self.projection = projection
        self.register_buffer("token_ids", torch.arange(kept))
        self.vocabulary = vocabulary

    @property
    def weight(self) -> Tensor:
        """Of the projection, since the code of some models (Mamba) asks for its head's dtype."""
        found: Tensor = self.projection.weight  # type: ignore[assignment]
        return found

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., hidden] to logits [..., vocabulary]."""
        return self.spread(self.projection(hidden))

    def spread(self, kept: Tensor) -> Tensor:
        """[..., kept tokens] to logits [..., vocabulary]."""
        full = kept.new_full((*kept.shape[:-1], self.vocabulary), float("-inf"))
        return full.index_copy_(-1, self.token_ids, kept)


class PaddedHead(TrimmedHead):
    """A trimmed head over the first tokens."""

    def spread(self, kept: Tensor) -> Tensor:
        """See `TrimmedHead.spread`; of 151,936 tokens this takes a tenth of the time."""
        missing = self.vocabulary - kept.shape[-1]
        return nn.functional.pad(kept, (0, missing), value=float("-inf"))


class _Form(Declared):
    def prepare(self, model: PreTrainedModel) -> tuple[str, ...]:
        """Makes empty parts in a model; returns their names, by which the folder's weights fill them."""
        return ()


class LowRankForm(_Form):
    """A linear layer is two thin ones."""

    form: Literal["low_rank"] = "low_rank"
    module: str
    """Name in the model."""
    rank: int
    """Width between the two."""

    def prepare(self, model: PreTrainedModel) -> tuple[str, ...]:
        """See `_Form.prepare`: a low-rank layer."""
        found = model.get_submodule(self.module)
        outputs, inputs = matrix(found).shape
        thin = LowRankLinear(inputs, self.rank, outputs, bias=found.bias is not None)
        replace_module(model, self.module, _like(thin, found))
        return (self.module,)


class TrimmedHeadForm(_Form):
    """The head knows some tokens only."""

    form: Literal["trimmed_head"] = "trimmed_head"
    module: str
    """The head's name in the model."""
    kept: int
    """How many tokens it knows."""
    rank: int | None = None
    """Width between the two layers it is made of, if it is factorized as well."""

    def prepare(self, model: PreTrainedModel) -> tuple[str, ...]:
        """See `_Form.prepare`: a trimmed head."""
        found = model.get_submodule(self.module)
        vocabulary, inputs = matrix(found).shape
        bias = found.bias is not None
        projection: nn.Module = (
            nn.Linear(inputs, self.kept, bias=bias)
            if self.rank is None
            else LowRankLinear(inputs, self.rank, self.kept, bias=bias)
        )
        trimmed = TrimmedHead(projection, self.kept, vocabulary)
        replace_module(model, self.module, _like(trimmed, found))
        return (self.module,)


class TiedLayersForm(_Form):
    """Several layers use one layer's weights."""

    form: Literal["tied_layers"] = "tied_layers"
    layers: str
    """Name of the list of layers in the model."""
    sources: tuple[int, ...]
    """For each layer, whose weights it uses."""

    def prepare(self, model: PreTrainedModel) -> tuple[str, ...]:
        """Makes layers share their parameters; none is to be filled."""
        layers = model.get_submodule(self.layers)
        assert isinstance(layers, nn.ModuleList)
        for index, source in enumerate(self.sources):
            if index != source:
                share_parameters(layers[index], layers[source])
        return ()


class Eagle3Form(_Form):
    """A Llama model of one layer is an EAGLE-3 head."""

    form: Literal["eagle3"] = "eagle3"
    layers: tuple[int, ...]
    """Layers of the target whose outputs are read, from 0."""
    target_width: int | None = None
    """Hidden size of the target; absent: the head's own."""
    norm_before_residual: bool = False
    """See `Eagle3Layer`."""
    bias: bool = False
    """Whether `fc` adds one."""

    def prepare(self, model: PreTrainedModel) -> tuple[str, ...]:
        """See `_Form.prepare`: a layer, and an untrained fusion beside it."""
        embedding, width = model.get_input_embeddings(), int(model.config.hidden_size)
        layers = model.get_submodule("model.layers")
        assert isinstance(layers, nn.ModuleList)
        made = Eagle3Layer(layers[0], width, norm_before_residual=self.norm_before_residual)
        layers[0] = _like(made, embedding)
        fusion = Eagle3Fusion(width, self.layers, self.target_width, bias=self.bias)
        model.add_module(FEATURES, _like(fusion, embedding))
        return ("model.layers.0", FEATURES)


class DynamicInt8Form(_Form):
    """Linear layers are torch's dynamic int8 ones, on CPU, which `loading.load_model` makes last."""

    form: Literal["dynamic_int8"] = "dynamic_int8"
    keep_precise: tuple[str, ...] = ()
    """Ends of the names of linear layers that stay as they are."""


class SemiStructuredForm(_Form):
    """Of every four weights of these layers two are zero: a GPU multiplies them by its sparse kernels in
    half precision; elsewhere the model is an ordinary one."""

    form: Literal["semi_structured"] = "semi_structured"
    modules: tuple[str, ...]
    """Names in the model."""


class GgufForm(_Form):
    """The draft is a GGUF file, and llama.cpp runs it; there is nothing for torch to load."""

    form: Literal["gguf"] = "gguf"


Form = Annotated[
    LowRankForm
    | TrimmedHeadForm
    | Eagle3Form
    | TiedLayersForm
    | DynamicInt8Form
    | SemiStructuredForm
    | GgufForm,
    Field(discriminator="form"),
]
FORMS: TypeAdapter[list[Form]] = TypeAdapter(list[Form])

_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")


def share_parameters(layer: nn.Module, source: nn.Module) -> None:
    """Makes every parameter of a layer the one of the same name in another."""
    for name, parameter in list(source.named_parameters()):
        parent, _, attribute = name.rpartition(".")
        setattr(layer.get_submodule(parent), attribute, parameter)


def fill(model: PreTrainedModel, names: Sequence[str], saved: Mapping[str, Tensor]) -> None:
    """Gives replaced modules their weights.

    Raises:
        BuildError: a weight is absent, has another shape, or names tokens that are not there.
    """
    for name in names:
        module = model.get_submodule(name)
        prefix = f"{name}."
        state = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
        try:
            module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            raise BuildError(f"{name} cannot be filled from the folder's weights: {error}") from error
        if isinstance(module, TrimmedHead):
            ids = module.token_ids.tolist()
            if ids != sorted(set(ids)) or ids[0] < 0 or ids[-1] >= module.vocabulary:
                raise BuildError(
                    f"{name}.token_ids in the folder's weights are not ascending ids below {module.vocabulary}: build "
                    "the draft again"
                )


def use_sparse_kernels(model: nn.Module, names: Sequence[str]) -> None:
    """Gives 2:4 sparse linear layers on a GPU the form that its sparse tensor cores multiply, in place.

    Layers that are not nn.Linear, or whose shape the kernels refuse, stay as they are.
    """
    from torch.sparse import to_sparse_semi_structured

    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear):
            try:
                sparse = to_sparse_semi_structured(module.weight.detach())
            except (RuntimeError, ValueError):
                continue
            module.weight = nn.Parameter(sparse, requires_grad=False)


def int8_engine() -> str:
    """What torch multiplies int8 matrices by on this processor.

    Raises:
        BuildError: it has nothing.
    """
    supported = torch.backends.quantized.supported_engines
    engine = next((name for name in _ENGINES if name in supported), None)
    if engine is None:
        raise BuildError("this build of torch has no int8 engine for this processor: leave quantize out")
    return engine


def quantize_linear_layers(model: nn.Module, keep_precise: Sequence[str] = ()) -> None:
    """Replaces linear layers of an fp32 model by their dynamic int8 form, in place, but for those with names that end so:
    int8 weights with one scale per output channel, activations quantized per forward.

    A head that shares the embedding's weight gets its own int8 copy; the embedding stays fp32. Matrices
    whose weights the model's code reads by itself, as in state-space layers, stay as they are.

    Raises:
        BuildError: torch has no quantized engine for this processor.
    """
    from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

    engine = int8_engine()
    if torch.backends.quantized.engine not in _ENGINES:
        torch.backends.quantized.engine = engine
    for name, module in list(model.named_modules()):
        if is_transposed(module):
            replace_module(model, name, unfolded(module))
    read = weights_read_directly(model)
    chosen = {
        name: per_channel_dynamic_qconfig
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in read and not name.endswith(tuple(keep_precise))
    }
    with quiet_transformers():
        quantize_dynamic(model, chosen, dtype=torch.qint8, inplace=True)  # type: ignore[no-untyped-call]


@torch.inference_mode()
def weights_read_directly(model: nn.Module) -> set[nn.Module]:
    """Linear layers whose weight something else than their own forward reads while the model runs."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    running: set[nn.Module] = set()
    found: set[nn.Module] = set()

    def enter(module: nn.Module, _arguments: object) -> None:
        running.add(module)

    def leave(module: nn.Module, _arguments: object, _output: object) -> None:
        running.discard(module)

    def spy(module: nn.Module, name: str) -> object:
        if name == "weight" and module not in running:
            found.add(module)
        return nn.Module.__getattr__(module, name)

    with ExitStack() as hooks:
        for one in linear:
            hooks.enter_context(one.register_forward_pre_hook(enter))
            hooks.enter_context(one.register_forward_hook(leave))
        nn.Linear.__getattr__ = spy  # type: ignore[method-assign, assignment]
        try:
            ids = torch.zeros(1, 8, dtype=torch.int64, device=next(model.parameters()).device)
            model(ids, use_cache=False)
        finally:
            del nn.Linear.__getattr__
    return found


def _like(module: nn.Module, original: nn.Module) -> nn.Module:
    """In the original's dtype and on its device, for inference."""
    weight = original.weight
    assert isinstance(weight, Tensor)
    return module.to(weight.device, weight.dtype).eval().requires_grad_(False)
