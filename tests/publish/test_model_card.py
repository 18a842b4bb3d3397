"""The card of a trained model, and models and adapters as folders of their own."""

import json

import pytest
import yaml
from tests.publish.published_run import HERE, pairs, write_run

from prefloop.errors import UsageError
from prefloop.publish.model_card import model_card, write_model_cards
from prefloop.publish.models import export_model


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", [pairs(4)])


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_model_card_says_method_data_and_results_with_intervals(run):
    card = model_card(run)
    assert front_matter(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["prefloop", "dpo", "lora"],
    }
    assert "- Objective: dpo, beta 0.1." in card
    assert "LoRA of rank 8, alpha 16; learning rate 5e-05, batch 8, 3 epochs, 30 steps, seed 3." in card
    assert "80 rows trained on (left out: 2 longer than max_length)" in card
    assert "| win rate against the base |  |  | 0.712 [0.660, 0.764] | 300 |" in card
    assert "| sandbox kindness | 0.400 | 0.900 | 0.500 [0.440, 0.560] | 300 |" in card
    assert "| sandbox mistake (lower is better) | 0.400 | 0.100 | -0.300 [-0.360, -0.240] | 300 |" in card
    assert "| mean characters of an answer | 41.2 | 47.9 |  |  |" in card
    assert HERE not in card
    assert str(run) not in card
    assert "`base-model`" in card


def test_before_the_measurement_there_is_none(tmp_path):
    card = model_card(write_run(tmp_path / "run", [pairs(4)], measured=False))
    assert "Not measured yet." in card


def test_a_hub_model_is_named_as_the_base(tmp_path):
    run = write_run(tmp_path / "run", [pairs(4)], model={"path": "ORG/base", "revision": "abc"})
    assert front_matter(model_card(run)) | {"tags": None} == {
        "base_model": "ORG/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": None,
    }
    adapter = model_card(run, "adapter")
    assert front_matter(adapter)["base_model_relation"] == "adapter"
    assert front_matter(adapter)["library_name"] == "peft"
    assert 'AutoModelForCausalLM.from_pretrained("ORG/base")' in adapter
    assert "`ORG/base` at abc" in adapter


def test_cards_of_every_round_go_where_the_weights_are(tmp_path):
    run = write_run(tmp_path / "run", [pairs(4), pairs(4, first=4)])
    written = {path.relative_to(run).as_posix() for path in write_model_cards(run)}
    assert written == {
        "stages/03-train/adapter/README.md",
        "stages/04-merge/model/README.md",
        "stages/08-r2-train/adapter/README.md",
        "stages/09-r2-merge/model/README.md",
        "model/README.md",
    }
    assert "# my run, round 2" in (run / "model" / "README.md").read_text()
    assert "# my run, round 1" in (run / "stages" / "04-merge" / "model" / "README.md").read_text()


def test_a_card_tells_what_each_round_did(tmp_path):
    run = write_run(tmp_path / "run", [pairs(4), pairs(4, first=4)], branches=("judge", "pairrm"))
    card = model_card(run)
    assert "in 2 rounds with prefloop" in card
    done = "80 rows trained on (left out: 2 longer than max_length), 30 steps"
    win = "win rate against the first model 0.712 [0.660, 0.764]"
    assert f"- Round 1: branch `pairrm` chosen by its win rate, {done}; {win}." in card
    assert f"- Round 2: branch `pairrm`, {done}; {win}." in card
    assert "## Rounds" not in model_card(run, round_number=1)
    plain = model_card(write_run(tmp_path / "plain", [pairs(4), pairs(4, first=4)]))
    assert f"- Round 1: {done}; {win}." in plain


