"""The objective `cut` through the whole trainer: its loss by the formula, and nothing else that changes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import make_judged, make_rows, run, weights

from prefloop.config import LoraSection, ModelSection, PreferencesSection, TrainSection
from prefloop.engine.load import load_model
from prefloop.engine.tokens import encode_completion, encode_prompt, end_of_turn_ids, load_tokenizer
from prefloop.errors import PrefloopError, UsageError
from prefloop.inputs.preferences import PreferenceReader
from prefloop.train.contrast import Tokens, Totals, contrast, metrics, terms
from prefloop.train.encode import Encoder
from prefloop.train.examples import Source, prepare
from prefloop.train.judged import JudgedPrompt
from prefloop.train.weighing import downsample
from tiny_models import tiny_model_folder

REAL = Path(__file__).parents[3] / "shared" / "data" / "cut" / "iter1.json"
SHARP = {"spread": 2.0}


def section(**settings: Any) -> Any:
    return TrainSection.model_validate({"objective": {"type": "cut", **settings}}).objective


def by_hand(rows: list[Any], folder: Path, threshold: float) -> list[tuple[Tensor, Tensor | None]]:
    """Of each row: log-probabilities of its tokens in its first context, and behind the plain prompt if that is
    another; from the model's own logits, one sequence at a time."""
    model = load_model(ModelSection(path=str(folder), device="cpu", dtype="float32")).eval()
    tokenizer = load_tokenizer(ModelSection(path=str(folder)))
    end, form = end_of_turn_ids(tokenizer)[0], JudgedPrompt()

    def logps(prompt: list[Any], answer: str) -> Tensor:
        before, own = encode_prompt(tokenizer, prompt), encode_completion(tokenizer, answer, end)
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *own]])).logits[0].double().log_softmax(-1)
        return logits[len(before) - 1 : -1].gather(-1, torch.tensor(own)[:, None])[:, 0]

    found: list[tuple[Tensor, Tensor | None]] = []
    for row in rows:
        answer = row["completion"][0]["content"]
        plain = logps(row["prompt"], answer)
        judged = row["judgment"] is not None
        found.append((logps(form(row["prompt"], row["judgment"]), answer), plain) if judged else (plain, None))
    return found


def published(found: list[tuple[Tensor, Tensor | None]], threshold: float, weight: float) -> float:
    """The published code's loss of a micro-batch, in probabilities."""
    first = torch.cat([a for a, _ in found]).exp()
    likelihood = -first.log().mean()
    bad = [(a.exp(), b.exp()) for a, b in found if b is not None]
    if not bad:
        return float(likelihood)
    a, b = torch.cat([a for a, _ in bad]), torch.cat([b for _, b in bad])
    terms = torch.where(a / b > threshold, -weight * (1 - b).log(), -b.log())
    return float(likelihood + terms.mean()) / 2


@pytest.mark.parametrize("normalize", ["sequence", "token", "paper"])
@pytest.mark.parametrize("rows", [make_judged(7), make_judged(1), [r for r in make_judged(12) if not r["judgment"]]])
def test_the_first_loss_is_the_published_formulas(normalize: str, rows: list[Any], tmp_path: Path) -> None:
    """token: of the whole step as one micro-batch; sequence: the mean of micro-batches of one; paper: not halved."""
    folder = tiny_model_folder("llama", **SHARP)
    records: list[dict[str, Any]] = []
    objective = {"type": "cut", "threshold": 1.01, "unlike_weight": 0.5, "normalize": normalize}
    run(tmp_path / "t", folder, rows, lora=False, batch_size=len(rows), objective=objective, records=records)
    found = by_hand(rows, folder, 1.01)
    expected = published(found, 1.01, 0.5)
    if normalize != "token":
        each = [
            published([one], 1.01, 0.5) * (2 if normalize == "paper" and one[1] is not None else 1) for one in found
        ]
        expected = sum(each) / len(each)
    assert records[0]["loss"] == pytest.approx(expected, abs=1e-5)
    if bad := [(a, b) for a, b in found if b is not None]:
        rates = [float((a - b > math.log(1.01)).double().mean()) for a, b in bad]
        assert records[0]["flags/rate"] == pytest.approx(sum(rates) / len(rates))
        assert 0 < records[0]["flags/rate"] < 1 or len(rows) == 1
        assert records[0]["judged"] == pytest.approx(len(bad) / len(rows))
    else:
        assert "flags/rate" not in records[0]
        assert records[0]["likelihood/satisfactory"] == pytest.approx(
            sum(-float(a.mean()) for a, _ in found) / len(found)
        )


