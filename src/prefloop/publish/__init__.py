"""What leaves a run: data sets and models with their cards, and sheets for people to vote on."""
