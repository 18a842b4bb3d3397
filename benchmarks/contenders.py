"""The contenders of `benchmarks.dpo`: each takes the same token ids and makes one optimiser step of them.

All have the same weights at the start, the same reference log-probabilities, the same AdamW (fused, which is what both
trainers use by default) and the same clipping. What differs is the way from ids to gradients: `backward`. Everything
on that way counts: making the batch, forward, loss, metrics, backward.
"""

from __future__ import annotations

import copy
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from prefloop.config import DpoObjectiveSection, ListObjectiveSection, LoraSection
from prefloop.engine import flops
from prefloop.engine.logprob import attach_scorer
from prefloop.engine.sharing import check_sharing, choose
from prefloop.train import adapters
from prefloop.train.batches import Collator
from prefloop.train.encode import Example
from prefloop.train.meter import Meter
from prefloop.train.precision import Precision
from prefloop.train.rhythm import Plan, Rhythm
from prefloop.train.shift import RewardShift
from prefloop.train.steps import Cut, Micro, StepSampler
from prefloop.train.trainer import PreferenceTrainer

BETA, CLIP, RATE = 0.1, 1.0, 1e-6  # the rate is small: a hundred steps on one batch must not change the work

CPU = torch.device("cpu")
CPU_MODEL: dict[str, Any] = {  # Llama 2's vocabulary and its ratio of inner to outer width, 11008 / 4096
    "vocab_size": 32_000,
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
LLAMA_3_8B: dict[str, Any] = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}
LORA = LoraSection(r=16, alpha=32, dropout=0.0)


@dataclass(frozen=True)
class Case:
    """What one step is made of.

    Attributes:
        prompt, response: tokens of each prompt and of each response; all alike, so that nobody pads.
        responses: to each prompt. Two make a DPO pair; more a list, for the Plackett-Luce loss.
        batch: prompts.
        model: entries of a LlamaConfig.
        lora: adapters on a frozen base instead of training all weights.
    """

    prompt: int
    response: int
    responses: int = 2
    batch: int = 4
    model: dict[str, Any] = field(default_factory=lambda: CPU_MODEL)
    lora: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU

    @property
    def name(self) -> str:
        """Such as 512/64, or 512/64x5."""
        return f"{self.prompt}/{self.response}" + (f"x{self.responses}" if self.responses != 2 else "")

    @property
    def tokens(self) -> int:
        """Of all responses, each with its own prompt: what a step is worth, however it is computed."""
        return self.batch * self.responses * (self.prompt + self.response)

    @property
    def scored(self) -> int:
        """Tokens of all responses."""
        return self.batch * self.responses * self.response

    @property
    def lengths(self) -> flops.Lengths:
        return [(self.prompt, [self.response] * self.responses)] * self.batch

    @property
    def passes(self) -> flops.Passes:
        return flops.ADAPTER if self.lora else flops.TRAIN

    def examples(self) -> list[Example]:
        """Random ids. The reference is a few nats from the policy, so that every row's gradient is its own."""
        draw = random.Random(0)
        vocabulary = self.model["vocab_size"]

        def ids(n: int) -> tuple[int, ...]:
            return tuple(draw.randrange(1, vocabulary) for _ in range(n))

        level = -self.response * float(np.log(vocabulary))
        return [
            Example(
                id=str(row),
                prompt_ids=ids(self.prompt),
                responses=tuple(ids(self.response) for _ in range(self.responses)),
                reference=tuple(level + draw.gauss(0, 5) for _ in range(self.responses)),
            )
            for row in range(self.batch)
        ]

    def base(self) -> nn.Module:
        """The model all contenders start from."""
        torch.manual_seed(0)
        longest = self.prompt + self.response
        config = LlamaConfig(**self.model, max_position_embeddings=longest, pad_token_id=0, bos_token_id=1)
        with torch.device(self.device):
            before = torch.get_default_dtype()
            torch.set_default_dtype(self.dtype)
            try:
                model = LlamaForCausalLM(config)
            finally:
                torch.set_default_dtype(before)
        model.config._attn_implementation = "sdpa"
        return model.requires_grad_(not self.lora)


