"""Two logits while training, one when served: any architecture, the same ranking."""

from __future__ import annotations

import json

import pytest
import torch
from rerank_numbers import seq
from sentence_transformers import CrossEncoder
from tiny_rerankers import ARCHITECTURES, tiny_reranker
from transformers import AutoModelForSequenceClassification

from prefloop.config import RerankSection
from prefloop.errors import UsageError
from prefloop.rerank.model import (
    forward,
    last_layer,
    load_for_scoring,
    load_two_logits,
    save_folded,
    shared_parameters,
)

PAIRS = [("w1 w2", f"w{i} w{(7 * i) % 60} w{(3 * i) % 60}") for i in range(3, 40)]


def section(model, **settings) -> RerankSection:
    return RerankSection(model=str(model), device="cpu", max_length=64, **settings)


def logits(encoder: CrossEncoder) -> torch.Tensor:
    encoder.eval()
    with torch.no_grad():
        return forward(encoder, encoder.preprocess(PAIRS))[1]


@pytest.mark.parametrize("head", ["standard", "linear"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_folded_model_ranks_as_the_difference(arch, head, tmp_path):
    encoder = load_two_logits(section(tiny_reranker(arch), head=head), seed=1)
    two = logits(encoder).double()
    difference = two[:, 1] - two[:, 0]
    save_folded(encoder, tmp_path / "model", "difference")
    assert encoder.num_labels == 2
    assert torch.equal(logits(encoder).double(), two), "saving leaves the model as it was"
    served = CrossEncoder(str(tmp_path / "model"), device="cpu")
    assert served.num_labels == 1
    probabilities = torch.from_numpy(served.predict(PAIRS, batch_size=5)).double()
    assert torch.allclose(probabilities, torch.sigmoid(difference), atol=1e-5)
    assert probabilities.argsort().tolist() == difference.argsort().tolist()


@pytest.mark.parametrize("arch", ["bert", "xlm-roberta", "modernbert"])
def test_plain_transformers_loads_the_folded_model(arch, tmp_path):
    """What TEI and vLLM read: config.json with one label, and the weights under the architecture's own names."""
    encoder = load_two_logits(section(tiny_reranker(arch)), seed=1)
    save_folded(encoder, tmp_path, "difference")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        one = model.eval()(**encoder.preprocess(PAIRS)).logits
    two = logits(encoder)
    assert one.shape == (len(PAIRS), 1)
    assert torch.allclose(one[:, 0], two[:, 1] - two[:, 0], atol=1e-5)


def test_folding_to_the_second_logit(tmp_path):
    encoder = load_two_logits(section(tiny_reranker("bert")), seed=1)
    with torch.no_grad():
        last_layer(encoder).weight.copy_(seq(2, 32).float())
    save_folded(encoder, tmp_path, "logit1")
    one = load_for_scoring(str(tmp_path)).predict(PAIRS, activation_fn=torch.nn.Identity())
    assert torch.allclose(torch.from_numpy(one), logits(encoder)[:, 1], atol=1e-5)


@pytest.mark.parametrize("arch", ["bert", "xlm-roberta", "modernbert"])
def test_a_cross_encoder_starts_as_the_reranker_that_it_is(arch):
    folder = tiny_reranker(arch, labels=1)
    own = CrossEncoder(str(folder), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    two = logits(load_two_logits(section(folder), seed=1))
    assert torch.allclose(two[:, 1] - two[:, 0], torch.from_numpy(own), atol=1e-5)


def test_a_head_with_many_labels_is_made_new():
    assert logits(load_two_logits(section(tiny_reranker("bert", labels=3)), seed=1)).shape == (len(PAIRS), 2)


def test_fresh_layers_follow_the_seed():
    first, again, other = (
        last_layer(load_two_logits(section(tiny_reranker("bert")), seed)).weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shared_weights_leave_pooler_and_head_out():
    encoder = load_two_logits(section(tiny_reranker("bert")), seed=1)
    hidden, found = forward(encoder, encoder.preprocess(PAIRS))
    reached = torch.autograd.grad(hidden[:, 0].sum(), shared_parameters(encoder), allow_unused=True)
    assert all(g is not None for g in reached)
    assert last_layer(encoder).weight not in set(shared_parameters(encoder))
    assert found.shape == (len(PAIRS), 2)


def test_a_decoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(UsageError, match="no encoder"):
        load_two_logits(section(tmp_path), seed=0)


def test_no_model_is_a_clear_error(tmp_path):
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_two_logits(section(tmp_path / "none"), seed=0)
    with pytest.raises(UsageError, match=r"cannot be loaded|no such folder"):
        load_for_scoring(str(tmp_path / "none"))


def test_scoring_wants_one_logit():
    with pytest.raises(UsageError, match="3 logits"):
        load_for_scoring(str(tiny_reranker("bert", labels=3)))


def test_a_folder_of_a_bi_encoder_is_a_start(tmp_path):
    """As sentence-transformers writes it, with pooling and normalisation behind the encoder: those are left out."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    folder = tiny_reranker("bert")
    SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32, "mean"), Normalize()]).save(str(tmp_path))
    for head in ("standard", "linear"):
        plain, wrapped = (load_two_logits(section(path, head=head), seed=1) for path in (folder, tmp_path))
        assert torch.allclose(logits(wrapped), logits(plain), atol=1e-6)


@pytest.mark.parametrize("arch", ["bert", "xlm-roberta"])
def test_pairs_longer_than_the_model_are_cut(arch, tmp_path):
    """More tokens are asked for than the 128 positions that there are."""
    asked = RerankSection(model=str(tiny_reranker(arch)), device="cpu", max_length=512)
    encoder = load_two_logits(asked, seed=1)
    assert encoder.max_seq_length <= 128
    long = [("w1", "w2 " * 600)]
    assert encoder.predict(long).shape == (1, 2)
    save_folded(encoder, tmp_path, "difference")
    served = load_for_scoring(str(tmp_path), "cpu", 512)
    assert served.predict(long).shape == (1,)


def test_scoring_refuses_an_encoder_without_a_head():
    with pytest.raises(UsageError, match="without a head"):
        load_for_scoring(str(tiny_reranker("bert")), "cpu")
