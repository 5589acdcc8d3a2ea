"""Prefill on one replica, decode on another. See docs/disaggregation.md."""
