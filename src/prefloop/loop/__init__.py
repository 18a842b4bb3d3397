"""The loop: plan the stages of a recipe, skip what is done, run the rest, repeat rounds."""
