"""Columns of the three layouts of rankings (`files.py`). Imports nothing: `inputs` and `files` both need them."""

OURS = ("query", "documents", "labels", "scores", "id", "query_id", "document_ids", "source")
TRAIN = ("query", "classification", "rank_list", "positive", "negative", "id")
MEASURE = ("question", "reference", "ctx", "before", "after", "category", "id")
