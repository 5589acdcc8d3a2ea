"""The torch-free doorway to compiled code: memory that processes of one node share, and what a
decision of the Master computes."""
