"""PairRM against llm-blender 0.0.2: scores that it gave for a tiny random checkpoint, kept beside the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import try_to_load_from_cache
from tokenizers import AddedToken, Tokenizer

from prefloop.signals.pairrm import PairRM, matrix, spm
from prefloop.signals.pairrm.text import PREFIXES

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "pairrm_tiny"
TOLERANCE = 1e-5

beside = pytest.mark.skipif(not DATA.is_dir(), reason="llm-blender's scores are not in this repository")


@pytest.fixture(scope="module")
def ref():
    return json.loads((DATA / "ref.json").read_text())


@pytest.fixture(scope="module")
def prompts():
    data = json.loads((DATA / "data.json").read_text())
    return list(zip(data["inputs"], data["cands"], strict=True))


@pytest.fixture(scope="module")
def model():
    return PairRM.from_pretrained(DATA / "pairrm", device="cpu")


def close(expected):
    return pytest.approx(expected, abs=TOLERANCE, rel=0)


@beside
def test_logits_of_both_orders(model, prompts, ref):
    found = model.matrices(prompts)
    assert [m[0, 1].item() for m in found] == close(ref["ab1"])
    assert [m[1, 0].item() for m in found] == close(ref["ba1"])
    assert [model.compare(x, a, b) for x, (a, b, _) in prompts] == close(ref["both1"])


@beside
def test_scores_and_ranks(model, prompts, ref):
    assert len(prompts) == len(ref["scores1"]) == 4
    for (source, candidates), scores, ranks in zip(prompts, ref["scores1"], ref["ranks1"], strict=True):
        assert model.scores(source, candidates).tolist() == close(scores)
        assert model.rank(source, candidates) == ranks


@beside
def test_best_and_worst(model, prompts, ref):
    assert [model.best_of_n(*prompt) for prompt in prompts] == ref["full_best"]
    worst = [candidates[int(model.scores(x, candidates).argmin())] for x, candidates in prompts]
    assert worst == ref["full_worst"]


@beside
def test_the_saved_copy_gives_the_same(model, prompts, ref, tmp_path):
    model.save_pretrained(tmp_path)
    again = PairRM.from_pretrained(tmp_path, device="cpu")
    scores = [matrix.scores(m.tolist()) for m in again.matrices(prompts)]
    for found, expected in zip(scores, ref["scores1"], strict=True):
        assert found == close(expected)


@beside
@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "<|source|>five ﬁve ½ … “x”\n\t a",
        "<|candidate1|>  Ｆｕｌｌ　width e\u0301 [SEP] [MASK] x [UNK]",
        "",
        "<|source|>",
        " <|source|>x ",
        "日本語 テスト",
        "a\u200bb\u00a0c",
        "İ ẞ Ⅷ ﷺ ㎏",
        "tabs\tand\nlines\r\n  and trailing   ",
    ],
)
def test_the_tokenizer_built_from_the_sentencepiece_file(text):
    kept = Tokenizer.from_file(str(DATA / "pairrm" / "tokenizer.json"))
    built = spm.load(DATA / "pairrm" / "spm.model")
    built.add_tokens([AddedToken(token, normalized=True, special=False) for token in PREFIXES])
    assert built.encode(text, add_special_tokens=False).ids == kept.encode(text, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.skipif(
    not isinstance(try_to_load_from_cache("llm-blender/PairRM", "model.safetensors"), str),
    reason="the published weights are not in the hub's cache here",
)
def test_the_published_weights_give_the_published_numbers():
    """From llm-blender's notebook (float32, first order) and README (ranks)."""
    model = PairRM.from_pretrained("llm-blender/PairRM", device="cpu")
    source = "I love you!"
    (found,) = model.logits([(source, "I hate you!", "I love you, too!")])
    assert found.values[0] == pytest.approx(-1.2547134160995483, abs=1e-4)
    greetings = ["get out!", "hi! I am fine, thanks!", "bye!"]
    assert model.rank("hello, how are you!", greetings) == [3, 1, 2]
    assert model.rank(source, ["I love you too!", "I hate you!", "Thanks! You're a good guy!"]) == [1, 3, 2]