@pytest.mark.parametrize("normalize", ["sequence", "token", "paper"])
def test_the_cut_of_a_step_does_not_matter(normalize: str, tmp_path: Path) -> None:
    """13 rows with weights: losses, flags and weights are the same at micro-batches of 1, 3 and all."""
    rows, found = make_judged(13, weights=True), []
    for micro in (1, 3, 8):
        records: list[dict[str, Any]] = []
        out = tmp_path / str(micro)
        run(out, tiny_model_folder("llama", **SHARP), rows, lora=False, batch_size=8, micro_batch_size=micro, epochs=2,
            learning_rate=1e-4, objective={"type": "cut", "normalize": normalize, "gamma": 0.5}, records=records,
            validation=make_judged(5, seed=1))  # fmt: skip
        found.append((records, weights(out)))
    for records, trained in found[1:]:
        for one, other in zip(found[0][0], records, strict=True):
            for name in ("loss", "flags/rate", "unlikelihood/flagged", "likelihood/judged"):
                assert other.get(name) == pytest.approx(one.get(name), abs=1e-5), name
        assert max(float((trained[k] - found[0][1][k]).abs().max()) for k in trained) < 1e-6


def test_dropout_does_not_reach_the_flags(tmp_path: Path) -> None:
    """A LoRA dropout of one half and a high rate: the first step flags what a model without dropout flags."""
    rows, rates = make_judged(8), []
    objective = {"type": "cut", "threshold": 1.01}
    for dropout in (0.0, 0.5):
        records: list[dict[str, Any]] = []
        lora = LoraSection(r=4, dropout=dropout)
        run(tmp_path / str(dropout), tiny_model_folder("llama", **SHARP), rows, batch_size=8, epochs=3,
            lora=lora, learning_rate=1e-2, objective=objective, records=records)  # fmt: skip
        rates.append([r["flags/rate"] for r in records])
    assert rates[0][0] == rates[1][0] > 0


@pytest.mark.parametrize(("objective", "kept"), [("sft", 2), ("kto", 6)])
def test_the_same_rows_as_single_answers(objective: str, kept: int, tmp_path: Path) -> None:
    rows = make_judged(6)
    assert sum(row["judgment"] is None for row in rows) == 2
    result = run(tmp_path / "t", tiny_model_folder("llama"), rows, lora=False, objective=objective)
    assert result["pairs"] == kept
    assert sum(result["rejected"].values()) == 6 - kept


def test_a_frozen_detector_keeps_its_flags(tmp_path: Path) -> None:
    rows, found = make_judged(8), {}
    for detector in ("policy", "start"):
        records: list[dict[str, Any]] = []
        run(tmp_path / detector, tiny_model_folder("llama", **SHARP), rows, batch_size=8, epochs=4, lora=False,
            learning_rate=1e-2, objective={"type": "cut", "threshold": 1.01, "detector": detector}, records=records,
            validation=make_judged(3, seed=1))  # fmt: skip
        found[detector] = [r for r in records if r["kind"] == "train"]
    rates = {name: [r["flags/rate"] for r in own] for name, own in found.items()}
    assert len(set(rates["start"])) == 1
    assert rates["policy"][0] == rates["start"][0]
    assert len(set(rates["policy"])) > 1
    assert found["policy"][0]["loss"] == pytest.approx(found["start"][0]["loss"], abs=1e-6)


def test_downsampling_is_relative_to_the_criticised_rows_and_seeded(tmp_path: Path) -> None:
    rows = make_judged(40, share=0.4)
    bad = sum(row["judgment"] is not None for row in rows)
    results = [
        run(
            tmp_path / str(n),
            tiny_model_folder("llama"),
            rows,
            lora=False,
            seed=seed,
            objective={"type": "cut", "downsample": 0.25},
        )
        for n, seed in enumerate((1, 1, 2))
    ]
    kept = int(0.25 * bad)
    assert [r["pairs"] for r in results] == [bad + kept] * 3
    assert results[0]["left_out"] == 40 - bad - kept
    assert results[0]["final"] == results[1]["final"] != results[2]["final"]
    everything = run(tmp_path / "all", tiny_model_folder("llama"), rows, objective={"type": "cut", "downsample": 9.0})
    assert everything["pairs"] == 40
    fine = [row for row in rows if row["judgment"] is None]
    with pytest.raises(UsageError, match=r"satisfactory, so downsampling leaves none(?s:.)*downsample=null"):
        run(tmp_path / "none", tiny_model_folder("llama"), fine, objective={"type": "cut", "downsample": 0.25})


def test_rows_that_cannot_be_trained_on(tmp_path: Path) -> None:
    rows = make_judged(6)
    rows[0]["judgment"] = "word " * 400
    rows[1]["completion"] = [{"role": "assistant", "content": ""}]
    rows[1]["finish"] = "length"
    rows[2]["completion"] = [*rows[2]["completion"], {"role": "user", "content": "more"}]
    result = run(tmp_path / "t", tiny_model_folder("llama"), rows, objective="cut")
    assert result["pairs"] == 3
    assert sorted(result["rejected"]) == [
        "more tokens than max_length 200",
        "the answer is empty and was cut off",
        "the answer is to be one assistant turn, not ['assistant', 'user']; earlier turns belong to the prompt",
    ]
    with pytest.raises(PrefloopError, match="nothing is left"):
        run(tmp_path / "u", tiny_model_folder("llama"), rows[:1], objective="cut")


