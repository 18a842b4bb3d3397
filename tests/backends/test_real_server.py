"""A server that nobody here wrote: `transformers serve`, with tiny models saved on the fly.

It ignores log-probabilities and schemas without a word, so a judge on it gives its verdicts as text.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from tests.tiny_models import tiny_model_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefloop.backends.base import (
    ChooseRequest,
    GenerateRequest,
    Generation,
    Refusal,
    Sampling,
    ScoreRequest,
)
from prefloop.backends.cached import CachedBackend
from prefloop.backends.hf import HfBackend
from prefloop.backends.http import HttpBackend
from prefloop.config import EndpointSection, JudgeSignalSection, ModelSection
from prefloop.errors import PrefloopError
from prefloop.signals.build import build
from prefloop.signals.driver import rate
from prefloop.store.cache import Cache


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    home = tmp_path_factory.mktemp("hub")
    (home / "hub").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (home / "log").open("w") as log:
        server = subprocess.Popen([*command, "--host", "127.0.0.1"], env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert server.poll() is None, (home / "log").read_text()
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def served(url, folder):
    return ModelSection(path=str(folder), endpoint=EndpointSection(url=url, concurrency=4, retries=1))


def always_says(folder, text):
    """A model that answers anything with one token and ends its turn: what it says next depends on the last token
    alone, because nothing is added to that token's embedding."""
    shutil.copytree(tiny_model_folder("llama"), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)["input_ids"]
    (word,) = tokenizer.encode(text, add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|eot|>")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embedding = model.model.embed_tokens.weight
        head = torch.zeros_like(model.lm_head.weight)
        head[word] = 1e4 * embedding[prompt[-1]]
        head[end] = 1e4 * embedding[word]
        model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    return folder


def test_generates_what_the_model_says_in_this_process(url):
    """Greedy, the same model says the same on the server as here: template, length and text are those asked for."""
    folder = tiny_model_folder("llama")
    asked = [
        GenerateRequest((("user", t),), Sampling(max_new_tokens=6, temperature=0.0)) for t in ("Hello", "One two")
    ]
    backend = HttpBackend(served(url, folder))
    there = backend.answer(asked)
    here = HfBackend.load(ModelSection(path=str(folder), device="cpu")).answer(asked)
    for one, other in zip(there, here, strict=True):
        assert isinstance(one, Generation)
        assert isinstance(other, Generation)
        assert (one.text.strip(), one.finish_reason) == (other.text.strip(), other.finish_reason)
        assert one.prompt_tokens == other.prompt_tokens
    assert backend.spent()["generated_tokens"] >= 2 * 6
    backend.close()


def test_refuses_what_the_server_cannot_do(url):
    backend = HttpBackend(served(url, tiny_model_folder("llama")))
    messages = (("user", "Hello"),)
    requests = [
        ChooseRequest(messages, ("A", "B")),
        GenerateRequest(messages, Sampling(max_new_tokens=8), schema='{"type": "object"}'),
        ScoreRequest((10, 11), (12,)),
    ]
    for result in backend.answer(requests):
        assert isinstance(result, Refusal)
        assert result.unsupported
    backend.close()
    with pytest.raises(PrefloopError, match="does not answer a chat with no-such-model"):
        HttpBackend(served(url, "no-such-model"))


def test_a_judge_says_its_verdict_as_text(url, tmp_path):
    section = served(url, always_says(tmp_path / "judge", "4"))
    signal, _ = build(JudgeSignalSection(type="judge", model=section, max_new_tokens=8))
    rows = [
        {
            "id": f"row{i}",
            "prompt": [{"role": "user", "content": f"Question {i}?"}],
            "completions": [
                {"id": f"{i}{t}", "text": t, "token_ids": None, "finish_reason": "stop", "sample_index": k}
                for k, t in enumerate(("yes", "no"))
            ],
        }
        for i in range(2)
    ]
    with Cache(tmp_path / "cache.db") as cache:
        backend = CachedBackend(HttpBackend(section), cache)
        rated = rate(signal, rows, {"judge": backend})
        assert [row["scores"] for row in rated.rows] == [[4.0, 4.0]] * 2
        assert rated.counts["by_text"] == 4
        assert rated.counts["nulls"] == 0
        # The exact text of a verdict's call.
        call = cache.show(limit=1)[0]["call"]
        assert call["request"]["messages"][-1]["content"]
        assert '"content":"4"' in call["response"]
        backend.close()
