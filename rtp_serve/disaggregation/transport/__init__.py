"""Ways in which blocks come from one replica's KV memory to another's."""
