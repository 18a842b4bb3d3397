"""Random models of real architectures, small enough for a test, saved as ordinary Hugging Face folders.

`make_tiny_model(folder, arch)` writes weights, configuration, a byte-level BPE tokenizer trained on the spot and a
chat template in the manner of the family. Between them the families cover what differs in the wild:

arch      template           BOS comes from   system role   attention
llama     header tokens      both             yes           grouped-query
qwen3     ChatML             nobody           yes           grouped-query, query/key norms
mistral   [INST]             the tokenizer    no (dropped)  sliding window of 8
gemma3    turns              the template     no (raises)   sliding window of 8 and full, mixed; tied head
gpt_neox  none (base model)  nobody           -             parallel residual; untied head
phi       ChatML             nobody           yes           partial rotary; head with bias
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

CORPUS = [
    "The quick brown fox jumps over the lazy dog and says hello to the kind world.",
    "What is the capital of France? The capital of France is Paris, and it is a large city.",
    "System: you are a helpful assistant. User: please help me. Assistant: yes, of course, I will help you.",
    "Answer with A or B. One two three four five six seven eight nine ten. 1 2 3 4 5 6 7 8 9 0",
]

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

# special tokens (ids 0, 1, 2, … in this order), bos, eos, pad, template, does the tokenizer add BOS, end of turn
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "special": ["<pad>", "<|begin|>", "<|eos|>", "<|start|>", "<|end|>", "<|eot|>"],
        "bos": "<|begin|>",
        "eos": "<|eos|>",
        "pad": "<pad>",
        "template": HEADERS,
        "adds_bos": True,
        "stops": ["<|eos|>", "<|eot|>"],
    },
    "qwen3": {
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "bos": None,
        "eos": "<|im_end|>",
        "pad": "<|endoftext|>",
        "template": CHATML,
        "adds_bos": False,
        "stops": ["<|im_end|>", "<|endoftext|>"],
        "config": {"head_dim": 16},
    },
    "mistral": {
        "special": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        "bos": "<s>",
        "eos": "</s>",
        "pad": None,
        "template": INST,
        "adds_bos": True,
        "stops": ["</s>"],
        "config": {"sliding_window": 8},
    },
    "gemma3": {
        "special": ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        "bos": "<bos>",
        "eos": "<eos>",
        "pad": "<pad>",
        "template": TURNS,
        "adds_bos": False,
        "stops": ["<eos>", "<end_of_turn>"],
        "config": {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "model_type": "gemma3_text",
    },
    "gpt_neox": {
        "special": ["<|endoftext|>", "<|padding|>"],
        "bos": "<|endoftext|>",
        "eos": "<|endoftext|>",
        "pad": None,
        "template": None,
        "adds_bos": False,
        "stops": ["<|endoftext|>"],
    },
    "phi": {
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "bos": "<|endoftext|>",
        "eos": "<|endoftext|>",
        "pad": None,
        "template": CHATML,
        "adds_bos": False,
        "stops": ["<|endoftext|>"],
    },
}
ARCHITECTURES = tuple(FAMILIES)


def make_tiny_tokenizer(arch: str, *, vocab: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with the family's special tokens and chat template."""
    family = FAMILIES[arch]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=family["special"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 8, trainer)
    if family["adds_bos"]:
        bos = family["bos"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family["bos"],
        eos_token=family["eos"],
        pad_token=family["pad"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = family["template"]
    return fast


def make_tiny_model(
    folder: Path | str,
    arch: str,
    *,
    vocab: int = 320,
    layers: int = 2,
    width: int = 32,
    seed: int = 0,
    max_positions: int = 256,
    spread: float = 8.0,
    **config: Any,
) -> Path:
    """Write a random model and return its folder. The same arguments give the same weights.

    Args:
        folder: where to write; made when missing.
        arch: one of ARCHITECTURES.
        vocab: entries of the vocabulary, at least 256 bytes and the special tokens; 300 to 512 is sensible.
        spread: factor on the usual initial weights. Logits of freshly initialised models are nearly equal, and a
            comparison of two nearly uniform distributions shows little; 8 makes them differ by some nats.
        config: further entries of the model's configuration.
    """
    folder, family = Path(folder), FAMILIES[arch]
    tokenizer = make_tiny_tokenizer(arch, vocab=vocab)
    ids = {
        name: None if family[name] is None else tokenizer.convert_tokens_to_ids(family[name])
        for name in ("bos", "eos", "pad")
    }
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if arch in ("gpt_neox", "phi") else 2,
        "max_position_embeddings": max_positions,
        **{f"{name}_token_id": value for name, value in ids.items()},
        **family.get("config", {}),
        **config,
    }
    if arch == "gpt_neox":
        del settings["num_key_value_heads"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family.get("model_type", arch), **settings), dtype=torch.float32
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(spread)
                elif parameter.abs().max() == 0 and arch in ("phi", "gpt_neox"):
                    parameter.normal_(std=0.1)  # biases start at zero, which would hide a forgotten one
    model.generation_config = GenerationConfig(
        bos_token_id=ids["bos"],
        eos_token_id=[tokenizer.convert_tokens_to_ids(token) for token in family["stops"]],
        pad_token_id=ids["pad"],
        # Sampling defaults such as real checkpoints carry; nothing of ours may be changed by them.
        do_sample=True,
        temperature=0.3,
        top_k=2,
        top_p=0.5,
        repetition_penalty=1.7,
    )
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def _session_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny_models_")  # removed when the interpreter ends


@functools.cache
def tiny_model_folder(arch: str, **settings: Any) -> Path:
    """A folder made by `make_tiny_model`, made once in a test session, to be read only (or `copy_tiny_model`)."""
    name = "-".join([arch, *(f"{k}={v}" for k, v in sorted(settings.items()))])
    return make_tiny_model(Path(_session_folder().name) / name, arch, **settings)


def copy_tiny_model(folder: Path, arch: str, **settings: Any) -> Path:
    """A copy of a session model that the caller may change."""
    return Path(shutil.copytree(tiny_model_folder(arch, **settings), folder))


def load_tiny(arch: str, **settings: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A fresh (model in eval mode, tokenizer) from the session's folder."""
    from transformers import AutoTokenizer

    folder = tiny_model_folder(arch, **settings)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)
