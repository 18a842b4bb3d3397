"""From scored answers to preference pairs, and the splits by prompt."""
