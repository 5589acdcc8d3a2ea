"""Several ranks that run one model: the leader with the engine, and followers in other processes.

    engine ──► leader, rank 0 ──orders──► follower, rank 1 …       one writer, every follower reads
                  │    ▲                      │
                  │    └───────reports────────┤                     of loading alone
                  └───── collectives ─────────┘                     within a step

All ranks get the same steps in the same order, keep the same books and choose the same tokens, so
nothing comes back from a step but what the leader has itself. A rank that fails ends the step of
all of them, and the engine with it.
"""