class Contender:
    """A model with its optimiser and one way from ids to gradients.

    Attributes:
        operations: floating-point operations that this way needs for a step, without the optimiser.
    """

    name: str
    model: nn.Module
    operations: float
    backward: Callable[[], Tensor]

    def _optimise(self) -> None:
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._optimiser = torch.optim.AdamW(self._parameters, lr=RATE, weight_decay=0.0, fused=True)

    def before_update(self) -> None:
        """What a trainer does with the gradients besides clipping."""

    def step(self) -> Tensor:
        """One optimiser step; returns the loss."""
        loss = self.backward()
        self.before_update()
        torch.nn.utils.clip_grad_norm_(self._parameters, CLIP)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return loss

    def gradients(self) -> tuple[float, dict[str, Tensor]]:
        """Loss and gradients of one backward pass; no step is made."""
        loss = float(self.backward())
        found = {n: p.grad for n, p in self.model.named_parameters() if p.requires_grad and p.grad is not None}
        self._optimiser.zero_grad(set_to_none=True)
        return loss, found


class Ours(Contender):
    """`PreferenceTrainer`'s own step; `share=False` keeps every response behind its own copy of the prompt."""

    def __init__(self, case: Case, base: nn.Module, *, share: bool = True) -> None:
        self.name = "ours" if share else "concatenated"
        model: Any = attach_scorer(_copy(base))
        sharing = check_sharing(model)
        if not share:
            sharing = replace(sharing, kinds=())
        if case.lora:
            torch.manual_seed(0)
            model = adapters.add_lora(model, LORA)
        self.kind = choose(case.lengths, sharing)
        self.operations = flops.count(case.lengths, sharing.shape, self.kind, case.passes).total
        examples = case.examples()
        sampler = StepSampler(np.array([e.tokens for e in examples]), case.batch, Cut(case.batch), seed=0)
        collate = Collator(0, sharing, passes=case.passes)
        self._folder = tempfile.TemporaryDirectory()
        objective = DpoObjectiveSection if case.responses == 2 else ListObjectiveSection
        meter = Meter()
        plan = Plan(1, 1, 0, log=1, save=1, validate=False)
        shift = RewardShift()
        self._rhythm = Rhythm(plan, meter, sampler, Path(self._folder.name), "", lambda done, total: None, shift)
        self.trainer = PreferenceTrainer(
            model,
            _arguments(TrainingArguments, self._folder.name, case),
            examples,  # type: ignore[arg-type]
            [],  # type: ignore[arg-type]
            objective(beta=BETA),
            collate=collate,
            precision=Precision(case.device, case.dtype),
            sampler=sampler,
            meter=meter,
            rhythm=self._rhythm,
            shift=shift,
            check_start=False,
            apart=False,
            on_log=lambda record: None,
        )
        self.model = model
        self._optimise()
        step = [(Micro(tuple(range(case.batch))), examples)]

        def backward() -> Tensor:
            (batches,), items = self.trainer.get_batch_samples(iter([collate(step)]), 1, case.device)
            return self.trainer.training_step(model, batches, items)

        self.backward = backward

    def before_update(self) -> None:
        self._rhythm.on_pre_optimizer_step(None, None, self.trainer.state, model=self.model)  # type: ignore[arg-type]


class Trl(Contender):
    """TRL's `DPOTrainer`: its collator, its `training_step`, reference precomputed, no gradient checkpointing."""

    name = "trl"

    def __init__(self, case: Case, base: nn.Module) -> None:
        import trl
        from datasets import Dataset, disable_progress_bars
        from peft import LoraConfig

        disable_progress_bars()
        self._folder = tempfile.TemporaryDirectory()
        settings: dict[str, Any] = {
            "beta": BETA,
            "loss_type": ["sigmoid"],
            "precompute_ref_log_probs": True,
            "max_length": None,
            "gradient_checkpointing": False,
            "bf16": case.dtype == torch.bfloat16,
        }
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=LORA.r,
            lora_alpha=LORA.alpha,
            lora_dropout=LORA.dropout,
            target_modules="all-linear",
            bias="none",
        )
        self.trainer = trl.DPOTrainer(
            model=_copy(base),
            args=_arguments(trl.DPOConfig, self._folder.name, case, **settings),
            # A row to be constructed with; the rows of the case go through its collator as ids.
            train_dataset=Dataset.from_list([{"prompt": "a ", "chosen": "b ", "rejected": "c "}]),
            processing_class=_tokenizer(),
            peft_config=lora if case.lora else None,
        )
        self.trainer.current_gradient_accumulation_steps = 1  # `train` would set it
        self.model = self.trainer.model
        if case.lora:
            torch.manual_seed(0)
            start = adapters.add_lora(_copy(base), LORA).state_dict()
            start = {name: value for name, value in start.items() if "lora_" in name}
            assert not self.model.load_state_dict(start, strict=False).unexpected_keys
        self._optimise()
        decoder, head = (self.model.get_decoder(), self.model.get_output_embeddings())
        shape = flops.ModelShape.of(decoder, head)
        count = flops.count(case.lengths, shape, "concatenated", case.passes)
        # Its kernel scores the answers' positions on a GPU with Triton, and every position elsewhere.
        everywhere = case.device.type != "cuda"
        self.operations = count.total - count.head + count.head * (case.tokens / case.scored if everywhere else 1)
        rows = [
            {
                "prompt_ids": list(e.prompt_ids),
                "chosen_ids": list(e.responses[0]),
                "rejected_ids": list(e.responses[1]),
                "ref_chosen_logps": e.reference[0],
                "ref_rejected_logps": e.reference[1],
            }
            for e in case.examples()
            if e.reference is not None
        ]

        wrapped = self.trainer.accelerator.prepare_model(self.model)  # for autocast

        def backward() -> Tensor:
            loss = self.trainer.training_step(wrapped, self.trainer.data_collator(rows), None)
            self.trainer._metrics["train"].clear()  # as after every log record
            return loss

        self.backward = backward


