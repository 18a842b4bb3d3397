"""The benchmarks at toy size: what they compare is equal, and what they print has the promised shape. Never times."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
import torch
from benchmarks import contenders, dpo, rows
from benchmarks.contenders import Case

pytest.importorskip("trl")

TOY = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
PAIRS = Case(12, 5, batch=2, model=TOY)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def case() -> dict[str, Any]:
    return dpo.measure(PAIRS, 1e9, repeats=1, warmup=0, with_memory=False)


@pytest.mark.parametrize(("lora", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)])
def test_all_contenders_compute_the_same(lora: bool, dtype: torch.dtype) -> None:
    """With all weights and with adapters; the last is the GPU's case, in small and on the processor."""
    toy = Case(12, 5, batch=2, model=TOY, lora=lora, dtype=dtype)
    base = toy.base()
    those = [contenders.build(name, toy, base) for name in ("ours", "trl", "plain", "concatenated")]
    dpo.check_equal(those, toy)
    loss, gradients = those[0].gradients()
    assert abs(loss - math.log(2)) > 1e-3, "the rows differ from their reference, or all gradients are alike"
    assert gradients
    assert all(float(g.norm()) > 0 for name, g in gradients.items() if "lora_A" not in name)


def test_unequal_work_is_refused() -> None:
    base = PAIRS.base()
    ours, other = (contenders.build(name, PAIRS, base) for name in ("ours", "plain"))
    with torch.no_grad():
        next(p for n, p in other.model.named_parameters() if "down_proj" in n).mul_(1.5)
    with pytest.raises(dpo.UnequalWork, match=r"loss|gradient"):
        dpo.check_equal([ours, other], PAIRS)


def test_unequal_gradients_are_refused() -> None:
    """The same loss, but one parameter's gradient is scaled: nothing but the gradients shows it."""
    base = PAIRS.base()
    ours, other = (contenders.build(name, PAIRS, base) for name in ("ours", "plain"))
    name, parameter = next((n, p) for n, p in other.model.named_parameters() if "q_proj" in n)
    parameter.register_hook(lambda gradient: gradient * 1.001)
    with pytest.raises(dpo.UnequalWork, match=name):
        dpo.check_equal([ours, other], PAIRS)


def test_untrained_parameters_are_refused() -> None:
    base = PAIRS.base()
    ours, other = (contenders.build(name, PAIRS, base) for name in ("ours", "plain"))
    next(iter(other.model.parameters())).requires_grad_(False)
    with pytest.raises(dpo.UnequalWork, match="different parameters"):
        dpo.check_equal([ours, other], PAIRS)


def test_shape_of_a_case(case: dict[str, Any]) -> None:
    promised = {"vs_trl", "vs_plain", "vs_concatenated", "flops_allow_vs_concatenated", "share_of_allowed"}
    assert promised <= case.keys()
    assert set(case["steps"]) == {"ours", "trl", "plain", "concatenated"}
    for peer in ("trl", "plain", "concatenated"):
        assert case[f"vs_{peer}"] == case["steps"][peer]["seconds"] / case["steps"]["ours"]["seconds"]
    assert json.loads(json.dumps(case)) == case
    assert dpo.table({"12/5": case}).row_count == 5


def test_lists_are_compared_with_the_concatenated_layout_alone() -> None:
    found = dpo.measure(Case(12, 5, 5, batch=2, model=TOY), 1e9, repeats=1, warmup=0, with_memory=False)
    assert set(found["steps"]) == {"ours", "concatenated"}
    assert found["layout"] != "concatenated"
    assert found["flops_allow_vs_concatenated"] > 1


def test_names_of_the_cases() -> None:
    assert [case.name for case in dpo.CASES] == ["512/64", "128/128", "256/256", "512/64x5"]


def test_memory_counts_from_the_weights() -> None:
    """A step writes gradients and two moments of every weight, so at least three times the weights.

    The two tables are large enough for the allocator to get each from the kernel and to give it back.
    """
    wide = Case(12, 5, batch=2, model={**TOY, "vocab_size": 600_000})
    # A process of its own: what earlier tests gave back would be used again, and not count.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = pool.submit(dpo.memory, wide, "concatenated").result()
    assert found is None or found > 3 * 4 * 2 * 16 * 600_000 * 0.9


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        dpo.main(["--cases", "1/1"])
    assert "no case 1/1" in capsys.readouterr().err


def test_rows() -> None:
    found = rows.measure(96, steps=5)
    assert all(found[name] > 0 for name in ("prepare_us", "reference_us", "step_us"))
