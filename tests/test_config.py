"""Recipes: overrides, strictness, messages, and the shipped ones."""

from __future__ import annotations

import json
import runpy

import pytest
import yaml

from prefloop.config import load_recipe, recipe_folder, recipe_schema, shipped_recipes
from prefloop.errors import UsageError


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"name": "r", "model": "org/m", "prompts": "p.jsonl", "rate": {"type": "judge"}}))
    return str(path)


def test_a_plain_value_sets_the_path_of_a_section(recipe):
    assert load_recipe(recipe).model.path == "org/m"
    assert load_recipe(recipe, ["model=folder", "model.dtype=bfloat16"]).model.model_dump(
        include={"path", "dtype"}
    ) == {"path": "folder", "dtype": "bfloat16"}
    assert load_recipe("quickstart", ["model=folder"]).model.batch_size == load_recipe("quickstart").model.batch_size


def test_another_retriever_takes_nothing_over_from_the_one_before():
    shipped = load_recipe("dpa-rag", ["model=folder"]).retrieve.retriever
    assert shipped.passages is not None
    for name in ("bm25", "ORG/ENCODER"):
        own = load_recipe("dpa-rag", ["model=folder", f"retrieve.retriever={name}"]).retrieve.retriever
        assert own == type(own)(path=name)


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.learning_rate=5e-5", lambda r: r.train.learning_rate == 5e-5),
        ("train.lora=null", lambda r: r.train.lora is None),
        ("train.lora.r=4", lambda r: r.train.lora.r == 4),
        ("train.lora.target_modules=[q_proj, v_proj]", lambda r: r.train.lora.target_modules == ["q_proj", "v_proj"]),
        ("rate.model=judge/folder", lambda r: r.rate.model.path == "judge/folder"),
        ("evaluate.prompts.path=a=b.jsonl", lambda r: r.evaluate.prompts.path == "a=b.jsonl"),
        ("prompts.on_bad_row=reject", lambda r: r.prompts.on_bad_row == "reject"),
        ("seed=7", lambda r: r.seed == 7),
    ],
)
def test_overrides(recipe, override, read):
    assert read(load_recipe(recipe, [override]))


def test_another_type_drops_the_settings_of_the_old_one(recipe):
    # In any order: the README shows the type first, a script may not.
    overrides = ["rate.mode=pairwise", "rate.callable=my:score", "rate.type=function"]
    assert load_recipe(recipe, overrides[1:]).rate.callable == "my:score"
    assert (
        load_recipe("judge-dpo", ["model=m", "rate.type=function", "rate.callable=my:score"]).rate.type == "function"
    )


def test_later_overrides_win(recipe):
    assert load_recipe(recipe, ["sample.n=2", "sample.n=3"]).sample.n == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.lerning_rate=1", "train.lerning_rate: unknown setting; did you mean learning_rate?"),
        ("rate.modle=x", "rate.modle: unknown setting; did you mean mode?"),
        ("rate.model.pth=x", "did you mean path?"),
        ("train.lora.rr=3", "train.lora.rr: unknown setting; did you mean r?"),
        ("foo=1", "known here: branches, evaluate, first, merge"),
        ("train.batch_size=0", "train.batch_size: input should be greater than 0 (given: 0)"),
        ("rate.type=oracle", "'function', 'human', 'judge'"),
        ("sample.n", "not of the form a.b=c"),
        ("sample.n=1", "a pair needs two answers"),
        ("sample.temperature=0", "would be the same"),
        ("train.objective.bta=3", "train.objective.bta: unknown setting; did you mean beta?"),
        ("train.objective=sigmoid", "'dpo'"),
    ],
)
def test_mistakes_are_named_with_the_fix(recipe, override, says):
    with pytest.raises(UsageError) as error:
        load_recipe(recipe, [override])
    assert says in str(error.value)
    assert error.value.exit_code == 2


def test_all_mistakes_are_named_at_once(recipe):
    with pytest.raises(UsageError) as error:
        load_recipe(recipe, ["foo=1", "sample.n=0"])
    assert "foo" in str(error.value)
    assert "sample.n" in str(error.value)


GIVEN = ["prompts=null", "rate=null", "preferences=pairs.jsonl"]


def test_preferences_stand_in_place_of_prompts_and_rate(recipe):
    read = load_recipe(recipe, [*GIVEN, "preferences.limit=3"])
    assert (read.preferences.path, read.preferences.limit) == ("pairs.jsonl", 3)
    assert (read.prompts, read.sample, read.rate, read.pair) == (None, None, None, None)
    assert type(read).model_validate(json.loads(read.model_dump_json())) == read
    # A signal alone is one for the measurement.
    assert load_recipe(recipe, ["prompts=null", GIVEN[2]]).rate.type == "judge"
    assert load_recipe(recipe).sampled.sample.n == 5


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["preferences=p.jsonl"], "preferences and prompts exclude each other"),
        ([*GIVEN, "sample.n=3"], "decoding for the measurement is evaluate.sample"),
        ([*GIVEN, "pair.min_gap=1"], "preferences and pair exclude each other"),
        ([*GIVEN, "rounds=2"], "set rounds=1"),
        (["prompts=null"], "prompts is missing"),
        (["rate={type: critic, callable: crit.judge}"], "rate.callable: write module:name"),
        (["rate=null"], "rate is missing; it must be set in the recipe or as rate=…"),
        (GIVEN[:2], "nothing says where preferences come from"),
        ([*GIVEN, "preferences.formt=pku"], "preferences.formt: unknown setting; did you mean format?"),
        ([*GIVEN, "evaluate.judge.type=judge", "evaluate.judge.modle=x"], "did you mean mode?"),
    ],
)
def test_one_way_or_the_other(recipe, overrides, says):
    with pytest.raises(UsageError) as error:
        load_recipe(recipe, overrides)
    assert says in str(error.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean quickstart"):
        load_recipe("quickstrat")


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(UsageError, match=r"bad\.yaml: not readable as YAML"):
        load_recipe(str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UsageError, match="mapping"):
        load_recipe(str(tmp_path / "list.yaml"))


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid_and_round_trip(name):
    recipe = load_recipe(name, ["model=org/name"])
    assert type(recipe).model_validate(json.loads(recipe.model_dump_json())) == recipe


def test_the_schema_for_editors_is_current():
    shipped = json.loads((recipe_folder() / "recipe.schema.json").read_text())
    assert shipped == recipe_schema(), "write it again: prefloop schema > recipes/recipe.schema.json"


def test_every_setting_is_described():
    undescribed = []
    for name, section in recipe_schema()["$defs"].items():
        for field, schema in section.get("properties", {}).items():
            # A field that is a section, or the tag of a union, is described there.
            section_field = "$ref" in schema or "const" in schema or "$ref" in str(schema.get("anyOf", ""))
            if "description" not in schema and not section_field:
                undescribed.append(f"{name}.{field}")
    assert undescribed == []


def test_the_page_of_settings_is_current():
    folder = recipe_folder().parent / "docs"
    if not folder.is_dir():
        pytest.skip("not a checkout")
    made = runpy.run_path(str(folder / "make_recipe_page.py"))["page"]()
    assert (folder / "recipe.md").read_text() == made, "write it again: python docs/make_recipe_page.py"
