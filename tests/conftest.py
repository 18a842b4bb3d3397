"""What holds for all tests: no hub, and no deadlines on machines that are busy with other things."""

import os

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

settings.register_profile("prefloop", deadline=None)
settings.load_profile("prefloop")
