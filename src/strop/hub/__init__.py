"""Hubs of data sets and models: what a repository holds, and its files, pinned to a commit.

Only what the user named is asked for, and nothing of a repository is ever run.
"""
