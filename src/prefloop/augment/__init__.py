"""Questions written anew, and the filter that keeps those which mean the same."""
