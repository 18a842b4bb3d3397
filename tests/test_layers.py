"""The import direction of the boxes, and what planning may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "prefloop"

# From the top of the picture to the bottom; a box imports from its own row or from rows below it.
LAYERS = [
    {"cli", "__main__"},
    {"measure"},
    {"loop", "doctor", "estimate"},
    {"evaluate", "report", "ui", "publish"},
    {"signals", "pairs", "train", "rerank", "augment", "sandbox", "inputs"},
    {"retrieve"},
    {"backends"},
    {"engine"},
    {"store"},
    {"records", "config", "errors", "intervals"},
]
RANK = {box: rank for rank, boxes in enumerate(LAYERS) for box in boxes}


def box_of(module: str) -> str:
    return module.removeprefix("prefloop.").split(".")[0]


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from prefloop import manifest` names a box; `from prefloop import __version__` does not.
            found |= (
                {f"prefloop.{a.name}" for a in node.names if a.name in RANK} if node.module == "prefloop" else set()
            )
            found.add(node.module)
    return found


FILES = sorted(p for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(file):
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    for module in imports(file):
        if module.startswith("prefloop."):
            other = box_of(module)
            assert RANK[other] >= RANK[own], f"{own} imports {other}, which stands above it"


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_banned_packages_are_not_imported(file):
    banned = {"trl", "vllm", "litellm", "llm_blender", "pickle", "hydra", "openai"}
    assert not {m.split(".")[0] for m in imports(file)} & banned


def modules_after(code: str, cwd: Path) -> set[str]:
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint('\\n'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=cwd, check=True)
    return set(out.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["run", "quickstart", "--dry-run"], ["run", "quickstart", "--print-config"]],
    ids=" ".join,
)
def test_planning_loads_neither_torch_nor_network_code(arguments, tmp_path):
    loaded = modules_after(
        f"sys.argv = ['prefloop', *{arguments!r}]; from prefloop.cli.commands import main; main()", tmp_path
    )
    assert "prefloop.cli.commands" in loaded
    heavy = {"torch", "transformers", "datasets", "peft", "httpx", "httpx2", "requests", "pandas", "scipy", "sklearn"}
    assert not loaded & heavy
