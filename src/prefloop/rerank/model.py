"""The cross-encoder: two logits while it learns, one when it is served.

It is a `sentence_transformers.CrossEncoder` throughout. While training, its last layer gives a logit for unaligned (0)
and one for aligned (1). `fold` turns that layer into one logit, w₁ − w₀ and b₁ − b₀: the same ranking
(tests/rerank/test_reranker_model.py), and a sequence-classification model with one label, which sentence-transformers,
TEI and vLLM serve. What stands below the last layer is the architecture's own.

The losses read the encoder's output H [U, L, d] by a hook on the backbone: its first position is the document's
representation, and gradients in H are what MGDA-UB weighs, whatever head stands on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prefloop.backends.reward import positions
from prefloop.config import RerankSection
from prefloop.engine.load import LOAD_ERRORS, choose_device, load_fix, resolve_encoder_path
from prefloop.errors import UsageError

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_WHAT_TO_GIVE = "give a hub id, or the folder of an encoder or cross-encoder with config.json and *.safetensors"


def load_two_logits(section: RerankSection, seed: int) -> CrossEncoder:
    """The model that training starts from, on its device, with two logits and no dropout in its head.

    A cross-encoder with one logit s gets −s/2 and s/2, whose difference is s: it starts as the reranker that it is.
    One with two logits keeps them, and any other gets a fresh last layer.

    Args:
        seed: of fresh layers.

    Raises:
        UsageError: there is no such model, or it is none that reads a pair at once and both ways.
    """
    from transformers import AutoConfig

    path, device = resolve_encoder_path(section.model), choose_device(section.device)
    try:
        config = AutoConfig.from_pretrained(
            path, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
        _check_encoder(section.model, config)
        classifies = any(map(_classifies, config.architectures or ()))
        torch.manual_seed(seed)
        if section.head == "linear":
            encoder = _linear(section, path, str(device))
        else:
            encoder = _standard(section, path, config.num_labels if classifies else 2, str(device))
    except LOAD_ERRORS as error:
        raise UsageError(
            f"cannot be loaded as an encoder: {error}",
            where=section.model,
            fix=load_fix(error, path) or _WHAT_TO_GIVE,
        ) from error
    _bound(encoder, section.max_length)
    _split(encoder)
    base = set(backbone(encoder).modules())
    for module in encoder.modules():
        if isinstance(module, nn.Dropout) and module not in base:
            module.p = 0.0
    return encoder.to(device).float()


def load_for_scoring(
    folder: str, device: str = "auto", max_length: int | None = None, *, trust_remote_code: bool = False
) -> CrossEncoder:
    """A finished reranker: any cross-encoder with one logit.

    Args:
        max_length: tokens of a pair; never more than the model has positions for.

    Raises:
        UsageError: there is none, or it has several logits.
    """
    from sentence_transformers import CrossEncoder

    path = resolve_encoder_path(folder)
    if not Path(path).exists() and path.count("/") > 1:
        raise UsageError("no such folder", where=folder, fix=_WHAT_TO_GIVE)
    try:
        with _silent():
            encoder = CrossEncoder(
                path,
                device=str(choose_device(device)),
                max_length=max_length,
                trust_remote_code=trust_remote_code,
                model_kwargs={"use_safetensors": True},
            )
    except LOAD_ERRORS as error:
        raise UsageError(
            f"cannot be loaded as a reranker: {error}", where=folder, fix=load_fix(error, path) or _WHAT_TO_GIVE
        ) from error
    if encoder.num_labels != 1:
        raise UsageError(
            f"has {encoder.num_labels} logits, and a reranker has one score",
            where=folder,
            fix="give a cross-encoder with one label; `prefloop rerank train` writes such",
        )
    model = encoder.transformers_model
    if _classifies(type(model).__name__) and not any(map(_classifies, model.config.architectures or ())):
        raise UsageError(
            f"is an encoder without a head ({', '.join(model.config.architectures or [model.config.model_type])}): "
            "its scores would be random",
            where=folder,
            fix="train one upon it: prefloop rerank train ROWS --model " + folder,
        )
    _bound(encoder, max_length)
    return encoder


def backbone(encoder: CrossEncoder) -> nn.Module:
    """The transformer below the head."""
    model: nn.Module = encoder.transformers_model.base_model
    return model


def shared_parameters(encoder: CrossEncoder) -> list[nn.Parameter]:
    """Weights that all losses share: embeddings and layers, not the pooler or the head."""
    return [p for name, p in backbone(encoder).named_parameters() if "pooler" not in name and p.requires_grad]


def forward(encoder: CrossEncoder, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The encoder's output H [U, L, d] and the two logits [U, 2] of a padded batch."""
    seen: list[Tensor] = []
    hook = backbone(encoder).register_forward_hook(lambda module, given, output: seen.append(output[0]))
    try:
        output = encoder(dict(features))
    finally:
        hook.remove()
    # A bare encoder has its output among the features, and is not called in a way that hooks see.
    hidden: Tensor = output["token_embeddings"] if "token_embeddings" in output else seen[-1]
    return hidden, output["scores"]


