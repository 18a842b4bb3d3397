"""Folders of a PairRM: what is in them, and how they are read and written.

Two formats are about. `hf`: config.json is transformers' of a DeBERTa-v2 with a few keys more (llm-blender/PairRM-hf,
mightbe/Better-PairRM, and what `write` makes). `blender`: config.json is the ranker's own (llm-blender/PairRM,
LemiSt/PairRM-mdeberta-v3-base, llm-blender/pair-ranker); the shape of the backbone stands elsewhere. Tensor names are
the same in both. This module imports neither torch nor transformers at the top: `check` is for planning.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.engine.load import LOAD_ERRORS, load_fix, resolve_model_path
from prefloop.errors import UsageError

if TYPE_CHECKING:
    from prefloop.signals.pairrm.network import PairRMNetwork
    from prefloop.signals.pairrm.text import Encoder

CONFIG, BACKBONE = "config.json", "deberta_config.json"
SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
TOKENIZER, SPM, ADDED = "tokenizer.json", "spm.model", "added_tokens.json"

_ROOT, _HEAD = "pretrained_model.", "head_layer."
_EMBEDDINGS = f"{_ROOT}embeddings.word_embeddings.weight"
_ALLOWED_EXTRA = f"{_ROOT}embeddings.position_ids"  # older versions of transformers stored it
_PREFIX_KEYS = ("source_prefix_id", "cand1_prefix_id", "cand2_prefix_id", "cand_prefix_id")
_WHAT = "give a PairRM checkpoint, such as llm-blender/PairRM: config.json, tokenizer.json or spm.model, and weights"

# microsoft/deberta-v3-large, the backbone of the published PairRM: known, so no network is needed for its shape.
DEBERTA_V3_LARGE: dict[str, Any] = {
    "model_type": "deberta-v2",
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "position_buckets": 256,
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Config:
    """A checkpoint's config.json as read.

    Attributes:
        raw: its entries.
        format: hf or blender.
    """

    raw: dict[str, Any]
    format: str

    @property
    def limits(self) -> tuple[int, int]:
        """Most tokens of a source and of an answer. The 2023 ranker spells its keys with one underscore more."""
        return (
            int(self.raw.get("source_maxlength") or self.raw.get("source_max_length") or 1224),
            int(self.raw.get("candidate_maxlength") or self.raw.get("candidate_max_length") or 412),
        )


def read_config(folder: Path) -> Config:
    """The configuration of a folder.

    Raises:
        UsageError: there is none, or it is of another kind of model.
    """
    file = folder / CONFIG
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"has no configuration that can be read: {error}", where=str(file), fix=_WHAT) from error
    if raw.get("model_type") == "deberta-v2":
        return Config(raw, "hf")
    if raw.get("ranker_type") == "pairranker":
        return Config(raw, "blender")
    kind = raw.get("ranker_type") or raw.get("model_type")
    raise UsageError(f"is no PairRM but of type {kind!r}", where=str(file), fix=_WHAT)


def preflight(path: str) -> None:
    """`check` a local folder; a hub model is looked at when it is opened."""
    where = resolve_model_path(path)
    if os.path.isdir(where):
        check(Path(where))


def check(folder: Path) -> None:
    """Find out that a folder is no PairRM before hours of work; reads names, no weights.

    Raises:
        UsageError: configuration, weights, head or tokenizer are missing.
    """
    read_config(folder)
    for choices in ((SAFETENSORS, BIN), (TOKENIZER, SPM)):
        if not any((folder / name).is_file() for name in choices):
            raise UsageError(f"has neither {choices[0]} nor {choices[1]}", where=str(folder), fix=_WHAT)
    if (folder / SAFETENSORS).is_file():
        names = _header(folder / SAFETENSORS)
        if _EMBEDDINGS not in names or not any(name.startswith(_HEAD) for name in names):
            raise UsageError("its weights are not a PairRM's: no head over a backbone", where=str(folder), fix=_WHAT)


def _header(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file: a length of 8 bytes, then JSON."""
    try:
        with open(file, "rb") as stream:
            return list(json.loads(stream.read(int.from_bytes(stream.read(8), "little"))))
    except (OverflowError, MemoryError, ValueError) as error:
        raise UsageError("is no safetensors file, or cut off", where=str(file), fix="fetch it again") from error


def fetch(path: str, revision: str | None) -> Path:
    """The folder of a checkpoint: `path` itself, or the snapshot of a hub model, with what is needed of it.

    Raises:
        UsageError: there is neither.
    """
    if os.path.isdir(path):
        return Path(path)
    from huggingface_hub import snapshot_download

    small = [CONFIG, BACKBONE, TOKENIZER, SPM, ADDED]
    try:
        folder = Path(snapshot_download(path, revision=revision, allow_patterns=[*small, SAFETENSORS]))
        if not (folder / SAFETENSORS).is_file():
            folder = Path(snapshot_download(path, revision=revision, allow_patterns=[*small, BIN]))
    except LOAD_ERRORS as error:
        fix = load_fix(error, path) or _WHAT
        raise UsageError(f"cannot be fetched as a PairRM: {error}", where=path, fix=fix) from error
    return folder


