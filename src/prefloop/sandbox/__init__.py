"""The sandbox: an embedded closed world and a small, deliberately unaligned model of it (docs/sandbox.md)."""

from pathlib import Path

VERSION = "v1"


def model_folder() -> Path:
    """The shipped model, a plain Hugging Face folder: `AutoModelForCausalLM.from_pretrained(model_folder())`."""
    return Path(__file__).parent / "weights" / VERSION


def encoder_folder() -> Path:
    """The shipped bi-encoder of queries and passages: `SentenceTransformer(str(encoder_folder()))`."""
    return Path(__file__).parent / "encoder" / VERSION
