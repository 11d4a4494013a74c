"""A dataset of labelled cases and of scans that teachers labelled."""
