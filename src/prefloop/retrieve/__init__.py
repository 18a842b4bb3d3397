"""Passages, queries and judgements, and what finds and scores passages."""
