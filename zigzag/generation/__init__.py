"""Draft, verify, commit: the loop, its rules and its noise, and where drafts come from."""
