"""Scoring under DDP and FSDP2, two ranks with gloo: gradients are those of one process on the whole batch.

Every second wrapping scores a shared layout, whose mask goes through what the wrapper does to inputs.

Scoring an unwrapped model would pass every single-process test and leave the ranks to train apart.
"""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from tests.tiny_models import tiny_model_folder
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from prefloop.engine.layout import concatenated, shared
from prefloop.engine.logprob import attach_scorer, sequence_logprobs, token_logprobs

ROWS = [([5, 6, 7], [[8, 9, 10], [3, 4]]), ([11, 12], [[13], [14, 15]])]  # one for each rank


def build(folder, lora):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if lora:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.05)
    return attach_scorer(model)


def loss_of(model, rows, layout=concatenated):
    layout = layout(rows, pad_id=0)
    return sequence_logprobs(token_logprobs(model, layout), layout).square().sum()


def gradients(model):
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            found[name] = (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).clone()
    return found


def one_rank(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    try:
        for lora in (False, True):
            alone = build(folder, lora)
            loss_of(alone, ROWS).backward()
            expected = gradients(alone)
            for wrap in ("ddp", "ddp, shared", "fsdp", "fsdp with its head apart, shared", "fsdp in bfloat16, shared"):
                model = build(folder, lora)
                inner = model.get_base_model() if lora else model
                half = "bfloat16" in wrap
                if "ddp" in wrap:
                    model = DistributedDataParallel(model)
                else:
                    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
                    cast = {"mp_policy": MixedPrecisionPolicy(torch.bfloat16, torch.float32)} if half else {}
                    if "head apart" in wrap:
                        fully_shard(inner.lm_head, mesh=mesh, **cast)
                    for layer in inner.model.layers:
                        fully_shard(layer, mesh=mesh, **cast)
                    fully_shard(model, mesh=mesh, **cast)
                loss_of(model, ROWS[rank : rank + 1], shared if "shared" in wrap else concatenated).backward()
                found = {name.removeprefix("module."): grad for name, grad in gradients(model).items()}
                assert found.keys() == expected.keys()
                for name, grad in found.items():
                    difference = (2 * grad - expected[name]).abs().max()  # ranks are averaged, the loss is a sum
                    allowed = 0.1 if half else 1e-4  # in half precision: that it runs
                    assert difference <= allowed * (1 + expected[name].abs().max()), (wrap, lora, name, difference)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")
def test_gradients_are_those_of_one_process():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_rank, args=(port, str(tiny_model_folder("llama"))), nprocs=2)