def test_an_answer_that_was_cut_off_has_no_end_of_turn() -> None:
    folder = tiny_model_folder("llama")
    tokenizer = load_tokenizer(ModelSection(path=str(folder)))
    end = end_of_turn_ids(tokenizer)[0]
    row = make_judged(1)[0]
    for finish in ("stop", "length", None):
        row["finish"] = finish
        ((_, found),) = Encoder(tokenizer, end, 200, "judgments", JudgedPrompt())([row])  # type: ignore[list-item]
        assert isinstance(found, list)
        assert (found[0].responses[0][-1] == end) is (finish != "length")
        assert found[0].contexts == (found[0].prompt_ids, found[0].judged_ids)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("micro", [1, 3])
def test_random_logits_by_the_published_formula(micro: int, dtype: torch.dtype, tolerance: float) -> None:
    """Loss and flags of a micro-batch in `token` mode, against probabilities of the whole vocabulary in float64."""
    draw, compared = torch.Generator().manual_seed(micro), 0
    for _ in range(20):
        found: list[tuple[Tensor, Tensor | None]] = []
        values: list[Tensor] = []
        counts: list[int] = []
        for _ in range(micro):
            length = int(torch.randint(1, 9, (), generator=draw))
            judged = bool(torch.rand((), generator=draw) < 0.7)
            # Plain first, then judged; the judged one is near the plain one, so that some tokens are flagged.
            logits = torch.randn(1 + judged, length, 17, generator=draw, dtype=torch.float64) * 2
            logits = logits.to(dtype)
            exact, own = (logits.to(kind).log_softmax(-1)[..., 0] for kind in (torch.float64, dtype))
            found.append((exact[-1], exact[0] if judged else None))
            values += list(own)
            counts.append(1 + judged)
        response = [index for index, one in enumerate(values) for _ in range(len(one))]
        lengths = [len(a) for a, _ in found]
        bad = [n for n, count in zip(lengths, counts, strict=True) if count > 1]
        tokens = Tokens(
            torch.cat(values), torch.tensor(response), tuple(counts), Totals(micro, sum(lengths), sum(bad))
        )
        objective = section(threshold=1.2, unlike_weight=0.5, normalize="token")
        assert float(contrast(tokens, objective).mean()) == pytest.approx(published(found, 1.2, 0.5), abs=tolerance)
        if bad:
            flags = torch.cat([a - b > math.log(1.2) for a, b in found if b is not None])
            assert torch.equal(terms(tokens, objective)[1], flags)
            compared += int(flags.sum())
    assert compared > 10


@pytest.mark.parametrize("seed", [0, 1])
def test_a_quarter_of_the_published_round(seed: int, tmp_path: Path) -> None:
    """CUT's first online round read whole; at 0.25 a seed keeps the same satisfactory answers beside 224 others."""
    if not REAL.is_file():
        pytest.skip("the data are not here")
    reader = PreferenceReader(PreferencesSection(path=str(REAL)))
    rows = [row for part, _ in reader.parts(1000) for row in part]
    tokenizer = load_tokenizer(ModelSection(path=str(tiny_model_folder("llama"))))
    encoder = Encoder(tokenizer, end_of_turn_ids(tokenizer)[0], 100_000, "judgments", JudgedPrompt("alpaca"))
    examples, held, facts = prepare(Source.of(rows), encoder, tmp_path)
    assert (len(examples), len(held), facts["rejected"]) == (953, 0, {})
    kept, left_out = downsample(examples, section(downsample=0.25), seed)
    assert int(kept.judged.sum()) == 224
    assert (len(kept) - 224, left_out) == (int(0.25 * 224), 729 - 56)
    ids, order = [e.id for e in kept], [e.id for e in examples]
    assert ids == [one for one in order if one in set(ids)]
    assert ids == [e.id for e in downsample(examples, section(downsample=0.25), seed)[0]]
    assert ids != [e.id for e in downsample(examples, section(downsample=0.25), seed + 1)[0]]


def test_extreme_values_stay_finite() -> None:
    values = torch.tensor([0.0, -1e4, -1e4, 0.0, -2e4, -1e-9], requires_grad=True)
    tokens = Tokens(values, torch.tensor([0, 0, 1, 1, 2, 2]), (2, 1), Totals(2, 4, 2))
    for normalize in ("sequence", "token", "paper"):
        loss_n = contrast(tokens, section(normalize=normalize, gamma=1.0))
        (gradient,) = torch.autograd.grad(loss_n.sum(), values, retain_graph=True)
        assert bool(loss_n.isfinite().all() & gradient.isfinite().all())
    assert metrics(tokens, section())["flags/rate"].tolist()[0] == 0.5


def test_preference_rows_are_no_judgments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="judgment"):
        run(tmp_path / "t", tiny_model_folder("llama"), make_rows(4), objective="cut")