def test_an_adapter_of_a_later_round_belongs_to_the_model_before_it(tmp_path):
    run = write_run(tmp_path / "run", [pairs(4), pairs(4, first=4)], model={"path": "ORG/base", "revision": None})
    card = model_card(run, "adapter")
    assert "A LoRA adapter for the merged model of round 1 of this run" in card
    assert not {"base_model", "base_model_relation"} & front_matter(card).keys()
    assert 'from_pretrained("the merged model of round 1")' in card
    assert front_matter(model_card(run))["base_model"] == "ORG/base"
    with pytest.raises(UsageError, match=r"belongs to the merged model of round 1.*\n.*--what model"):
        export_model(run, tmp_path / "out", "adapter")
    assert not (tmp_path / "out").exists()
    assert export_model(run, tmp_path / "first", "adapter", round_number=1)["round"] == 1
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": "ORG/base"}
    assert front_matter((tmp_path / "first" / "README.md").read_text())["base_model"] == "ORG/base"
    with pytest.raises(UsageError, match="no model of round 3"):
        export_model(run, tmp_path / "out", round_number=3)


def test_a_card_undoes_no_stage(run):
    from prefloop.store.rundir import RunDir

    success = next(run.glob("stages/*-train")) / "_SUCCESS.json"
    card = success.parent / "adapter" / "README.md"
    card.write_text("what peft writes")
    content = json.loads(success.read_text())
    content["files"]["adapter/README.md"] = card.stat().st_size
    success.write_text(json.dumps(content))
    assert write_model_cards(run) == [run / "model" / "README.md"]
    manifest = RunDir.peek(run).read_manifest()
    for entry in manifest["stages"]:
        assert RunDir.peek(run).stage(entry["number"], entry["name"]).is_done(entry["fingerprint"]), entry["name"]


def test_of_branches_each_has_its_own_results(tmp_path):
    run = write_run(tmp_path / "run", [pairs(4)], branches=("judge", "pairrm"))
    assert "0.712 [0.660, 0.764] | 1 |" in model_card(run, branch="judge")
    own = model_card(run)  # the measurement chose the last one
    assert own == model_card(run, branch="pairrm")
    assert "0.712 [0.660, 0.764] | 2 |" in own
    assert "# my run, pairrm" in own
    assert "rated by `pairrm`" in own
    assert len(write_model_cards(run)) == 5
    assert (run / "model" / "README.md").read_text() == own
    assert export_model(run, tmp_path / "a", "adapter", "judge")["branch"] == "judge"
    with pytest.raises(UsageError, match=r"no branch 'other' \(judge, pairrm\)"):
        export_model(run, tmp_path / "b", "adapter", "other")


def test_an_adapter_that_was_measured_unmerged_says_that(tmp_path):
    from tests.publish import published_run

    run = write_run(tmp_path / "run", [pairs(4)])
    success = next(run.glob("stages/*-evaluate")) / "_SUCCESS.json"
    content = json.loads(success.read_text())
    win = published_run.EVALUATE["win_rate"] | {"value": 0.7}
    content["extra"]["evaluate"]["unmerged"] = {"adapter": {"identical": 0.9, "win_rate": win}}
    content["extra"]["evaluate"]["also"] = {"pairrm": {"win_rate": win | {"n": 77}, "agreement": {}}}
    success.write_text(json.dumps(content))
    assert "| 0.700 [0.660, 0.764] | 300 |" in model_card(run, "adapter")
    assert "| 0.712 [0.660, 0.764] | 300 |" in model_card(run)
    assert "| win rate, by pairrm |  |  | 0.700 [0.660, 0.764] | 77 |" in model_card(run)


def test_an_exported_adapter_names_no_folder_of_this_machine(run, tmp_path):
    found = export_model(run, tmp_path / "adapter", "adapter")
    assert found["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": "base-model"}
    export_model(run, tmp_path / "adapter", "adapter")  # an earlier export is replaced
    model = export_model(run, tmp_path / "model")
    assert model["files"] == ["README.md", "config.json"]
    # The run keeps its own.
    assert HERE in (run / "stages" / "03-train" / "adapter" / "adapter_config.json").read_text()


def test_what_is_not_there_is_not_exported(run, tmp_path):
    import shutil

    shutil.rmtree(run / "stages" / "03-train" / "adapter")
    with pytest.raises(UsageError, match="no adapter"):
        export_model(run, tmp_path / "out", "adapter")
    (run / "stages" / "03-train" / "_SUCCESS.json").unlink()
    with pytest.raises(UsageError, match="not trained yet"):
        model_card(run)
