"""Speed and memory against the tools used directly, side by side in one run."""
