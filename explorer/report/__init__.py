"""A report: the pages of the explorer as files that need no server."""
