"""What is kept on disk: the cache of answers, run directories, and the fingerprints that say what is still valid."""
