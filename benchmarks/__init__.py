"""One script per claim. Each runs us and a peer in the same process, in turns, and prints the ratio."""
