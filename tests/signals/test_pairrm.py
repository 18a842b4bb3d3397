"""PairRM itself: its token sequence, its arithmetic, its folders, and what must hold for any weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.tiny_pairrm import BACKBONE, LIMITS, PIECES, save_blender, spm_bytes, tiny_pairrm, tiny_tokenizer
from transformers import DebertaV2Config

from prefloop.errors import UsageError
from prefloop.signals.pairrm import PairRM, checkpoint, matrix, spm
from prefloop.signals.pairrm.model import ATTENTION_BUDGET, batches
from prefloop.signals.pairrm.network import PairRMNetwork
from prefloop.signals.pairrm.text import FIRST, PREFIXES, SECOND, SOURCE, Encoder, Limits

MODEL = tiny_pairrm()
CASES = ("hello?", ["the capital of Paris is hello", "no", "Paris is Paris, hello!", "e\u0301 \u2026 \ufb01"])
TEXTS = st.text(st.sampled_from("abc dePARis.!\n\u00e9\ufb01\u2026"), max_size=40)


def ids(text):
    return MODEL.encoder.tokenizer.encode(text, add_special_tokens=False).ids


# ---- the token sequence


def test_three_segments_with_their_prefixes():
    vocabulary = MODEL.encoder.tokenizer.get_vocab()
    (row,) = MODEL.encode([("hello", "the", "Paris is")])
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    x, a, b = (vocabulary[token] for token in (SOURCE, FIRST, SECOND))
    hello, the, paris, is_ = (vocabulary[w] for w in ("▁hello", "▁the", "▁Paris", "▁is"))
    assert row.ids == [cls, x, hello, sep, cls, a, the, sep, cls, b, paris, is_, sep]
    assert row.places == (1, 5, 9)
    assert row.cut == 0


def test_the_prefixes_stand_behind_the_mask_token():
    assert [MODEL.encoder.tokenizer.token_to_id(t) for t in PREFIXES] == [len(PIECES) + 1 + i for i in range(4)]


@pytest.mark.parametrize("source", ["[SEP] a", "a [SEP] b[SEP]", "[SEP][SEP]"])
def test_a_written_sep_ends_no_segment(source):
    sep = MODEL.encoder.tokenizer.token_to_id("[SEP]")
    (row,) = MODEL.encode([(source, source, source)])
    assert row.ids.count(sep) == 3
    assert MODEL.compare("q", source, "b") == MODEL.compare("q", source.replace("[SEP]", " "), "b")


@settings(max_examples=60)
@given(TEXTS, TEXTS, TEXTS)
@example("a" * 99, "b" * 99, "c" * 99)
@example("a", "b" * 99, "")
@example("", "", "")
def test_limits_are_kept_and_segments_stay_closed(x, a, b):
    vocabulary = MODEL.encoder.tokenizer.get_vocab()
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    (row,) = MODEL.encode([(x, a, b)])
    starts = [place - 1 for place in row.places]
    segments = [row.ids[i:j] for i, j in zip(starts, [*starts[1:], len(row.ids)], strict=True)]
    whole = [len(ids(prefix + text)) + 2 for prefix, text in zip((SOURCE, FIRST, SECOND), (x, a, b), strict=True)]
    width = min(whole[0], LIMITS.source)
    most = [LIMITS.source, *[LIMITS.candidate + (LIMITS.source - width) // 2] * 2]
    for segment, length, limit, prefix in zip(segments, whole, most, (SOURCE, FIRST, SECOND), strict=True):
        assert len(segment) == min(length, limit)
        assert (segment[0], segment[1], segment[-1]) == (cls, vocabulary[prefix], sep)
    assert row.cut == sum(length > limit for length, limit in zip(whole, most, strict=True))
    assert len(row.ids) <= LIMITS.source + 2 * LIMITS.candidate


def test_truncation_does_not_depend_on_the_neighbours():
    short, long = ("hi", "a" * 60, "b" * 60), ("c" * 60, "a" * 60, "b" * 60)
    assert MODEL.encode([short, long])[0] == MODEL.encode([short])[0]
    assert MODEL.logits([short, long])[0].values == pytest.approx(MODEL.logits([short])[0].values, abs=1e-6)


def test_cut_texts_are_counted():
    model = tiny_pairrm()
    model.matrix("hi", ["a" * 60, "b"])
    assert model.truncated == 2  # the long one, in each order
    assert [found.truncated for found in model.logits([("hi", "a" * 60, "b" * 60)])] == [2]


def test_an_answer_that_contains_a_prefix_moves_no_position():
    (row,) = MODEL.encode([("q", f"a {SECOND} b", "c")])
    second = MODEL.encoder.tokenizer.token_to_id(SECOND)
    assert row.ids[row.places[2]] == second
    assert row.ids.index(second) < row.places[2]


def test_a_truncation_in_the_tokenizer_file_is_switched_off():
    tokenizer = tiny_tokenizer()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=30)
    (row,) = Encoder(tokenizer, LIMITS).encode([("hello the", "Paris is", "no")])
    assert row == MODEL.encode([("hello the", "Paris is", "no")])[0]


def test_limits_without_room_are_refused():
    with pytest.raises(UsageError, match="no room"):
        Encoder(tiny_tokenizer(), Limits(3, 20))


# ---- the network


def test_the_logit_by_hand():
    """left - right of the head on [source; first] and [source; second], mean over two tasks."""
    model = tiny_pairrm(seed=3, n_tasks=2)
    batch = model.encoder.collate(model.encode([("hello", "the", "Paris is")]))
    with torch.no_grad():
        hidden = model.network.pretrained_model(batch.ids_BL, attention_mask=batch.mask_BL).last_hidden_state[0]
        first, second = model.network.head_layer[1], model.network.head_layer[4]
        s, a, b = hidden[1], hidden[5], hidden[9]
        left, right = (second(torch.tanh(first(torch.cat([s, x])))) for x in (a, b))
    found = model.logits([("hello", "the", "Paris is")])[0].values[0]
    assert left.shape == (2,)
    assert found == pytest.approx((left - right).mean().item(), abs=1e-6)


def test_padding_changes_nothing():
    rows = MODEL.encode([("hello", "the", "Paris is"), ("c" * 60, "a" * 60, "b" * 60)])
    alone, together = MODEL.encoder.collate(rows[:1]), MODEL.encoder.collate(rows)
    with torch.no_grad():
        one = MODEL.network(alone.ids_BL, alone.mask_BL, alone.places_B3)
        two = MODEL.network(together.ids_BL, together.mask_BL, together.places_B3)
        together.ids_BL[0, len(rows[0].ids) :] = 17  # whatever fills up
        other = MODEL.network(together.ids_BL, together.mask_BL, together.places_B3)
    assert together.ids_BL.shape[1] > alone.ids_BL.shape[1]
    assert two[0].item() == pytest.approx(one[0].item(), abs=1e-6)
    assert other[0].item() == two[0].item()


@settings(max_examples=30)
@given(st.lists(st.integers(1, 3000), max_size=40), st.integers(1, 64))
def test_batches_hold_every_row_once_and_fit(lengths, size):
    made = batches(lengths, size)
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    longest = [max(lengths[i] for i in batch) for batch in made]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(made, longest, strict=True):
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * length**2 <= ATTENTION_BUDGET


# ---- matrix, scores, ranks


def test_arithmetic_by_hand():
    m = [[0, 1, 2], [-3, 0, 4], [5, -6, 0]]
    # d(0,1) = 4, d(0,2) = -3, d(1,2) = 10
    assert matrix.scores(m) == pytest.approx([1 / 3, 2, -7 / 3])
    assert matrix.ranks(matrix.scores(m)) == [2, 1, 3]
    assert matrix.ranks([1.0, 2.0, 2.0, 0.0]) == [3, 1, 1, 4]
    p = matrix.logistic
    assert matrix.wins(m) == pytest.approx([(p(4) + p(-3)) / 2, (p(-4) + p(10)) / 2, (p(3) + p(-10)) / 2])
    assert matrix.wins([[0.0]]) == [None]
    assert matrix.logistic(0) == 0.5
    assert matrix.logistic(-1000) == 0
    assert matrix.logistic(1000) == 1


@settings(max_examples=25)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_what_holds_for_any_answers(source, candidates):
    m = MODEL.matrix(source, candidates)
    n = len(candidates)
    assert m.shape == (n, n)
    assert m.dtype == torch.float32
    assert m.diagonal().tolist() == [0] * n
    scores = MODEL.scores(source, candidates)
    assert scores.sum().item() == pytest.approx(0, abs=1e-5)
    assert MODEL.rank(source, candidates) == matrix.ranks(matrix.scores(m.tolist()))
    for i in range(n):
        for j in range(n):
            if candidates[i].strip() == candidates[j].strip():
                assert m[i, j] == m[j, i] == 0
                assert scores[i] == scores[j]


@settings(max_examples=25)
@given(TEXTS, TEXTS, TEXTS)
def test_swapping_two_answers_negates_d_exactly(source, a, b):
    assert MODEL.compare(source, a, b) == -MODEL.compare(source, b, a)


def test_both_orders_go_through_the_network():
    source, candidates = CASES
    m = MODEL.matrix(source, candidates)
    for i, j in ((0, 1), (1, 0), (2, 3)):
        alone = MODEL.logits([(source, candidates[i], candidates[j])])[0].values[0]
        assert m[i, j].item() == pytest.approx(alone, abs=1e-5)
    assert (m + m.T).abs().max() > 1e-3, "the seats are alike, so the test would not see them mixed up"


def test_a_duplicate_ties_and_changes_no_other_logit():
    source, candidates = CASES
    m, more = MODEL.matrix(source, candidates), MODEL.matrix(source, [*candidates, f" {candidates[1]}\n"])
    assert torch.equal(more[:4, :4], m)
    assert torch.equal(more[4, :4], m[1])
    assert MODEL.rank(source, [candidates[1], candidates[1]]) == [1, 1]


def test_prompts_of_any_number_of_answers_go_together():
    source, candidates = CASES
    prompts = [("a", ["b"]), (source, candidates), ("c", ["x", "x "]), ("d", ["e", "f"])]
    together = MODEL.matrices(prompts)
    assert [tuple(m.shape) for m in together] == [(1, 1), (4, 4), (2, 2), (2, 2)]
    for m, (x, answers) in zip(together, prompts, strict=True):
        torch.testing.assert_close(m, MODEL.matrix(x, answers), atol=1e-5, rtol=0)
    assert MODEL.matrices([]) == []


def test_best_of_n_is_the_first_of_the_best():
    source, candidates = CASES
    assert MODEL.best_of_n(source, candidates) == candidates[int(MODEL.scores(source, candidates).argmax())]
    assert MODEL.best_of_n("q", ["same", " same"]) == "same"


# ---- tokenizer from a SentencePiece file


def test_the_tokenizer_of_a_sentencepiece_file(tmp_path):
    (tmp_path / "spm.model").write_bytes(spm_bytes())
    tokenizer = spm.load(tmp_path / "spm.model")
    assert tokenizer.token_to_id("[MASK]") == len(PIECES)
    assert tokenizer.encode(" hello  the ", add_special_tokens=False).tokens == ["▁hello", "▁the"]
    assert tokenizer.encode("\u2603", add_special_tokens=False).ids[-1] == 3
    assert tokenizer.encode("he[MASK]", add_special_tokens=False).tokens[-1] == "[MASK]"


@pytest.mark.parametrize("data", [b"", b"\x0a", spm_bytes()[:-40], b"not a model at all", b"\x0a\x00"])
def test_a_broken_sentencepiece_file_is_named(data, tmp_path):
    (tmp_path / "spm.model").write_bytes(data)
    with pytest.raises(UsageError, match="no SentencePiece model"):
        spm.load(tmp_path / "spm.model")


# ---- folders


def same(one, two):
    source, candidates = CASES
    torch.testing.assert_close(one.matrix(source, candidates), two.matrix(source, candidates), atol=1e-6, rtol=0)
    assert one.encoder.limits == two.encoder.limits
    return True


def test_save_and_load(tmp_path):
    MODEL.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["DebertaV2PairRM"]
    assert (config["source_maxlength"], config["candidate_maxlength"]) == (24, 12)
    assert config["cand1_prefix_id"] == config["source_prefix_id"] + 1
    assert same(MODEL, PairRM.from_pretrained(tmp_path / "saved"))
    assert not PairRM.from_pretrained(tmp_path / "saved").network.training


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("spelling", ["maxlength", "max_length"])
def test_the_rankers_own_format(weights, spelling, tmp_path):
    folder = save_blender(MODEL, tmp_path / "p", weights=weights, spelling=spelling)
    assert same(MODEL, PairRM.from_pretrained(folder))


def test_an_hf_folder_without_limits_has_the_published_ones(tmp_path):
    MODEL.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["source_maxlength"], config["candidate_maxlength"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert PairRM.from_pretrained(tmp_path).encoder.limits == Limits(1224, 412)


def test_the_published_backbone_is_known_without_a_hub(tmp_path):
    folder = save_blender(MODEL, tmp_path / "p", beside=False)
    config = json.loads((folder / "config.json").read_text()) | {"model_name": "microsoft/deberta-v3-large"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="do not fit"):  # it is tiny; the shape that was looked for is the large one
        PairRM.from_pretrained(folder)
    shape = DebertaV2Config.from_dict(checkpoint.DEBERTA_V3_LARGE)
    assert (shape.hidden_size, shape.num_hidden_layers, shape.position_buckets, shape.layer_norm_eps) == (
        1024,
        24,
        256,
        1e-7,
    )


def test_an_unknown_backbone_without_a_hub_is_named(tmp_path):
    folder = save_blender(MODEL, tmp_path / "p", beside=False)
    with pytest.raises(UsageError, match="nobody/tiny") as error:
        PairRM.from_pretrained(folder)
    assert "deberta_config.json" in error.value.fix


def test_half_precision_is_computed_as_asked(tmp_path):
    tiny_pairrm().save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    save_file({name: t.half() for name, t in tensors.items()}, tmp_path / "a" / "model.safetensors")
    model = PairRM.from_pretrained(tmp_path / "a", device="cpu")
    assert model.dtype == torch.float32
    source, candidates = CASES
    torch.testing.assert_close(model.matrix(source, candidates), MODEL.matrix(source, candidates), atol=0.05, rtol=0)
    half = PairRM.from_pretrained(tmp_path / "a", device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.matrix(source, candidates), MODEL.matrix(source, candidates), atol=0.3, rtol=0)


def broken(tmp_path, change):
    MODEL.save_pretrained(tmp_path)
    change(tmp_path)
    return tmp_path


def change_json(name, **entries):
    def change(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | entries))

    return change


def drop_tensor(name):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file({k: v for k, v in tensors.items() if k != name}, folder / "model.safetensors")

    return change


def unlink(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "message", "at_once"),
    [
        (unlink("config.json"), "no configuration", True),
        (change_json("config.json", model_type="llama"), "'llama'", True),
        (unlink("model.safetensors"), "neither model.safetensors nor pytorch_model.bin|no weights", True),
        (unlink("tokenizer.json"), "neither tokenizer.json nor spm.model", True),
        (lambda f: (f / "model.safetensors").write_bytes(b"nonsense"), "no safetensors file|no weights", True),
        (drop_tensor("head_layer.4.weight"), "no head", False),
        (drop_tensor("pretrained_model.encoder.layer.1.output.dense.bias"), "do not fit", False),
        (change_json("config.json", num_hidden_layers=3), "do not fit", False),
        (change_json("config.json", cand1_prefix_id=5), "trained with 5", False),
    ],
)
def test_what_is_no_pairrm_is_named(change, message, at_once, tmp_path):
    folder = broken(tmp_path / "b", change)
    with pytest.raises(UsageError, match=message):
        PairRM.from_pretrained(folder)
    if at_once:
        with pytest.raises(UsageError, match=message):
            checkpoint.check(folder)


def test_a_backbone_alone_is_no_pairrm(tmp_path):
    def headless(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file({k: v for k, v in tensors.items() if "head" not in k}, folder / "model.safetensors")

    folder = broken(tmp_path / "b", headless)
    for look in (checkpoint.check, PairRM.from_pretrained):
        with pytest.raises(UsageError, match="no head"):
            look(folder)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.makedirs, (str(self.folder),)


def test_a_bin_with_code_in_it_is_not_run(tmp_path):
    folder = save_blender(MODEL, tmp_path / "p", weights="pytorch_model.bin")
    torch.save({"head_layer.4.weight": Trap(tmp_path / "caught")}, folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="no weights that can be read"):
        PairRM.from_pretrained(folder)
    assert not (tmp_path / "caught").exists()


def test_a_hub_model_that_is_not_here_is_named():
    with pytest.raises(UsageError, match="cannot be fetched") as error:
        PairRM.from_pretrained("nobody/no-such-pairrm")
    assert "hf download" in error.value.fix


def test_the_module_is_light_until_pairrm_is_asked_for():
    script = "import sys, prefloop.signals.build, prefloop.signals.pairrm; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_parameters_have_the_published_names():
    network = PairRMNetwork(DebertaV2Config.from_dict({**BACKBONE, "vocab_size": 20}), 3)
    names = dict(network.named_parameters())
    assert tuple(names["head_layer.1.weight"].shape) == (16, 32)
    assert tuple(names["head_layer.4.weight"].shape) == (3, 16)
    assert "pretrained_model.embeddings.word_embeddings.weight" in names
    assert not [name for name in names if "pooler" in name]
