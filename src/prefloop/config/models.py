"""Which model, and where it runs."""

from __future__ import annotations

from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from prefloop.config.base import Section


class EndpointSection(Section):
    """A server that speaks the OpenAI chat API: vLLM, SGLang, llama.cpp, `transformers serve`, or a vendor's."""

    url: str = Field(description="Base address up to and with the version, such as http://localhost:8000/v1.")
    key_variable: str | None = Field(
        None, description="Environment variable that holds the key; keys stand in no file and no log."
    )
    concurrency: int = Field(32, gt=0, description="Calls at one time at most; fewer while the server says 429.")
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for one answer.")
    retries: int = Field(6, ge=0, description="Further tries of a call that met a full or faulty server.")
    price_input: float | None = Field(None, ge=0, description="Price of a million prompt tokens.")
    price_output: float | None = Field(None, ge=0, description="Price of a million generated tokens.")
    max_cost: float | None = Field(
        None, gt=0, description="The run stops before this model's calls cost more than this; needs both prices."
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of every request, such as reasoning_effort; null leaves one of ours out.",
    )

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("holds more than an address; a key goes into an environment variable (key_variable)")
        return url.rstrip("/")

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
    endpoint: EndpointSection | None = Field(
        None, description="Ask a server that runs the model under the name `path`, instead of loading it."
    )
    trust_remote_code: bool = Field(False, description="Run model code that comes with the checkpoint.")

    @model_validator(mode="after")
    def _server_decides(self) -> Self:
        if self.endpoint is not None:
            for name in ("dtype", "device", "template", "trust_remote_code"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} and endpoint exclude each other: the server loads the model its own way")
        return self
