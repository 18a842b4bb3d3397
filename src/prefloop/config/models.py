"""Which model, and where it runs."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from prefloop.config.base import Section

OURS = {
    *("model", "messages", "prompt", "response_format", "seed", "stream"),
    *("n", "best_of", "max_tokens", "max_completion_tokens"),
    *("logprobs", "top_logprobs", "prompt_logprobs", "echo", "return_tokens_as_token_ids"),
}
"""Fields of a request that say what is asked, bound what it costs, or tell how the answer is read."""


def _is_near(host: str) -> bool:
    """Whether a host is this machine or in a private network, by its address or name; nothing is looked up."""
    try:
        address = ip_address(host)
    except ValueError:
        # A name without a dot is none of the internet; digits may be an address in another notation (0x7f000001).
        bare = "." not in host and host[:1].isalpha()
        return bare or host.endswith((".local", ".localhost", ".internal"))
    return address.is_private or address.is_loopback


def _address(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an address such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("holds more than an address; a key goes into an environment variable (key_variable)")
    return url.rstrip("/")


class EndpointSection(Section):
    """A server that speaks the OpenAI chat API: vLLM, SGLang, llama.cpp, `transformers serve`, or a vendor's."""

    url: str | tuple[str, ...] = Field(
        description="Base address up to and with the version, such as http://localhost:8000/v1; a list of several "
        "servers that run the same model shares the calls out among them."
    )
    key_variable: str | None = Field(
        None, description="Environment variable that holds the key; keys stand in no file and no log."
    )
    concurrency: int = Field(
        32, gt=0, description="Calls of a server at one time at most; fewer while the server says 429."
    )
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for one answer.")
    retries: int = Field(6, ge=0, description="Further tries of a call that met a full or faulty server.")
    price_input: float | None = Field(None, ge=0, description="Price of a million prompt tokens.")
    price_output: float | None = Field(None, ge=0, description="Price of a million generated tokens.")
    max_cost: float | None = Field(
        None, gt=0, description="The run stops before this model's calls cost more than this; needs both prices."
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of every request, such as reasoning_effort; null leaves one of ours out. Fields "
        "that make the request what it is, such as messages or max_tokens, cannot be set.",
    )

    @property
    def urls(self) -> tuple[str, ...]:
        """The address of each server."""
        return (self.url,) if isinstance(self.url, str) else self.url

    @field_validator("url")
    @classmethod
    def _are_addresses(cls, given: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(given, str):
            return _address(given)
        urls = tuple(map(_address, given))
        if not urls or len(set(urls)) < len(urls):
            raise ValueError("must be an address or a list of them, each once")
        return urls

    @field_validator("extra_body")
    @classmethod
    def _leaves_the_request_as_it_is(cls, extra: dict[str, Any]) -> dict[str, Any]:
        # Some servers refuse the field `seed`; another value would make all samples of a prompt alike.
        taken = sorted(name for name in OURS.intersection(extra) if name != "seed" or extra[name] is not None)
        if taken:
            more = " (seed may only be left out: null)" if "seed" in taken else ""
            raise ValueError(
                f"cannot set {', '.join(taken)}: what is asked, how long an answer may be and how it is read depend "
                f"on it{more}; leave it away"
            )
        return extra

    @model_validator(mode="after")
    def _key_is_encrypted(self) -> Self:
        for parts in map(urlsplit, self.urls):
            if self.key_variable is not None and parts.scheme == "http" and not _is_near(parts.hostname or ""):
                raise ValueError(
                    f"would send the key in {self.key_variable} unencrypted to {parts.hostname}; write the url with "
                    "https://, or leave key_variable away where the server wants no key (http:// with a key is for "
                    "this machine, private addresses and names such as gpu1 or gpu1.local)"
                )
        return self

    @model_validator(mode="after")
    def _limit_has_prices(self) -> Self:
        if self.max_cost is not None and (self.price_input is None or self.price_output is None):
            raise ValueError("max_cost needs price_input and price_output")
        return self


class ModelSection(Section):
    """A model: hub id, local folder, `sandbox` for the embedded one, or a name on a server."""

    path: str = Field(description="Hub id, folder of a model or of an unmerged LoRA adapter, or `sandbox`.")
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of weights and compute; auto: float32 on a CPU, the checkpoint's on a GPU (bfloat16 in "
        "place of float16).",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps; auto takes a GPU when there is one.")
    template: str = Field(
        "auto",
        description="Chat template: auto (the model's own, or `plain` where it has none), plain, alpaca, or a Jinja "
        "file.",
    )
    batch_size: int = Field(64, gt=0, description="Sequences in one forward pass when sampling or scoring.")
    workers: int = Field(
        1,
        gt=0,
        description="Processes that each hold the model and share what is sampled and scored; with device auto each "
        "takes a GPU of its own, or its part of the processor's threads. Training uses none of them.",
    )
    endpoint: EndpointSection | None = Field(
        None, description="Ask a server that runs the model under the name `path`, instead of loading it."
    )
    trust_remote_code: bool = Field(False, description="Run model code that comes with the checkpoint.")

    @model_validator(mode="after")
    def _server_decides(self) -> Self:
        if self.endpoint is not None:
            if self.workers != 1:
                raise ValueError(
                    "workers and endpoint exclude each other: workers load the model here; for several servers of one "
                    "model give endpoint.url a list of addresses"
                )
            for name in ("dtype", "device", "template", "trust_remote_code"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} and endpoint exclude each other: the server loads the model its own way")
        return self