def save_folded(encoder: CrossEncoder, folder: Path, rank_by: str) -> None:
    """Write the model with one logit; the model itself stays as it is.

    Args:
        rank_by: difference: logit₁ − logit₀, whose sigmoid is the probability of aligned; logit1: logit₁ alone.
    """
    layer = last_layer(encoder)
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()

    def folded(values: Tensor) -> Tensor:
        return values[1:2] - values[0:1] if rank_by == "difference" else values[1:2].clone()

    one = nn.Linear(layer.in_features, 1, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        one.weight.copy_(folded(weight))
        if bias is not None:
            one.bias.copy_(folded(bias))
    activation = encoder.activation_fn
    _put(encoder, one)
    encoder.activation_fn = nn.Sigmoid()
    try:
        encoder.save_pretrained(str(folder), create_model_card=False)
    finally:
        _put(encoder, layer)
        encoder.activation_fn = activation


def _check_encoder(name: str, config: Any) -> None:
    decoder = any("CausalLM" in a for a in config.architectures or ()) or getattr(config, "is_decoder", False)
    if decoder or getattr(config, "is_encoder_decoder", False):
        raise UsageError(
            f"is no encoder ({', '.join(config.architectures or [config.model_type])}): its first token sees nothing",
            where=name,
            fix="give a BERT-like encoder or a cross-encoder upon one, such as BAAI/bge-reranker-v2-m3",
        )


def _classifies(architecture: str) -> bool:
    return architecture.endswith("ForSequenceClassification")


def _bound(encoder: CrossEncoder, wanted: int | None) -> None:
    """Longer pairs are cut at what is wanted, and in any case at the model's positions."""
    known = [wanted, encoder.max_seq_length, positions(encoder.transformers_model, encoder.tokenizer)]
    if given := [n for n in known if n]:
        encoder.max_seq_length = min(given)


def _standard(section: RerankSection, path: str, labels: int, device: str) -> CrossEncoder:
    from sentence_transformers import CrossEncoder

    arguments: dict[str, Any] = {
        "device": device,
        "num_labels": labels,
        "max_length": section.max_length,
        "revision": section.revision,
        "trust_remote_code": section.trust_remote_code,
        "model_kwargs": {"use_safetensors": True, "dtype": torch.float32},
    }
    with _silent():
        return CrossEncoder(path, **arguments)


def _linear(section: RerankSection, path: str, device: str) -> CrossEncoder:
    """The published form: a fresh linear layer on the first token, without bias towards any class."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    shared = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    with _silent():
        transformer = Transformer(
            path,
            max_seq_length=section.max_length,
            model_kwargs={**shared, "use_safetensors": True, "dtype": torch.float32},
            processor_kwargs=shared,
            config_kwargs=shared,
        )
    width = transformer.get_embedding_dimension()
    dense = Dense(width, 2, activation_function=None, module_output_name="scores")
    return CrossEncoder(modules=[transformer, Pooling(width, "cls"), dense], device=device)


@contextmanager
def _silent() -> Iterator[None]:
    """Loading an encoder for classification makes its last layer new, and libraries warn; it is wanted here."""
    import logging

    from transformers.utils import logging as transformers_logging

    level, other = transformers_logging.get_verbosity(), logging.getLogger("sentence_transformers")
    before = other.level
    transformers_logging.set_verbosity_error()
    other.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        other.setLevel(before)


def last_layer(encoder: CrossEncoder) -> nn.Linear:
    """The linear layer that gives the logits."""
    parent, name = _slot(encoder)
    layer = getattr(parent, name)
    assert isinstance(layer, nn.Linear)
    return layer


def _slot(encoder: CrossEncoder) -> tuple[nn.Module, str]:
    """Where the last layer stands: the last linear one outside the backbone that is as wide as there are labels."""
    inside = set(backbone(encoder).modules())
    labels = encoder.num_labels
    found = None
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear) and module not in inside and module.out_features == labels:
            found = name
    if found is None:
        raise UsageError(
            f"its head has no linear layer with {labels} outputs that could be folded",
            where=type(encoder.transformers_model).__name__,
            fix="set head=linear",
        )
    parent, _, last = found.rpartition(".")
    return encoder.get_submodule(parent), last


def _put(encoder: CrossEncoder, layer: nn.Linear) -> None:
    """Set the last layer, and the number of labels that goes with it."""
    slot = _slot(encoder)
    parent: Any = slot[0]
    setattr(parent, slot[1], layer)
    if hasattr(parent, "out_features"):
        parent.out_features = layer.out_features
    model: Any = encoder.transformers_model
    model.config.num_labels = layer.out_features
    if hasattr(model, "num_labels"):
        model.num_labels = layer.out_features


def _split(encoder: CrossEncoder) -> None:
    """Two logits, whatever there was."""
    layer = last_layer(encoder)
    if layer.out_features == 2:
        return
    two = nn.Linear(layer.in_features, 2, bias=layer.bias is not None)
    with torch.no_grad():
        if layer.out_features == 1:
            two.weight.copy_(torch.cat([-layer.weight.float(), layer.weight.float()]) / 2)
            if layer.bias is not None:
                two.bias.copy_(torch.cat([-layer.bias.float(), layer.bias.float()]) / 2)
    _put(encoder, two)
