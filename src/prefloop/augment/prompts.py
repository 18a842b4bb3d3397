"""What a model is asked to make of a question, by strategy."""

from __future__ import annotations

STRATEGIES: dict[str, str] = {
    "rephrase": "Say it in other words. Whoever answers must have to give the same answer as before.",
    "complexity": (
        "Make it harder to understand: ask for the same answer in a roundabout way that takes more thought, for "
        "example by describing things in place of naming them."
    ),
    "decompose": (
        "Take it apart into two or more smaller questions that lead to the answer together, each on a line of its own."
    ),
    "constrain": (
        "Add conditions that are true of what is asked and that narrow it down. The answer must stay the same."
    ),
    "sparql": "Write it as one SPARQL query over a knowledge graph, with readable names of entities and relations.",
}

_TASK = "You rewrite questions for a search engine."
_ONLY = {
    "decompose": "Write the smaller questions and nothing else.",
    "sparql": "Write the query and nothing else.",
}


def request(strategy: str, question: str) -> str:
    """The text of one user message."""
    only = _ONLY.get(strategy, "Write the new question and nothing else.")
    return f"{_TASK} {STRATEGIES[strategy]}\n\nQuestion: {question}\n\n{only}"