class Plain(Contender):
    """What one writes first: pad, whole logits, log_softmax, gather, sum, logsigmoid."""

    name = "plain"

    def __init__(self, case: Case, base: nn.Module) -> None:
        self.model = model = _copy(base)
        if case.lora:
            torch.manual_seed(0)
            self.model = model = adapters.add_lora(model, LORA)
        self._optimise()
        decoder, head = model.get_decoder(), model.get_output_embeddings()  # type: ignore[operator]
        count = flops.count(case.lengths, flops.ModelShape.of(decoder, head), "concatenated", case.passes)
        whole = case.passes.trunk * 2 * head.weight.numel() * case.tokens  # nothing is computed again
        self.operations = count.trunk + count.attention + whole
        examples = case.examples()
        device = case.device

        def backward() -> Tensor:
            sequences = [[*e.prompt_ids, *e.responses[side]] for side in (0, 1) for e in examples]
            prompts = [len(e.prompt_ids) for e in examples] * 2
            width = max(map(len, sequences))
            ids_BT = torch.tensor([s + [0] * (width - len(s)) for s in sequences], device=device)
            mask_BT = torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in sequences], device=device)
            scored_BT = mask_BT.bool() & (
                torch.arange(width, device=device) >= torch.tensor(prompts, device=device)[:, None]
            )
            reference_2n = torch.tensor(
                [e.reference[side] for side in (0, 1) for e in examples if e.reference], device=device
            )

            model.train()
            with torch.autocast(device.type, torch.bfloat16, enabled=case.dtype == torch.bfloat16):
                logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
            logps_BTV = logits_BTV.float().log_softmax(-1)
            logps_BT = logps_BTV.gather(2, ids_BT[:, 1:, None]).squeeze(2)
            ratio_2n = (logps_BT * scored_BT[:, 1:]).sum(1) - reference_2n
            chosen_n, rejected_n = ratio_2n.chunk(2)
            loss = -nn.functional.logsigmoid(BETA * (chosen_n - rejected_n)).mean()
            loss.backward()
            return loss.detach()

        self.backward = backward


def build(name: str, case: Case, base: nn.Module) -> Contender:
    """A contender by its name, on a copy of `base`."""
    if name in ("ours", "concatenated"):
        return Ours(case, base, share=name == "ours")
    return {"trl": Trl, "plain": Plain}[name](case, base)


def names(case: Case) -> list[str]:
    """Who takes part in a case: TRL and the plain step know pairs only, and the plain one is for the CPU's model."""
    if case.responses != 2:
        return ["ours", "concatenated"]
    return ["ours", "trl", "concatenated"] if case.lora else ["ours", "trl", "plain", "concatenated"]


def _copy(base: nn.Module) -> Any:
    """A copy that shares the frozen weights: an 8B model is in memory once."""
    return copy.deepcopy(base, {id(p): p for p in base.parameters() if not p.requires_grad})


def _arguments(kind: Any, folder: str, case: Case, **settings: Any) -> Any:
    return kind(
        output_dir=folder,
        max_steps=1,
        per_device_train_batch_size=case.batch,
        learning_rate=RATE,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=case.device.type == "cpu",
        dataloader_pin_memory=False,
        **settings,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    """TRL will have one; it sees the row of its construction and nothing else."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2, "b": 3, "c": 4, "<unk>": 5}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
