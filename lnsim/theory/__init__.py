"""Statements and predictions as functions: the paper's, and the law of modes."""
