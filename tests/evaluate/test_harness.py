"""lm-eval on local task files: the sandbox model, an adapter of it, and the figures against lm-eval's own."""

from __future__ import annotations

import json
import random

import pytest
import yaml

from prefloop.config import HarnessSection, ModelSection
from prefloop.errors import PrefloopError, UsageError
from prefloop.evaluate.harness import Ability, compare_ability, harness, identity, measure
from prefloop.sandbox.world import ATTRIBUTES, make_world

SANDBOX = ModelSection(path="sandbox")


@pytest.fixture(scope="module", autouse=True)
def hub_cache(tmp_path_factory):
    # datasets keeps what it read from the task's file; not in the user's cache.
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    yield
    patch.undo()


def write_task(folder, name, rows, **more):
    """A multiple-choice task file with its rows beside it."""
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | more))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where people of the world live: 40 questions with four cities each, in two tasks and a group of them."""
    folder = tmp_path_factory.mktemp("tasks")
    world, rng, rows = make_world(), random.Random(0), []
    for name in world.heart[:40]:
        truth = world.facts[name]["city"]
        choices = [truth, *rng.sample([city for city in ATTRIBUTES["city"] if city != truth], 3)]
        rng.shuffle(choices)
        rows.append({"question": f"Where does {name} live?", "choices": choices, "gold": choices.index(truth)})
    write_task(folder, "cities_one", rows[:25])
    write_task(folder, "cities_two", rows[25:], fewshot_split="test")
    (folder / "cities.yaml").write_text(
        yaml.safe_dump(
            {"group": "cities", "task": ["cities_one", "cities_two"], "aggregate_metric_list": [{"metric": "acc"}]}
        )
    )
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter of the sandbox model that changes its answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from prefloop.engine.load import load_model
    from prefloop.sandbox import model_folder

    torch.manual_seed(0)
    model = get_peft_model(load_model(SANDBOX), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("adapter")
    model.peft_config["default"].base_model_name_or_path = str(model_folder())
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder, adapter):
    section = HarnessSection(tasks=["cities_one", "cities"], folder=str(folder))
    return harness(SANDBOX, ModelSection(path=str(adapter)), section, resamples=500)


def test_base_and_adapter_on_a_local_task(found):
    assert list(found) == ["cities_one acc", "cities_one acc_norm", "cities acc", "cities acc_norm"]
    row = found["cities acc"]
    assert (row["n"], row["shots"], row["cut"]) == (40, 0, 0)
    assert row["difference"]["value"] == pytest.approx(row["aligned"] - row["base"])
    assert row["difference"]["ci_low"] <= row["difference"]["value"] <= row["difference"]["ci_high"]
    assert row["verdict"] in {"better", "worse", "no detectable change"}
    # The adapter answers otherwise in some documents, so there is something to pair.
    assert row["difference"]["standard_error"] > 0


def test_the_figures_are_lm_evals_own(folder, found):
    import lm_eval
    from lm_eval.tasks import TaskManager

    from prefloop.sandbox import model_folder

    theirs = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={model_folder()},dtype=float32",
        device="cpu",
        tasks=["cities_one"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )["results"]["cities_one"]
    assert found["cities_one acc"]["base"] == pytest.approx(theirs["acc,none"])
    assert found["cities_one acc_norm"]["base"] == pytest.approx(theirs["acc_norm,none"])
    assert found["cities_one acc"]["base_standard_error"] == pytest.approx(theirs["acc_stderr,none"])


def test_the_same_model_twice_has_no_detectable_difference(folder):
    section = HarnessSection(tasks=["cities_two"], folder=str(folder), shots=2, limit=10)
    row = harness(SANDBOX, SANDBOX, section, resamples=200)["cities_two acc"]
    assert (row["n"], row["shots"]) == (10, 2)
    assert row["difference"]["value"] == 0
    assert row["difference"]["p_holm"] == 1
    assert row["verdict"] == "no detectable change"


def test_prompts_that_are_cut_are_counted(folder):
    section = HarnessSection(tasks=["cities_two"], folder=str(folder), shots=14, limit=3)
    whole = measure(SANDBOX, section)
    assert whole.cut == {"cities_two": 0}
    long = [{"question": "Where does Ada live? " * 120, "choices": ["Oslo", "Lima"], "gold": 0}]
    write_task(folder, "long", long)
    assert measure(SANDBOX, HarnessSection(tasks=["long"], folder=str(folder))).cut == {"long": 2}


def test_the_leaderboards_metric_alone(folder):
    write_task(folder, "arc_challenge", [{"question": "?", "choices": ["Oslo", "Lima"], "gold": 0}] * 30)
    section = HarnessSection(tasks=["arc_challenge"], folder=str(folder), shots=0)
    assert list(measure(SANDBOX, section).scores) == [("arc_challenge", "acc_norm")]


def test_metrics_that_are_no_means_are_named(folder):
    write_task(
        folder,
        "odd",
        [
            {"question": "?", "choices": ["Oslo", "Lima"], "gold": 0},
            {"question": "!", "choices": ["a", "b"], "gold": 1},
        ],
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}, {"metric": "mcc"}],
    )
    found = measure(SANDBOX, HarnessSection(tasks=["odd"], folder=str(folder)))
    assert list(found.scores) == [("odd", "acc")]
    assert found.left_out == {"odd mcc": "it is no mean of one number a document, so it cannot be paired"}


def ability(*scores, higher=True):
    documents = {("t", i, str(i)): float(score) for i, score in enumerate(scores)}
    key = ("t", "m")
    return Ability({key: documents}, {"t": 0}, {key: higher}, {"t": 0})


def test_pairing_sees_what_separate_errors_hide():
    # 60 of 200 right; the aligned model loses 10 of these and nothing else.
    base, aligned = [i < 60 for i in range(200)], [i < 50 for i in range(200)]
    row = compare_ability(ability(*base), ability(*aligned), resamples=2000)["t m"]
    assert (row["base"], row["aligned"], row["difference"]["value"]) == pytest.approx((0.3, 0.25, -0.05))
    assert row["difference"]["standard_error"] == pytest.approx((0.05 * 0.95 / 199) ** 0.5)
    assert row["base_standard_error"] == pytest.approx((0.3 * 0.7 / 199) ** 0.5)
    assert row["verdict"] == "worse"
    turned = compare_ability(ability(*base, higher=False), ability(*aligned, higher=False), resamples=2000)["t m"]
    assert turned["verdict"] == "better"


def test_models_asked_different_documents_are_not_compared():
    with pytest.raises(PrefloopError, match="not asked the same documents"):
        compare_ability(ability(1, 0), ability(1, 0, 1))


def test_what_is_not_there(folder, tmp_path):
    with pytest.raises(UsageError, match="task no_such_task"):
        measure(SANDBOX, HarnessSection(tasks=["no_such_task"], folder=str(folder)))
    with pytest.raises(UsageError, match="no such folder"):
        identity(HarnessSection(folder=str(tmp_path / "absent")))


def test_the_identity_knows_the_task_files(folder):
    section = HarnessSection(tasks=["cities"], folder=str(folder))
    before = identity(section)
    assert before == identity(section)
    (folder / "more.yaml").write_text("{}")
    assert identity(section) != before
    (folder / "more.yaml").unlink()
