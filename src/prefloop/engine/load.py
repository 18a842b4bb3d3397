"""Where models come from and how they are loaded. Training, sampling and scoring all load through here.

Weights, those of adapters too, are read from safetensors only: loading other formats unpickles them. This module
imports neither torch nor transformers at the top.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import importlib.resources
import json
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from prefloop.config import ModelSection
from prefloop.config.signals import EMBEDDED_PAIRRM
from prefloop.errors import UsageError

if TYPE_CHECKING:
    import torch

SANDBOX = "sandbox"
LOAD_ERRORS = (OSError, ValueError, ImportError, SafetensorError)
"""What transformers raises where something is missing, broken, or needs a package that is not installed."""
_WHAT_TO_GIVE = "give a hub id, or the folder of a model with config.json and *.safetensors, or of a LoRA adapter"


# Package data by their places: importing the sandbox box from here would turn the import direction round.
EMBEDDED = {SANDBOX: "weights", EMBEDDED_PAIRRM: "pairrm"}


def resolve_model_path(path: str) -> str:
    """What to load for a section's `path`: the names of embedded models become their folders, the rest stays.

    Raises:
        UsageError: the installation lacks the embedded model.
    """
    if path not in EMBEDDED:
        return path
    folder = importlib.resources.files("prefloop").joinpath("sandbox", EMBEDDED[path], "v1")
    if not folder.joinpath("config.json").is_file():
        raise UsageError("the embedded model is not installed", where=str(folder), fix="install prefloop from a wheel")
    return str(folder)


def resolve_encoder_path(path: str) -> str:
    """What to load for a retriever's `path`: `sandbox` becomes the embedded encoder's folder, the rest stays.

    Raises:
        UsageError: the installation lacks the embedded encoder.
    """
    if path != SANDBOX:
        return path
    folder = importlib.resources.files("prefloop").joinpath("sandbox", "encoder", "v1")
    if not folder.joinpath("modules.json").is_file():
        raise UsageError(
            "the embedded encoder is not installed", where=str(folder), fix="install prefloop from a wheel"
        )
    return str(folder)


def adapter_base(path: str) -> tuple[str, str | None] | None:
    """(path, revision) of the base model of a folder that holds an unmerged adapter; None for any other path."""
    config = Path(path, "adapter_config.json")
    if not config.is_file():
        return None
    entries = json.loads(config.read_text(encoding="utf-8"))
    base = entries.get("base_model_name_or_path")
    if not base:
        raise UsageError("names no base model", where=str(config), fix="set base_model_name_or_path")
    return str(base), entries.get("revision")


def _source(section: ModelSection) -> tuple[str, str | None]:
    """(path, revision) of the weights to load: the model's, for an adapter's folder its base's."""
    path = resolve_model_path(section.path)
    base = adapter_base(path)
    return (path, section.revision) if base is None else (resolve_model_path(base[0]), base[1])


