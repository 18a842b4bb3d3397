"""A run's pairs as a data set folder: for `datasets`, TRL, LLaMA-Factory and ourselves."""

import json
import logging
import os
import re
import shlex

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.publish.published_run import HERE, pair, pairs, write_run
from tests.tiny_models import tiny_model_folder

from prefloop.config import PreferencesSection
from prefloop.errors import UsageError
from prefloop.inputs.preferences import PreferenceReader
from prefloop.publish.dataset import export_pairs
from prefloop.publish.facts import public, read


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "out", [pairs(9), pairs(5, first=9)])


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "set"
    export_pairs(run, out)
    return out


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`datasets.load_dataset` with a cache of its own."""
    import datasets

    return lambda path, *names, **more: datasets.load_dataset(
        str(path), *names, cache_dir=str(tmp_path / "cache"), **more
    )


def front_matter(folder):
    _, head, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body


def texts(folder):
    return {p: p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file() and p.suffix != ".parquet"}


# ----------------------------------------------------------------------------------------------------------- loading


def test_datasets_loads_the_folder_with_trls_columns(folder, load):
    rows = load(folder, split="train")
    assert len(rows) == 14
    assert rows[0]["prompt"][0] == {"role": "system", "content": "Be kind."}
    assert rows[1]["chosen"] == [{"role": "assistant", "content": "Yes, 1, and here is why: häufig „so“."}]
    assert rows[0]["score_chosen"] == 0.75
    # Null throughout: TRL would take a column of that name for a margin.
    assert not {"margin", "weight", "label", "evidence"} & set(rows.column_names)
    assert len(load(folder, "round-2", split="train")) == 5


def test_datasets_finds_nothing_malformed_in_the_card(folder, load):
    told = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = told.append
    logging.getLogger("datasets").addHandler(handler)
    try:
        found = load(folder)
    finally:
        logging.getLogger("datasets").removeHandler(handler)
    assert [record.getMessage() for record in told] == []
    assert found.num_rows == {"train": 14}


def test_columns_that_say_something_stay(tmp_path, load):
    rows = pairs(4)
    rows[2] |= {"weight": 0.5, "margin": 1.5, "label": 0.9}
    export_pairs(write_run(tmp_path / "run", [rows]), tmp_path / "set")
    found = load(tmp_path / "set", split="train")
    assert found["margin"] == [None, None, 1.5, None]
    assert {"weight", "label"} <= set(found.column_names)


def test_two_steps_of_trl(load, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    rows = pairs(6)
    rows[2] |= {"weight": 0.5, "margin": 1.5, "label": 0.9}
    export_pairs(write_run(tmp_path / "run", [rows]), tmp_path / "set")
    tiny = tiny_model_folder("llama")
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny),
        args=DPOConfig(
            output_dir=str(tmp_path / "trl"),
            max_steps=2,
            per_device_train_batch_size=2,
            use_cpu=True,
            bf16=False,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=load(tmp_path / "set", split="train"),
        processing_class=AutoTokenizer.from_pretrained(tiny),
    )
    trainer.train()
    assert trainer.state.global_step == 2


def test_our_own_reader_gets_the_same_pairs_back(folder):
    reader = PreferenceReader(PreferencesSection(path=str(folder / "train.jsonl")))
    rows = [row for part, rejects in reader.parts(100) for row in part if not rejects]
    expected = [*pairs(9), *pairs(5, first=9)]
    for name in ("id", "prompt", "chosen", "rejected", "score_chosen", "source", "strategy", "rejected_finish"):
        assert [row[name] for row in rows] == [row[name] for row in expected]


# ----------------------------------------------------------------------------------------------------- LLaMA-Factory


def llama_factory(folder, name):
    """What LLaMA-Factory makes of a ranking set, by the rules of its data/README.md and converter: prompt, answers.

    Turns alternate from the user's, behind one system turn; their number is odd; both answers are objects of `gpt`.
    """
    info = json.loads((folder / "dataset_info.json").read_text())[name]
    assert info["formatting"] == "sharegpt"
    assert info["ranking"] is True
    assert "tags" not in info
    columns = info["columns"]
    rows = []
    for line in (folder / info["file_name"]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        turns = row[columns["messages"]]
        system = turns.pop(0)["value"] if turns[0]["from"] == "system" else ""
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2) + ["human"]
        sides = [row[columns[side]] for side in ("chosen", "rejected")]
        assert all(
            isinstance(side, dict) and set(side) == {"from", "value"} and side["from"] == "gpt" for side in sides
        )
        rows.append((system, [turn["value"] for turn in turns], [side["value"] for side in sides]))
    return rows


def test_llama_factory_reads_the_same_pairs(folder, load):
    rows = llama_factory(folder, "my-run")
    assert len(rows) == 14
    assert rows[0][:2] == ("Be kind.", ["Hello", "Hi", "Question 0?"])
    assert rows[1] == ("", ["Question 1?"], ["Yes, 1, and here is why: häufig „so“.", "Yes, 1."])
    # It loads a file by this call.
    info = json.loads((folder / "dataset_info.json").read_text())["my-run"]
    assert len(load("json", data_files=[str(folder / info["file_name"])], split="train")) == 14


# -------------------------------------------------------------------------------------------------------------- card


def test_the_cards_counts_are_those_of_the_rows(folder, load):
    head, body = front_matter(folder)
    counts = json.loads((folder / "export.json").read_text())
    rows = load(folder, split="train")
    assert counts["pairs"] == len(rows) == 14
    assert counts["rounds"] == {"1": {"train": 9}, "2": {"train": 5}}
    sizes = {number: found["train"] for number, found in counts["bytes"].items()}
    assert head["dataset_info"] == [
        {"config_name": name, "splits": [{"name": "train", "num_examples": n, "num_bytes": size}]}
        for name, n, size in (
            ("default", 14, sizes["1"] + sizes["2"]),
            ("round-1", 9, sizes["1"]),
            ("round-2", 5, sizes["2"]),
        )
    ]
    assert sizes["1"] > sizes["2"] > 5 * 100
    assert head["configs"][0] == {
        "config_name": "default",
        "data_files": [{"split": "train", "path": ["data/train-round-1.parquet", "data/train-round-2.parquet"]}],
    }
    assert [c["config_name"] for c in head["configs"]] == ["default", "round-1", "round-2"]
    assert "14 pairs of answers to 14 prompts (14 train)" in body
    lengths = {side: [len(row[side][0]["content"]) for row in rows] for side in ("chosen", "rejected")}
    mean = {side: sum(found) / 14 for side, found in lengths.items()}
    assert counts["mean_chars_chosen"] == pytest.approx(mean["chosen"])
    assert f"| mean length of chosen answers | {mean['chosen']:.1f} characters |" in body
    assert f"| mean length of rejected answers | {mean['rejected']:.1f} characters |" in body
    assert counts["chosen_longer"] == 0.5
    assert "| round 1: pairs that the judge decided alike in both orders (1 is best) | 80.0% |" in body
    assert "| round 2: verdicts for the answer shown first (0.5 is unbiased) | 62.5% |" in body
    assert "decided comparisons won by the longer answer (0.5 is unbiased) | 60.0% |" in body
    assert "2 equal scores" in body  # one reject in each round


def test_licence_and_language_are_for_people_to_say(folder, run, tmp_path):
    head, body = front_matter(folder)
    assert "license" not in head
    assert "language" not in head
    assert "No licence is stated" in body
    export_pairs(run, tmp_path / "set", "cc-by-4.0")
    head, body = front_matter(tmp_path / "set")
    assert head["license"] == "cc-by-4.0"
    assert "No licence is stated" not in body


def test_nothing_tells_of_this_machine(folder, run):
    for path, text in texts(folder).items():
        for secret in (HERE, "somebody", str(run), str(folder), os.path.expanduser("~") + "/", "10.1.2.3"):
            assert secret not in text, (path.name, secret)
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|work|Users)/", text), path.name
    card = (folder / "README.md").read_text()
    assert "prefloop run recipe.yaml --out" in card
    assert "prompts.path=p.jsonl" in card
    assert "path: my prompts.jsonl" in card
    assert "ORG/judge" in card


def test_the_same_run_gives_the_same_bytes(run, folder, tmp_path):
    export_pairs(run, tmp_path / "again")
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes(), path.name


# ------------------------------------------------------------------------------------------------- which rows, where


def test_rows_that_were_measured_on_are_a_split_of_their_own(tmp_path, load):
    run = write_run(tmp_path / "run", [pairs(40)], given=True)
    counts = export_pairs(run, tmp_path / "set")
    assert counts["splits"] == {"train": 30, "test": 10}
    from prefloop.pairs.splits import holdout

    kept_out = holdout({row["prompt_id"] for row in pairs(40)}, 0.25)
    found = load(tmp_path / "set")
    assert set(found["test"]["prompt_id"]) == kept_out
    assert not kept_out & set(found["train"]["prompt_id"])
    assert "nothing of them was trained on" in front_matter(tmp_path / "set")[1]
    assert set(json.loads((tmp_path / "set" / "dataset_info.json").read_text())) == {"my-run", "my-run-test"}


def test_branches_are_never_mixed(tmp_path):
    run = write_run(tmp_path / "run", [pairs(3)], branches=("judge", "pairrm"))
    chosen = {}
    for branch in ("judge", "pairrm", None):
        counts = export_pairs(run, tmp_path / str(branch), branch=branch)
        lines = (tmp_path / str(branch) / "train.jsonl").read_text().splitlines()
        chosen[branch] = [json.loads(line)["chosen"][0]["content"] for line in lines]
        assert counts["pairs"] == 3
    assert chosen[None] == chosen["pairrm"]  # the branch of the run's model
    assert not set(chosen["judge"]) & set(chosen["pairrm"])
    body = front_matter(tmp_path / "judge")[1]
    assert "the recipe's branch `judge`" in body
    assert "Which answer is better: `judge`" in body


def test_what_is_no_pair_is_left_out_and_said(tmp_path):
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    alone = pair("alone", "good", "x") | {"rejected": None, "rejected_id": ""}
    tools = pair("tools", "good", "bad") | {"chosen": [{"role": "assistant", "content": "", "tool_calls": call}]}
    counts = export_pairs(write_run(tmp_path / "run", [[*pairs(3), alone, tools]]), tmp_path / "set")
    assert counts["pairs"] == 3
    assert counts["left_out"] == {"answers that stand alone": 1, "pairs with tools": 1}
    body = front_matter(tmp_path / "set")[1]
    assert "Left out: 1 answers that stand alone." in body
    with pytest.raises(UsageError, match="no pairs to export, but 1 answers that stand alone"):
        export_pairs(write_run(tmp_path / "single", [[alone]]), tmp_path / "other")


def test_a_folder_that_no_export_made_is_left_alone(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"no export of prefloop's"):
        export_pairs(run, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    export_pairs(run, tmp_path / "empty")
    export_pairs(run, tmp_path / "empty")


def test_a_folder_without_a_run_or_pairs(tmp_path):
    with pytest.raises(UsageError, match="no run here"):
        export_pairs(tmp_path, tmp_path / "set")
    run = write_run(tmp_path / "run", [pairs(2)])
    (next(run.glob("stages/*-pair")) / "_SUCCESS.json").unlink()
    with pytest.raises(UsageError, match="no pairs yet"):
        export_pairs(run, tmp_path / "set")


# -------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/a/b/c.jsonl", "c.jsonl"),
        ("/a/with blanks/c d.jsonl", "c d.jsonl"),
        ("~/models/m", "m"),
        ("hub:/a/b/set", "hub:set"),
        ("hub:ORG/NAME", "hub:ORG/NAME"),
        ("ORG/NAME", "ORG/NAME"),
        ("train.model.path=/x/y/z", "train.model.path=z"),
        ("rate.model.endpoint.url=http://10.0.0.1:8000/v1", "rate.model.endpoint.url=…"),
        ("see https://huggingface.co/a/b/c and either/or", "see … and either/or"),
        ("s3+x://bucket/key, HTTP://[::1]:8000/v1", "…, …"),
        ("files in /var/lib/x, please", "files in x, please"),
        ("answer with /no_think", "answer with /no_think"),
        (r"C:\Users\me\m", "m"),
        (3, 3),
        ({"url": "http://host/v1", "other": ["/a/b"]}, {"url": "…", "other": ["b"]}),
    ],
)
def test_of_paths_the_last_name_is_shown(value, shown):
    assert public(value) == shown


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        (
            "rate.model={path: m, endpoint: {url: http://10.1.2.3:8000/v1, extra_body: {user: bob}}}",
            "rate.model={path: m, endpoint: {url: …, extra_body: …}}",
        ),
        ("rate.panel=[{path: /a/b/m, endpoint: {url: 'http://h/v1'}}]", "rate.panel=[{path: m, endpoint: {url: …}}]"),
        ("rate.model.endpoint.extra_body={user: bob}", "rate.model.endpoint.extra_body=…"),
        ("rate.model.endpoint.extra_body.user=bob", "rate.model.endpoint.extra_body.user=…"),
        ("rate.model={path: m, extra_body: {user: bob", "rate.model=…"),
        ("rate.model={path: m, endpoint: {url: http://10.1.2.3/v1", "rate.model={path: m, endpoint: {url: …"),
        ("sample.n=4", "sample.n=4"),
    ],
)
def test_a_section_on_the_command_line_tells_no_server(tmp_path, argument, shown):
    facts = read(write_run(tmp_path / "run", [pairs(2)]))
    facts.manifest["command"] = ["prefloop", "run", argument]
    assert shlex.split(facts.command()) == ["prefloop", "run", shown]


def test_what_is_sent_to_a_server_stands_in_no_card(tmp_path):
    endpoint = {"url": "http://10.1.2.3/v1", "extra_body": {"user": "bob", "metadata": {"account": 7}}}
    rate = {"type": "judge", "mode": "pairwise", "model": {"path": "m", "endpoint": endpoint}}
    run = write_run(tmp_path / "run", [pairs(2)], rate=rate)
    export_pairs(run, tmp_path / "set")
    card = (tmp_path / "set" / "README.md").read_text()
    assert "bob" not in card
    assert "account" not in card
    assert "10.1.2.3" not in card


def test_all_judges_of_a_panel_are_named(tmp_path):
    panel = [{"path": "ORG/one"}, {"path": f"{HERE}/two"}]
    run = write_run(tmp_path / "run", [pairs(2)], rate={"type": "judge", "mode": "pairwise", "panel": panel})
    export_pairs(run, tmp_path / "set")
    assert "`judge`, pairwise, by `ORG/one`, `two`." in (tmp_path / "set" / "README.md").read_text()


@given(st.lists(st.text("abcxyz-_. äß", min_size=1).filter(lambda s: s.strip(". ")), min_size=2, max_size=6))
def test_no_absolute_path_keeps_its_folders(parts):
    assert "/" not in public("/" + "/".join(parts)).rstrip("/")