def read(folder: Path) -> tuple[PairRMNetwork, Encoder]:
    """The network, in eval mode and in the precision of its file, and what encodes its texts.

    Raises:
        UsageError: the folder holds no complete PairRM.
    """
    from transformers import DebertaV2Config
    from transformers.initialization import no_init_weights

    from prefloop.signals.pairrm.network import PairRMNetwork
    from prefloop.signals.pairrm.text import Encoder, Limits

    config = read_config(folder)
    weights = _weights(folder)
    weights.pop(_ALLOWED_EXTRA, None)
    if _EMBEDDINGS not in weights or f"{_HEAD}4.weight" not in weights:
        raise UsageError("its weights are not a PairRM's: no head over a backbone", where=str(folder), fix=_WHAT)
    vocabulary = weights[_EMBEDDINGS].shape[0]
    backbone = DebertaV2Config.from_dict({**_backbone(folder, config), "vocab_size": vocabulary})
    with no_init_weights():
        n_tasks = weights[f"{_HEAD}4.weight"].shape[0]
        network = PairRMNetwork(backbone, n_tasks, float(config.raw.get("drop_out", 0.05)))
    try:
        network.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise UsageError(
            f"weights and configuration do not fit: {error}", where=str(folder), fix="check the download"
        ) from error
    # Files may mix precisions; a network has one.
    network.to(weights[_EMBEDDINGS].dtype)
    tokenizer = _tokenizer(folder, config, vocabulary)
    source, candidate = config.limits
    return network.eval(), Encoder(tokenizer, Limits(source, candidate), backbone.pad_token_id or 0)


def write(folder: Path, network: PairRMNetwork, encoder: Encoder) -> None:
    """Save in the hf format, with limits and tokenizer, so that reading needs nothing else."""
    from safetensors.torch import save_file

    from prefloop.signals.pairrm.text import PREFIXES

    folder.mkdir(parents=True, exist_ok=True)
    ids = {key: encoder.tokenizer.token_to_id(token) for key, token in zip(_PREFIX_KEYS, PREFIXES, strict=True)}
    raw = {
        **network.config.to_dict(),
        **ids,
        "architectures": ["DebertaV2PairRM"],
        "n_tasks": network.n_tasks,
        "drop_out": network.dropout,
        "source_maxlength": encoder.limits.source,
        "candidate_maxlength": encoder.limits.candidate,
    }
    (folder / CONFIG).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, str(folder / SAFETENSORS), metadata={"format": "pt"})
    encoder.tokenizer.save(str(folder / TOKENIZER))


def _weights(folder: Path) -> dict[str, Any]:
    """The tensors by name. A .bin is read without unpickling objects, and only where there are no safetensors."""
    import torch
    from safetensors.torch import load_file

    try:
        if (folder / SAFETENSORS).is_file():
            safe: dict[str, Any] = load_file(folder / SAFETENSORS)
            return safe
        found: dict[str, Any] = torch.load(folder / BIN, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load lets through the errors of a module that is not imported here
        raise UsageError(
            f"has no weights that can be read: {error}", where=str(folder), fix=load_fix(error, str(folder)) or _WHAT
        ) from error
    return found


def _backbone(folder: Path, config: Config) -> dict[str, Any]:
    """The entries of the DebertaV2Config."""
    if config.format == "hf":
        return config.raw
    beside = folder / BACKBONE
    if beside.is_file():
        found: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        return found
    name = str(config.raw.get("model_name", ""))
    if name.rstrip("/").endswith("deberta-v3-large"):
        return DEBERTA_V3_LARGE
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(name, CONFIG)
    except LOAD_ERRORS as error:
        raise UsageError(
            f"names {name!r} as its backbone, whose configuration cannot be had: {error}",
            where=str(folder / CONFIG),
            fix=f"put the backbone's config.json beside it as {BACKBONE}",
        ) from error
    fetched: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return fetched


def _tokenizer(folder: Path, config: Config, vocabulary: int) -> Any:
    """The checkpoint's tokenizer with the four prefixes in their places.

    Raises:
        UsageError: there is none, or its prefixes have other ids than the network was trained with.
    """
    from tokenizers import AddedToken, Tokenizer

    from prefloop.signals.pairrm import spm
    from prefloop.signals.pairrm.text import PREFIXES

    if (folder / TOKENIZER).is_file():
        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    elif (folder / SPM).is_file():
        tokenizer = spm.load(folder / SPM)
    else:
        raise UsageError(f"has neither {TOKENIZER} nor {SPM}", where=str(folder), fix=_WHAT)
    # Those it has already keep their ids.
    tokenizer.add_tokens([AddedToken(token, normalized=True, special=False) for token in PREFIXES])
    wanted = {t: config.raw[key] for t, key in zip(PREFIXES, _PREFIX_KEYS, strict=True) if key in config.raw}
    if not wanted and (folder / ADDED).is_file():
        added = json.loads((folder / ADDED).read_text(encoding="utf-8"))
        wanted = {token: added[token] for token in PREFIXES if token in added}
    for token in PREFIXES:
        found = tokenizer.get_vocab()[token]
        if found != wanted.get(token, found) or found >= vocabulary:
            raise UsageError(
                f"the tokenizer gives {token} the id {found}; the network has {vocabulary} embeddings and was trained "
                f"with {wanted.get(token, 'another')}",
                where=str(folder),
                fix="take tokenizer and weights from one checkpoint",
            )
    return tokenizer
