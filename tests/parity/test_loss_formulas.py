"""Loss formulas against TRL 1.16's own statements, and against those of the original DPO code.

TRL computes most losses in the middle of long trainer methods. Here those very statements are cut out of its
installed source by their place in the syntax tree, and run on our numbers; TRL itself is not imported, so this takes
milliseconds.
Where a loss differs on purpose, the difference is asserted (docs/losses.md has the list).
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefloop.train import losses

PACKAGE = importlib.util.find_spec("trl")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="TRL, the oracle, is not installed")

GENERATOR = torch.Generator().manual_seed(3)
POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED = FOUR = [
    (-40 * torch.rand(64, generator=GENERATOR, dtype=torch.float64)).requires_grad_() for _ in range(4)
]
TWO = FOUR[:2]
LENGTHS = torch.randint(1, 12, (2, 64), generator=GENERATOR)
RATIOS = POLICY_CHOSEN - REFERENCE_CHOSEN, POLICY_REJECTED - REFERENCE_REJECTED


def method(file: str, name: str) -> ast.FunctionDef:
    """A method in TRL's source."""
    assert PACKAGE is not None
    assert PACKAGE.submodule_search_locations is not None
    tree = ast.parse(Path(PACKAGE.submodule_search_locations[0], file).read_text(encoding="utf-8"))
    (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    return found


def execute(statements: list[ast.stmt], names: dict[str, Any]) -> dict[str, Any]:
    names = {"torch": torch, "F": F, **names}
    exec(compile(ast.Module(statements, type_ignores=[]), "TRL", "exec"), names)
    return names


def trl_dpo(loss_type: str, *, beta: float = 0.1, label_smoothing: float = 0.0, tau: float = 0.05) -> Tensor:
    """`per_sequence_loss` of DPOTrainer._compute_loss for our pairs; its branches are the first `if` of the loop."""
    (loop,) = [
        node
        for node in ast.walk(method("trainer/dpo_trainer.py", "_compute_loss"))
        if isinstance(node, ast.For) and ast.unparse(node.target) == "(loss_type, loss_weight)"
    ]
    branches = next(node for node in loop.body if isinstance(node, ast.If))
    positions = torch.arange(int(LENGTHS.max()))
    names = {
        "self": SimpleNamespace(
            beta=beta, label_smoothing=label_smoothing, args=SimpleNamespace(discopop_tau=tau), loss_types=[loss_type]
        ),
        "loss_type": loss_type,
        "device": "cpu",
        "chosen_logratios": RATIOS[0],
        "rejected_logratios": RATIOS[1],
        "chosen_scores": RATIOS[0],
        "rejected_scores": RATIOS[1],
        "delta_score": RATIOS[0] - RATIOS[1],
        "completion_mask": (positions < LENGTHS.reshape(-1, 1)).long(),
    }
    return execute([branches], names)["per_sequence_loss"]


def trl_function(file: str, name: str, settings: dict[str, Any]) -> Tensor:
    """The first result of a method that takes (policy_chosen, policy_rejected): the losses."""
    definition = method(file, name)
    definition.returns, definition.decorator_list = None, []
    for argument in definition.args.args:
        argument.annotation = None
    helpers = [method(file, "log1mexp")] if name == "odds_ratio_loss" else []
    for helper in helpers:
        helper.returns, helper.args.args[0].annotation = None, None
    names = execute([*helpers, definition], {})
    trainer = SimpleNamespace(**settings, accelerator=SimpleNamespace(device="cpu"))
    means = (POLICY_CHOSEN / LENGTHS[0], POLICY_REJECTED / LENGTHS[1])
    by_token = settings.get("loss_type") in ("simpo", "ipo") or name == "odds_ratio_loss"
    return names[name](trainer, *(means if by_token else TWO))[0]


def same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-12) -> None:
    """Values and the gradients of their sum."""
    assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance)
    for leaf in TWO:
        pair = [
            torch.autograd.grad(loss.sum(), leaf, retain_graph=True, allow_unused=True)[0] for loss in (ours, theirs)
        ]
        assert torch.allclose(*pair, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("beta", [0.05, 0.3])
@pytest.mark.parametrize(
    ("loss_type", "ours"),
    [
        ("sigmoid", lambda beta: losses.dpo(*FOUR, beta=beta)),
        ("sigmoid_norm", lambda beta: losses.dpo(*FOUR, beta=beta, kind="sigmoid_norm", lengths=LENGTHS)),
        ("hinge", lambda beta: losses.dpo(*FOUR, beta=beta, kind="hinge")),
        ("ipo", lambda beta: losses.dpo(*FOUR, beta=beta, kind="ipo_norm", lengths=LENGTHS)),
        ("sppo_hard", lambda beta: losses.sppo(*FOUR, beta=beta)),
        ("nca_pair", lambda beta: losses.nca(*FOUR, beta=beta)),
        ("bco_pair", lambda beta: losses.bco(*FOUR, beta=beta, delta=0.0)),
        ("apo_zero", lambda beta: losses.apo_zero(*FOUR, beta=beta)),
        ("apo_down", lambda beta: losses.apo_down(*FOUR, beta=beta)),
        ("discopop", lambda beta: losses.discopop(*FOUR, beta=beta)),
    ],
)
def test_dpo_trainer(loss_type: str, ours: Callable[[float], Tensor], beta: float) -> None:
    same(ours(beta), trl_dpo(loss_type, beta=beta))


@pytest.mark.parametrize("smoothing", [1e-3, 0.1])
def test_dpo_trainer_with_smoothing(smoothing: float) -> None:
    same(
        losses.dpo(*FOUR, kind="robust", label_smoothing=smoothing), trl_dpo("robust", label_smoothing=smoothing), 1e-9
    )
    # TRL makes epsilon a float32 tensor, and log(epsilon) with it
    same(losses.exo(*FOUR, label_smoothing=smoothing), trl_dpo("exo_pair", label_smoothing=smoothing), 1e-5)


def test_dpo_trainer_does_not_smooth_its_sigmoid() -> None:
    """There conservative DPO is gone; here label_smoothing means it."""
    smoothed = trl_dpo("sigmoid", label_smoothing=0.2)
    same(losses.dpo(*FOUR), smoothed)
    assert not torch.allclose(losses.dpo(*FOUR, label_smoothing=0.2), smoothed, rtol=1e-2)


def test_dpo_trainer_loses_discopop_at_large_gaps() -> None:
    """exp(-x) overflows before its weight takes it to 0: NaN there, the logistic's value here."""
    lead = torch.tensor([-2e4], dtype=torch.float64)
    zero = torch.zeros_like(lead)
    loop = method("trainer/dpo_trainer.py", "_compute_loss")
    (branch,) = [
        node
        for node in ast.walk(loop)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "loss_type == 'discopop'"
    ]
    names = {"self": SimpleNamespace(beta=0.05, args=SimpleNamespace(discopop_tau=0.05)), "delta_score": lead}
    assert execute(branch.body, names)["per_sequence_loss"].isnan().all()
    assert losses.discopop(lead, zero, zero, zero).item() == pytest.approx(1000)


def test_kto_trainer() -> None:
    """The chosen half is desirable, the rejected half undesirable; z0 is TRL's `kl`."""
    body = method("trainer/kto_trainer.py", "_compute_loss")
    branches = [
        node
        for node in ast.walk(body)
        if isinstance(node, ast.If) and ast.unparse(node.test).startswith("self.loss_type == 'kto'")
    ]
    assert len(branches) == 2, "one for chosen, one for rejected"
    names = {
        "self": SimpleNamespace(beta=0.2, loss_type="kto"),
        "kl": torch.tensor(1.5, dtype=torch.float64),
        "chosen_logratios": RATIOS[0],
        "rejected_logratios": RATIOS[1],
    }
    names = execute(list(branches), names)
    theirs = torch.cat([1.3 * names["chosen_losses"], 0.7 * names["rejected_losses"]])
    ours = losses.kto(
        torch.cat([POLICY_CHOSEN, POLICY_REJECTED]),
        torch.cat([REFERENCE_CHOSEN, REFERENCE_REJECTED]),
        desirable=torch.arange(128) < 64,
        z0=1.5,
        beta=0.2,
        desirable_weight=1.3,
        undesirable_weight=0.7,
    )
    same(ours, theirs)


CPO = {"alpha": 0.0, "beta": 0.5, "label_smoothing": 0.0, "simpo_gamma": 0.8}


def test_cpo_trainer() -> None:
    file = "experimental/cpo/cpo_trainer.py"
    same(losses.cpo(*TWO, beta=0.5, nll_weight=0.0), trl_function(file, "cpo_loss", {**CPO, "loss_type": "sigmoid"}))
    smoothed = trl_function(file, "cpo_loss", {**CPO, "loss_type": "sigmoid", "label_smoothing": 0.2})
    label = torch.full((64,), 0.8, dtype=torch.float64)
    same(losses.cpo(*TWO, beta=0.5, nll_weight=0.0, label=label), smoothed)
    simpo = losses.simpo(*TWO, lengths=LENGTHS, beta=0.5, gamma=0.8)
    same(simpo, trl_function(file, "cpo_loss", {**CPO, "loss_type": "simpo"}))
    # SLiC-HF and reference-free IPO are kinds of dpo under a uniform reference
    zero = torch.zeros(64, dtype=torch.float64)
    hinge = losses.dpo(*TWO, zero, zero, beta=0.5, kind="hinge")
    same(hinge, trl_function(file, "cpo_loss", {**CPO, "loss_type": "hinge"}))
    ipo = losses.dpo(*TWO, zero, zero, beta=0.5, kind="ipo_norm", lengths=LENGTHS)
    same(ipo, trl_function(file, "cpo_loss", {**CPO, "loss_type": "ipo"}))


def test_cpo_trainer_smooths_simpo_otherwise() -> None:
    """A wrong label lets the other answer trail by gamma there; here the winner leads by gamma, whichever it is."""
    file, settings = "experimental/cpo/cpo_trainer.py", {**CPO, "loss_type": "simpo", "label_smoothing": 0.2}
    label = torch.full((64,), 0.8, dtype=torch.float64)
    gap = 0.5 * (POLICY_CHOSEN / LENGTHS[0] - POLICY_REJECTED / LENGTHS[1])
    correction = 0.2 * (F.logsigmoid(-gap + 0.8) - F.logsigmoid(-gap - 0.8))
    same(
        losses.simpo(*TWO, lengths=LENGTHS, beta=0.5, gamma=0.8, label=label),
        trl_function(file, "cpo_loss", settings) + correction,
    )


def test_orpo_trainer() -> None:
    """TRL computes the log-odds in float32, and subtracts what it calls losses from its likelihood term."""
    theirs = trl_function("experimental/orpo/orpo_trainer.py", "odds_ratio_loss", {"beta": 0.3})
    ours = losses.orpo(*TWO, lengths=LENGTHS, odds_weight=0.3)
    same(ours, -POLICY_CHOSEN / LENGTHS[0] - theirs, 1e-5)


def original_dpo(kind: str, beta: float, label_smoothing: float) -> Tensor:
    """The formulas of `preference_loss` in the original DPO code, commit f8b8c0f4, trainers.py, from their definition:
    one log-ratio difference, IPO squared against 1 / (2 beta) on summed log-probs, else (conservative) DPO.
    """
    lead = (POLICY_CHOSEN - POLICY_REJECTED) - (REFERENCE_CHOSEN - REFERENCE_REJECTED)
    if kind == "ipo":
        return (lead - 1 / (2 * beta)).square()
    right, wrong = F.softplus(-beta * lead), F.softplus(beta * lead)
    return (1 - label_smoothing) * right + label_smoothing * wrong


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_original_dpo_code(beta: float) -> None:
    same(losses.dpo(*FOUR, beta=beta), original_dpo("sigmoid", beta, 0.0), 1e-9)
    same(losses.dpo(*FOUR, beta=beta, label_smoothing=0.15), original_dpo("sigmoid", beta, 0.15), 1e-9)
    label = torch.full((64,), 0.85, dtype=torch.float64)
    same(losses.dpo(*FOUR, beta=beta, label=label), original_dpo("sigmoid", beta, 0.15), 1e-9)
    same(losses.dpo(*FOUR, beta=beta, kind="ipo"), original_dpo("ipo", beta, 0.0))


def test_llm_sbm_weights() -> None:
    """Known numbers of the weighted loss: weights squared, beta 0.1, divided by the number of rows."""
    lead = torch.tensor([0.0, 5.0, -3.0, 20.0], dtype=torch.float64).requires_grad_()
    weight = torch.tensor([1.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    base = losses.dpo(lead, zero, zero, zero, beta=0.1)
    assert base.tolist() == pytest.approx([0.693147181, 0.474076984, 0.854355244, 0.126928011], abs=1e-9)
    loss = losses.reduce(base, weight**2)
    loss.backward()
    assert loss.item() == pytest.approx(0.216265907, abs=1e-9)
    assert lead.grad is not None
    assert lead.grad.tolist() == pytest.approx([-0.0125, -0.00235962918, -0.000897566433, 0], abs=1e-11)
