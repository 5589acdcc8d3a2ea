"""Prompts computed by prefill replicas for decode replicas: control frames and their two ends."""
