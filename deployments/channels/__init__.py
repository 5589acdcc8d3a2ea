"""Sockets between processes of one application: who listens, who dials, and frames in between.

What frames say is known elsewhere: `token_stream` brings tokens to ingresses, `kv_transfer` keys
and values to decode replicas, `master` questions to the Master.
"""
