"""Models that generate, score and choose, behind one seam (`base.py`) and one cache (`cached.py`)."""
