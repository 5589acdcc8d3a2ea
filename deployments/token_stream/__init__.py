"""Tokens from engine replicas to ingresses, beside Serve's handles.

    ingress                                              replica
    TokenListener ── handle call: address, stream, request ─► TokenDialer
         ▲                                                        │ dials back once, keeps the line
         └── Hello, then Opened and Deltas: one frame a step ─────┤
              Abort, when a client has gone ─────────────────────►┘

The handle call stays open for the stream's life and returns its finish record, so Serve's counts,
drain and cancellation see the stream; the tokens themselves never pass through Serve.
"""