def choose_device(setting: str) -> torch.device:
    """The device that a section's `device` means.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    if setting == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(setting)
    except RuntimeError as error:
        raise UsageError(f"unknown device {setting!r}", fix="give auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device {setting}: torch {torch.__version__} finds no GPU",
            fix="set model.device=cpu, or install a driver and the build of torch for it (`prefloop doctor`)",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {setting}: the GPUs here are cuda:0 to cuda:{torch.cuda.device_count() - 1}",
            fix="give one of them; CUDA_VISIBLE_DEVICES hides the others",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(f"device {setting}: this machine has none", fix="set model.device=cpu")
    return device


def describe_device(device: torch.device) -> str:
    """The device in words, and for a processor its threads: rounding depends on both."""
    import torch

    if device.type == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def load_config(section: ModelSection) -> Any:
    """The configuration of a section's model, for an adapter that of its base; no weights are read.

    Raises:
        UsageError: there is none.
    """
    from transformers import AutoConfig

    source, revision = _source(section)
    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=section.trust_remote_code)
    except LOAD_ERRORS as error:
        raise UsageError(
            f"has no model configuration that can be read: {error}",
            where=section.path,
            fix=load_fix(error, source) or _WHAT_TO_GIVE,
        ) from error


def choose_dtype(section: ModelSection, device: torch.device) -> Any:
    """The `dtype` argument of `from_pretrained` for a section's `dtype` on a device.

    `auto` is float32 on a CPU, and on a GPU what the checkpoint's configuration says, with two exceptions: nothing
    said is float32, and float16, in which training's small gradients vanish, is bfloat16 (float32 where the GPU has
    no bfloat16). One rule for sampling and training, so the model that is trained is the one that was sampled from. A
    quantised checkpoint keeps the "auto" of transformers, since its kernels ask for a dtype of their own.
    """
    import torch

    if section.dtype != "auto":
        return getattr(torch, section.dtype)
    if device.type == "cpu":
        return torch.float32
    config = load_config(section)
    if getattr(config, "quantization_config", None) is not None:
        return "auto"
    dtype = config.dtype or config.get_text_config().dtype or torch.float32
    if dtype != torch.float16:
        return dtype
    lacks_bfloat16 = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float32 if lacks_bfloat16 else torch.bfloat16


def load_model(section: ModelSection, quantize: str | None = None) -> Any:
    """The section's causal model on its device, in eval mode; with an unmerged adapter as a PEFT model.

    Args:
        quantize: nf4: linear layers but the head are held in 4 bits, by bitsandbytes.

    Raises:
        UsageError: nothing is there, it is no causal model, or weights are missing from the checkpoint.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.peft_utils import find_adapter_config_file

    device = choose_device(section.device)
    source, revision = _source(section)
    dtype = choose_dtype(section, device)
    try:
        # transformers would load its base and then peft its weights, from a pickle if need be.
        if find_adapter_config_file(source, revision=revision) is not None:
            raise UsageError(
                f"{source} is an adapter; adapters are loaded from local folders, and upon plain models",
                where=section.path,
                fix=f"fetch it with `hf download {source} --local-dir FOLDER` and give the folder",
            )
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype=dtype,
            trust_remote_code=section.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **({} if quantize is None else _quantised(dtype, device)),
        )
    except LOAD_ERRORS as error:
        raise UsageError(
            f"cannot be loaded as a causal language model: {error}",
            where=section.path,
            fix=load_fix(error, source) or _WHAT_TO_GIVE,
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would go on with random weights in their place
        raise UsageError(
            f"the checkpoint lacks {len(missing)} weights, {missing[0]} first",
            where=section.path,
            fix="check that this is a causal model and that the download is complete",
        )
    path = resolve_model_path(section.path)
    if adapter_base(path) is not None:
        model = load_adapter(model, Path(path))
    if quantize is None:
        return model.to(device).eval()
    for module in model.modules():
        # On a CPU bitsandbytes repacks such layers when they evaluate, and gives wrong gradients from then on
        # (tests/train/test_qlora.py::test_it_is_the_training_of_the_rounded_weights).
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def _quantised(dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` that quantise while loading."""
    from transformers import BitsAndBytesConfig

    # 8 bits are no choice: bitsandbytes rounds activations there too, row by row of a batch, so the same answer has
    # another log-probability in another batch, and the first loss is not the formula's.
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": how, "device_map": {"": device}}


def load_adapter(model: Any, folder: Path) -> Any:
    """The model with the LoRA adapter of a local folder, as a PEFT model.

    Raises:
        UsageError: the folder has no safetensors, or the adapter belongs to another architecture.
    """
    from peft import PeftModel

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():  # peft would unpickle adapter_model.bin in its place
        raise UsageError(
            f"the adapter has no {weights.name}; weights are read from safetensors only",
            where=str(folder),
            fix="save it again with `save_pretrained(folder, safe_serialization=True)` where you trust it",
        )
    try:
        return PeftModel.from_pretrained(model, str(folder))
    except (*LOAD_ERRORS, RuntimeError) as error:
        raise UsageError(
            f"the adapter does not fit the model, or cannot be read: {error}",
            where=str(folder),
            fix="use it with the model that it was trained on, and check that its download is complete",
        ) from error


@contextlib.contextmanager
def freeing() -> Iterator[None]:
    """What was loaded in the block, or in a function decorated with this, is gone behind it unless somebody holds it.

    A model with a scorer refers to itself, and so does a trainer. Only the collector frees such memory, and it may not
    come by before the next model is loaded (tests/train/test_trainer.py::test_a_trained_model_is_freed).
    """
    try:
        yield
    finally:
        free()


def free() -> None:
    """Give back the memory of models that nobody holds any more."""
    import torch

    gc.collect()  # first: what sits in reference cycles still holds its tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _not_about_length(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Token indices sequence length is longer")


def quiet() -> None:
    """Keep transformers' own bars, and what libraries say of their own code, out of what people look at."""
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    # A text beyond the model's positions is refused or cut here, and that is told.
    logging.getLogger("transformers.tokenization_utils_base").addFilter(_not_about_length)
    # peft imports bitsandbytes with every adapter, and that misses a faster kernel for 4 bits on a CPU.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def load_fix(error: BaseException, name: str, known: Collection[str] = tuple(EMBEDDED)) -> str | None:
    """What to do about an error of loading `name`, where the error says which of the usual ones it is.

    Args:
        known: names that are neither hub ids nor folders, one of which may have been meant.
    """
    from huggingface_hub import errors

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(e, kinds) for e in chain)

    if below := _one_below(name):
        return f"the model is one folder below: give {below}"
    if met(errors.GatedRepoError):
        return f"accept the terms at https://huggingface.co/{name}, then log in with `hf auth login` or set HF_TOKEN"
    if met(errors.RepositoryNotFoundError):
        private = "for a private model log in with `hf auth login` or set HF_TOKEN"
        return f"{_no_folder(name, known)}{_WHAT_TO_GIVE}; {private}"
    if met(errors.RevisionNotFoundError):
        return "give a branch, tag or commit of the model as `revision`"
    if met(errors.HFValidationError):  # a path, by its form
        return f"{_no_folder(name, known)}{_WHAT_TO_GIVE}"
    if met(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        return (
            f"{_no_folder(name, known)}the model is not in the local cache and the hub cannot be reached: fetch it "
            f"once with `hf download {name}` where there is a network (and no HF_HUB_OFFLINE), or give a folder"
        )
    if met(ImportError):
        return "install the package that the error names; this checkpoint's format needs it"
    if met(SafetensorError):
        return "a weights file is cut off or no safetensors file: fetch it again"
    return None


def _one_below(name: str) -> Path | None:
    """The folder in this one that holds a model or an adapter, as in a stage's folder; None where it holds one."""
    if any(Path(name, config).is_file() for config in ("config.json", "adapter_config.json")):
        return None
    places = (("adapter", "adapter_config.json"), ("model", "config.json"))
    return next((Path(name, below) for below, config in places if Path(name, below, config).is_file()), None)


def _no_folder(name: str, known: Collection[str]) -> str:
    """That a name, which was asked of the hub, is no folder; and what may have been meant."""
    if Path(name).exists():
        return ""
    near = difflib.get_close_matches(name, known, n=1)
    return f"there is no folder {name} here; " + (f"did you mean {near[0]}? else: " if near else "")
