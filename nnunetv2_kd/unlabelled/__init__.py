"""Make a dataset from labelled cases and from scans that teachers label."""
